"""Coded serving in front of Tritons.

codedinv export triton-repo fashion-mnist repository
tritonserver --model-repository repository --grpc-port 8001   # and more of them, elsewhere
python triton_workers.py grpc://127.0.0.1:8001 grpc://10.0.0.2:8001 ...
"""

import sys

from codedinv import CodedServer
from codedinv.data import load_test_images, to_queries

images, labels = load_test_images()
with CodedServer("fashion-mnist", workers=sys.argv[1:]) as server:
    predictions = server.predict_batch(to_queries(images[:40]))
    right = sum(p.outputs["label"].argmax() == y for p, y in zip(predictions, labels, strict=False))
    print(f"{len(server.stats().workers)} workers, {right} of {len(predictions)} right")
