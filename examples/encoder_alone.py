"""The encoder and the decoder in a front end of one's own: ONNX Runtime, and no server of codedinv.

    python encoder_alone.py [encoder.onnx backbone.onnx]

Four queries go to four workers (here: calls of the backbone), their parity query to a fifth. The
second result never comes, and is rebuilt from the other four.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from codedinv import CodedModel, StreamingDecoder
from codedinv.data import load_test_images, to_queries

model = CodedModel.load("fashion-mnist")
files = sys.argv[1:] or [model.folder / name for name in ("encoder.onnx", "backbone.onnx")]
encoder, backbone = (onnxruntime.InferenceSession(str(Path(file))) for file in files)

# Of one class, as a front end that groups by a light model would choose them.
images, labels = load_test_images()
queries = to_queries(images[labels == 8][:4])

(parities,) = encoder.run(
    None, {"queries": queries[np.newaxis]}
)  # (1, k, *input) -> (1, r, *input)
slots = np.concatenate([queries, parities[0]])
embeddings = [backbone.run(None, {"query": slot[np.newaxis]})[0][0] for slot in slots]

decoder = StreamingDecoder(model.code, model.embedding_shape)
for slot in (0, 2, 3, 4):
    decoder.push(slot, embeddings[slot])
rebuilt = decoder.recover()[1]

difference = np.linalg.norm(rebuilt - embeddings[1]) / np.linalg.norm(embeddings[1])
print(f"embedding rebuilt to {difference:.3f} of its norm")
for name, embedding in (("exact", embeddings[1]), ("rebuilt", rebuilt)):
    print(name, "class", model.head(embedding[np.newaxis])[0].argmax())
