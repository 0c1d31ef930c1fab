"""A model that is exactly linear: its parity queries are exact, so what is reconstructed must equal
what the lost worker would have said. The strictest oracle there is for the machinery around it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from codedinv.coding import Code
from codedinv.schemes.scheme import Array


@dataclass
class Anchors:
    queries: Array
    embeddings: Array


@dataclass
class LinearModel:
    """f(x) = A x reshaped, g(z) = B z, encoder = the code itself on the queries.

    Args:
        k, r: of the code.
        input_shape, embedding_shape: of the same number of values, as for an invertible f.
        work: matrix products by an orthogonal matrix and its inverse that f does in vain, so that
            it takes time.
    """

    k: int = 4
    r: int = 1
    input_shape: tuple[int, ...] = (1, 4, 4)
    embedding_shape: tuple[int, ...] = (4, 2, 2)
    work: int = 0
    name: str = "linear"
    folder: Path | None = None
    heads: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = np.random.default_rng(7)
        self.code = Code.uniform(self.k) if self.r == 1 else Code(_coefficients(self.k, self.r))
        self.size = int(np.prod(self.input_shape))
        # Large models get a diagonal f: a matrix of 100,000 squared is no test of the wire.
        self.scale = random.uniform(0.5, 2.0, self.size).astype(np.float32)
        self.matrix = None
        if self.size <= 1024:
            self.matrix = np.linalg.qr(random.standard_normal((self.size, self.size)))[0].astype(
                np.float32
            )
        self.classifier = random.standard_normal((self.size, 10)).astype(np.float32)
        self.counter = random.standard_normal((self.size, 3)).astype(np.float32)
        self.heads = {"label": self.classifier, "count": self.counter}
        queries = random.uniform(0, 1, (self.k, *self.input_shape)).astype(np.float32)
        self.anchors = Anchors(queries, self.embed(queries))

    def embed(self, x: Array) -> Array:
        flat = x.reshape(len(x), -1) * self.scale
        if self.matrix is not None:
            flat = flat @ self.matrix
        return flat.reshape(len(x), *self.embedding_shape)

    def encode(self, queries: Array) -> Array:
        c = self.code.coefficients.astype(np.float32)
        return np.einsum("rk,bk...->br...", c, queries)

    def head(self, z: Array, task: str | None = None) -> Array:
        weights = self.heads[task or "label"]
        return z.reshape(len(z), -1) @ weights

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        onnx.save(self._backbone(), str(folder / "backbone.onnx"))

    def saved(self, folder: Path) -> LinearModel:
        """The model, with its files in `folder`."""
        self.save(folder)
        self.folder = folder
        return self

    def queries(self, count: int, seed: int = 0) -> Array:
        random = np.random.default_rng(seed)
        return random.uniform(0, 1, (count, *self.input_shape)).astype(np.float32)

    def outputs(self, queries: Array) -> Array:
        """What every answer for these queries must be, (B, 10)."""
        return self.head(self.embed(queries))

    def _backbone(self) -> onnx.ModelProto:
        def constant(name: str, value: Array) -> onnx.TensorProto:
            return numpy_helper.from_array(value, name)

        constants = [
            constant("scale", self.scale),
            constant("flat", np.array([0, self.size], np.int64)),
            constant("shape", np.array([0, *self.embedding_shape], np.int64)),
        ]
        nodes = [
            helper.make_node("Reshape", ["query", "flat"], ["x0"]),
            helper.make_node("Mul", ["x0", "scale"], ["x"]),
        ]
        last = "x"
        if self.matrix is not None:
            constants.append(constant("A", self.matrix))
            if self.work:
                constants.append(constant("At", np.ascontiguousarray(self.matrix.T)))
            for i in range(self.work):
                nodes.append(helper.make_node("MatMul", [last, "A"], [f"there{i}"]))
                nodes.append(helper.make_node("MatMul", [f"there{i}", "At"], [f"back{i}"]))
                last = f"back{i}"
            nodes.append(helper.make_node("MatMul", [last, "A"], ["z"]))
            last = "z"
        nodes.append(helper.make_node("Reshape", [last, "shape"], ["embedding"]))
        graph = helper.make_graph(
            nodes,
            "backbone",
            [_tensor("query", self.input_shape)],
            [_tensor("embedding", self.embedding_shape)],
            constants,
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        onnx.checker.check_model(model)
        return model


def _tensor(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])


def _coefficients(k: int, r: int) -> Array:
    rows = np.vander(np.linspace(0.5, 1.5, k), r, increasing=True).T
    return rows / rows.sum(axis=1, keepdims=True)
