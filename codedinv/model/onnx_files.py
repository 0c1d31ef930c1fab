"""ONNX files that somebody else has made, checked and written as a bundle wants them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.errors import BundleError, MissingExtra
from codedinv.model.runtimes import OnnxNetwork

Source = str | Path | bytes
_LARGEST = 2**31 - 1  # bytes of a protobuf message


def need_onnx() -> None:
    """Refuses to go on without the package `onnx`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            "a bundle is made of ONNX files with the package onnx, which is not installed: "
            "pip install onnx"
        ) from error


class OnnxPart:
    """One network of a model to be, as an ONNX file that holds all it needs.

    Args:
        part: its name in messages, e.g. "backbone".
        source: a file or its content. Weights in files beside it are taken in.
        input_name, output_name: what a bundle calls its tensors.

    Attributes:
        content: the file for the bundle.
        input_shape: without the batch axis; None where the graph leaves a size open.

    Raises:
        BundleError: no such file, or no valid ONNX.
        ValueError: not one float32 tensor in and one out, or a batch axis of fixed size.
    """

    def __init__(self, part: str, source: Source, input_name: str, output_name: str) -> None:
        self.part = part
        model = _read(part, source)
        graph = model.graph
        initialised = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in initialised]
        _check_single(part, "input", inputs)
        _check_single(part, "output", list(graph.output))
        self.input_shape = _shape(part, inputs[0])
        _shape(part, graph.output[0])
        # Old files list their weights as inputs too, which makes them ones that a caller could set.
        del graph.input[:]
        graph.input.append(inputs[0])
        _rename(graph, inputs[0].name, input_name)
        _rename(graph, graph.output[0].name, output_name)
        self.content = bytes(model.SerializeToString())
        self.macs, self.parameters = _macs(model), _parameters(model)
        self.network = OnnxNetwork(self.content, threads=1)

    def run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Its result for a batch, found to be finite and one row per input, alone as among others.

        Raises:
            ValueError: it is not; the message says what was expected and what came.
        """
        # One alone is not enough to see whether it mixes the rows of a batch.
        several = x if len(x) > 1 else np.concatenate([x, x[..., ::-1]])
        try:
            session = self.network.open()
            result = np.asarray(session.run(None, {session.get_inputs()[0].name: several})[0])
            alone = np.asarray(session.run(None, {session.get_inputs()[0].name: x[:1]})[0])
        except BundleError as error:
            raise ValueError(f"{self.part}: {error}") from error
        except Exception as error:  # ONNX Runtime's kinds have no common base
            raise ValueError(
                f"{self.part}: it does not take float32 {several.shape}: {error}. A batch of any "
                "size is needed; was the graph exported with dynamic_axes={...: {0: 'batch'}}?"
            ) from error
        if result.ndim < 2 or len(result) != len(several) or not result.size or len(alone) != 1:
            raise ValueError(
                f"{self.part}: expected (B, ...) for (B, ...), got {result.shape} for "
                f"{several.shape}"
            )
        if not np.isfinite(result).all():
            raise ValueError(f"{self.part}: NaN or infinity for the anchors' queries")
        if not np.abs(alone - result[:1]).max() <= 1e-3 * np.abs(result).max():
            raise ValueError(
                f"{self.part}: it answers a query differently beside others than alone"
            )
        return result[: len(x)].astype(np.float32, copy=False)


def _read(part: str, source: Source) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not isinstance(source, bytes):
        source = Path(source).expanduser()
        if not source.is_file():
            raise BundleError(f"{part}: no ONNX file {str(source)!r}")
    try:
        model = (
            onnx.load_from_string(source)
            if isinstance(source, bytes)
            else onnx.load(source)  # with the weights that lie in files beside it
        )
        if any(tensor.external_data for tensor in model.graph.initializer):
            raise BundleError(f"{part}: its weights lie in other files: give its path, not bytes")
        if model.ByteSize() > _LARGEST:
            raise BundleError(f"{part}: {model.ByteSize():,} bytes; ONNX files end at 2 GiB")
        onnx.checker.check_model(model)
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        name = "the content" if isinstance(source, bytes) else str(source)
        raise BundleError(f"{part}: {name} is no valid ONNX file: {error}") from error
    return model


def _check_single(part: str, what: str, values: list[Any]) -> None:
    import onnx

    if len(values) != 1:
        names = [value.name for value in values]
        raise ValueError(
            f"{part}: expected one {what}, got {names}; cut the graph with "
            "onnx.utils.extract_model(...), text behind its embedding layer"
        )
    kind = values[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind)
        raise ValueError(f"{part}: expected a float32 {what}, got {values[0].name!r} of {name}")


def _shape(part: str, value: Any) -> tuple[int, ...] | None:
    """Sizes behind the batch axis, which must be free; None: one of them is free too."""
    dimensions = value.type.tensor_type.shape.dim
    if len(dimensions) < 2:
        raise ValueError(
            f"{part}: {value.name!r}: expected axes (batch, ...), got {len(dimensions)}"
        )
    if dimensions[0].dim_value:
        raise ValueError(
            f"{part}: {value.name!r} has a batch axis of fixed size {dimensions[0].dim_value}; "
            f"export it with dynamic_axes={{{value.name!r}: {{0: 'batch'}}}} (dynamo: "
            "dynamic_shapes), for a worker or head takes batches of any size"
        )
    sizes = tuple(dimension.dim_value for dimension in dimensions[1:])
    return sizes if all(sizes) else None


def _rename(graph: Any, old: str, new: str) -> None:
    """Renames a tensor of the graph; one that has the new name already is moved out of its way."""
    if old == new:
        return
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    if new in taken:
        spare = next(f"{new}_{i}" for i in range(len(taken) + 1) if f"{new}_{i}" not in taken)
        _replace(graph, new, spare)
    _replace(graph, old, new)


def _replace(graph: Any, old: str, new: str) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        if value.name == old:
            value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
        for attribute in node.attribute:  # bodies of If and Loop see the names around them
            for body in (attribute.g, *attribute.graphs):
                if body.node:
                    _replace(body, old, new)


def _macs(model: Any) -> int:
    """Multiply-accumulates of convolutions and matrix products for one query; those whose shapes
    onnx cannot infer are left out."""
    import onnx

    one = onnx.ModelProto()
    one.CopyFrom(model)
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    try:
        graph = onnx.shape_inference.infer_shapes(one).graph
    except onnx.shape_inference.InferenceError:  # the graph runs: sizes written in it are wrong
        graph = one.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    return sum(_node_macs(node, shapes) for node in graph.node)


def _node_macs(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    left, right = shapes.get(node.input[0], ()), shapes.get(node.input[1], ())
    result = shapes.get(node.output[0], ())
    if not left or not right or not result:
        return 0
    if node.op_type == "Conv":
        return math.prod(result) * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(result) * left[0 if transposed else -1]


def _parameters(model: Any) -> int:
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    weights = (t for t in model.graph.initializer if t.data_type in floats)
    return sum(math.prod(tensor.dims) for tensor in weights)
