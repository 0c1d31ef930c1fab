"""A network in plain NumPy, for a Triton whose Python has nothing else.

Copied into model folders as it is, so it imports nothing of codedinv. `OPERATORS` has what
codedinv's own backbones are made of, by their ONNX names; `repository.py` folds constants before
and refuses a network with others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = Any  # a numpy array; Triton's Python may be older than numpy's types
GRAPH = "graph"  # in the file: the nodes as JSON, beside the constants by their names


class NumpyGraph:
    """Runs the nodes in their order.

    Args:
        path: a file that `codedinv export triton-repo` wrote.
    """

    def __init__(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as file:
            self._constants = {name: file[name] for name in file.files if name != GRAPH}
            graph = json.loads(file[GRAPH].tobytes())
        self._nodes, self._output = graph["nodes"], graph["output"]
        self._input = graph["input"]

    def __call__(self, queries: Array) -> Array:
        """float32 (B, *input) -> (B, *embedding)."""
        values = {**self._constants, self._input: queries}
        for node in self._nodes:
            arguments = [values[name] if name else None for name in node["inputs"]]
            values[node["output"]] = OPERATORS[node["op"]](node["attributes"], *arguments)
        return np.ascontiguousarray(values[self._output], np.float32)


def _conv(attributes: Mapping[str, Any], x: Array, weight: Array, bias: Array = None) -> Array:
    """x (B, C, H, W), weight (O, C / groups, h, w) -> (B, O, H', W')."""
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    down, along = attributes.get("strides", [1, 1])
    groups = attributes.get("group", 1)
    if attributes.get("dilations", [1, 1]) != [1, 1]:
        raise ValueError("Conv: dilations are not supported")
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))
    windows = windows[:, :, ::down, ::along]  # (B, C, H', W', h, w)
    parts = zip(np.split(windows, groups, axis=1), np.split(weight, groups), strict=True)
    products = [np.tensordot(part, w, ((1, 4, 5), (1, 2, 3))) for part, w in parts]
    result = np.moveaxis(np.concatenate(products, axis=-1), -1, 1)
    return result if bias is None else result + bias[:, None, None]


def _elu(attributes: Mapping[str, Any], x: Array) -> Array:
    alpha = np.float32(attributes.get("alpha", 1.0))
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _pad(attributes: Mapping[str, Any], x: Array, pads: Array, value: Array = None) -> Array:
    if attributes.get("mode", "constant") != "constant":
        raise ValueError("Pad: only constants are supported")
    before, after = np.split(pads.astype(int), 2)
    fill = 0 if value is None or not value.size else value.item()
    return np.pad(x, list(zip(before, after, strict=True)), constant_values=fill)


def _reshape(attributes: Mapping[str, Any], x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _squeeze(attributes: Mapping[str, Any], x: Array, axes: Array) -> Array:
    return x.squeeze(tuple(axes.tolist()))


def _unsqueeze(attributes: Mapping[str, Any], x: Array, axes: Array) -> Array:
    return np.expand_dims(x, tuple(axes.tolist()))


def _reduce_mean(attributes: Mapping[str, Any], x: Array) -> Array:
    keep = bool(attributes.get("keepdims", 1))
    return x.mean(axis=tuple(attributes["axes"]), keepdims=keep, dtype=np.float32)


def _gemm(attributes: Mapping[str, Any], a: Array, b: Array, c: Array = None) -> Array:
    a, b = (m.T if attributes.get(f"trans{n}") else m for n, m in (("A", a), ("B", b)))
    product = np.float32(attributes.get("alpha", 1.0)) * (a @ b)
    return product if c is None else product + np.float32(attributes.get("beta", 1.0)) * c


def _batch_normalization(
    attributes: Mapping[str, Any], x: Array, scale: Array, bias: Array, mean: Array, variance: Array
) -> Array:
    shape = (-1, *(1,) * (x.ndim - 2))  # [channels, 1, ...]
    factor = scale / np.sqrt(variance + np.float32(attributes.get("epsilon", 1e-5)))
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


OPERATORS: dict[str, Callable[..., Array]] = {
    "Add": lambda attributes, a, b: a + b,
    "Sub": lambda attributes, a, b: a - b,
    "Mul": lambda attributes, a, b: a * b,
    "Div": lambda attributes, a, b: a / b,
    "MatMul": lambda attributes, a, b: a @ b,
    "Relu": lambda attributes, x: np.maximum(x, 0),
    "Transpose": lambda attributes, x: x.transpose(attributes["perm"]),
    "Flatten": lambda attributes, x: x.reshape(len(x), -1),
    "BatchNormalization": _batch_normalization,
    "Conv": _conv,
    "Elu": _elu,
    "Gemm": _gemm,
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
