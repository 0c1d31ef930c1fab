"""Serve the bundled model with five workers, kill one, lose nothing."""

from codedinv import CodedServer
from codedinv.data import FASHION_MNIST_CLASSES, load_test_images, to_queries

images, labels = load_test_images()
with CodedServer("fashion-mnist", workers=5) as server:
    futures = [server.submit(query) for query in to_queries(images[:40])]
    server.pool.kill(3)  # SIGKILL, while it is at work
    for future in futures:
        p = future.result()
        name = FASHION_MNIST_CLASSES[p.outputs["label"].argmax()]
        print(f"{name:10} {p.source:13} {1e3 * p.latency:6.1f} ms")
    print(server.stats().answered)
