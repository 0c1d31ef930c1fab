"""What a server does for one coding group, step by step: encode, embed, lose one, rebuild it."""

import numpy as np

from codedinv import CodedModel, StreamingDecoder
from codedinv.data import FASHION_MNIST_CLASSES, load_test_images, to_queries

model = CodedModel.load("fashion-mnist")
k = model.code.k
images, labels = load_test_images()
queries = to_queries(images[:k])

# One parity query of the k queries; each of the k + 1 goes to a worker of its own.
parity_query = model.encode(queries[None])[0]
embeddings = model.embed(np.concatenate([queries, parity_query]))

# The worker with slot 2 never answers. Results may come in any order.
lost = 2
decoder = StreamingDecoder(model.code, shape=model.embedding_shape)
for slot in reversed(range(model.code.n)):
    if slot != lost:
        decoder.push(slot, embeddings[slot])
rebuilt = decoder.recover()[lost]

exact_class, rebuilt_class = model.head(np.stack([embeddings[lost], rebuilt])).argmax(axis=1)
print("true class:   ", FASHION_MNIST_CLASSES[labels[lost]])
print("exact answer: ", FASHION_MNIST_CLASSES[exact_class])
print("reconstructed:", FASHION_MNIST_CLASSES[rebuilt_class])
error = np.linalg.norm(rebuilt - embeddings[lost]) / np.linalg.norm(embeddings[lost])
print(f"relative error of the rebuilt embedding: {error:.3f}")
