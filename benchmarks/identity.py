"""The model that a front end is measured with: its backbone gives the query back, so that nothing
but the way there and back takes time."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from codedinv.schemes.scheme import Array  # noqa: E402
from tests.serving.linear_model import LinearModel  # noqa: E402


class IdentityModel(LinearModel):
    """f(x) = x, g(z) = the first ten values of z, k = 4, queries of `size` values."""

    def __init__(self, size: int) -> None:
        super().__init__(k=4, input_shape=(1, 1, size), embedding_shape=(1, 1, size))
        self.matrix = None
        self.scale = np.ones(size, np.float32)
        self.heads = {"label": None}
        self.anchors.embeddings = self.anchors.queries

    def head(self, z: Array, task: str | None = None) -> Array:
        return z.reshape(len(z), -1)[:, :10]

    def _backbone(self) -> onnx.ModelProto:
        query, embedding = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *self.input_shape])
            for name in ("query", "embedding")
        )
        node = helper.make_node("Identity", ["query"], ["embedding"])
        graph = helper.make_graph([node], "backbone", [query], [embedding])
        opset = [helper.make_opsetid("", 17)]
        return helper.make_model(graph, opset_imports=opset, ir_version=9)
