"""A KServe model server that is a worker: it runs a bundle's backbone, and knows no codedinv.

    python kserve_worker.py --model_name fashion-mnist --backbone BUNDLE/backbone.onnx \\
        --http_port 8080 --grpc_port 8081
    CodedServer("fashion-mnist", workers=["grpc://127.0.0.1:8081", ...])
"""

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server


class Backbone(Model):
    """query -> embedding."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(self.path), options)
        self.ready = True
        return self.ready

    async def get_input_types(self) -> list[dict]:
        return [self._described(self.session.get_inputs()[0])]

    async def get_output_types(self) -> list[dict]:
        return [self._described(self.session.get_outputs()[0])]

    def _described(self, tensor) -> dict:
        sizes = [size if isinstance(size, int) else -1 for size in tensor.shape]
        return {"name": tensor.name, "datatype": "FP32", "shape": sizes}

    def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        (embedding,) = self.session.run(None, {"query": payload.inputs[0].as_numpy()})
        output = InferOutput("embedding", list(embedding.shape), "FP32")
        output.set_data_from_numpy(np.ascontiguousarray(embedding), binary_data=True)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    model_server.parser.add_argument("--backbone", type=Path, required=True)
    arguments = model_server.parser.parse_args()
    model = Backbone(arguments.model_name, arguments.backbone)
    model.load()
    print("sha256", hashlib.sha256(arguments.backbone.read_bytes()).hexdigest(), flush=True)
    ModelServer().start([model])
