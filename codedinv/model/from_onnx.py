"""A model made of ONNX files, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.model.anchors import Anchors, least_anchors
from codedinv.model.manifest import (
    BACKBONE,
    ENCODER,
    LIGHT,
    ONNX,
    Manifest,
    by_part,
    head_file,
    manifest_of,
)
from codedinv.model.names import check_name, check_task
from codedinv.model.onnx_files import OnnxPart, Source, need_onnx

DEFAULT_TASK = "output"  # of a model whose whole answer is the backbone's


def describe_onnx(
    name: str | None,
    code: Code,
    backbone: Source,
    heads: Mapping[str, Source] | None,
    encoder: Source | None,
    light: Source | None,
    anchors_queries: Any,
    metadata: Mapping[str, Any],
) -> tuple[Manifest, Anchors, dict[str, bytes]]:
    """Manifest, anchors and ONNX files of a bundle; arguments as `CodedModel.from_onnx` takes them.

    Raises:
        BundleError: a file that is missing or no ONNX.
        TypeError: heads that are not by task.
        ValueError: a bad name, or parts that do not fit together.
        MissingExtra: the package onnx is not installed.
    """
    need_onnx()
    name = _name_of(name, backbone)
    parts = {"backbone": OnnxPart("backbone", backbone, "query", "embedding")}
    shape = parts["backbone"].input_shape
    least = least_anchors(code.k, encoder is not None)
    queries = _queries(anchors_queries, shape, least, needed=encoder is not None)
    embeddings = parts["backbone"].run(queries)
    tasks, head_parts = _heads(heads, embeddings)
    parts |= head_parts
    if encoder is not None:
        parts["encoder"] = _encoder(encoder, queries, code)
    if light is not None:
        parts["light"] = _light(light, queries, tasks)
    no_work = {f"head.{task}": 0 for task in tasks}
    found = {
        "macs": by_part(no_work | {name: part.macs for name, part in parts.items()}),
        "parameters": by_part(no_work | {n: part.parameters for n, part in parts.items()}),
        "certificates": None,
    }
    entries = {part: {"kind": ONNX} for part in parts}
    shapes = queries.shape[1:], embeddings.shape[1:]
    manifest = manifest_of(name, code, *shapes, tasks, entries, {**metadata, **found})
    contents = {_file_of(name): part.content for name, part in parts.items()}
    return manifest, Anchors(queries, embeddings), contents


def _file_of(part: str) -> str:
    single = {"backbone": BACKBONE, "encoder": ENCODER, "light": LIGHT}
    return single.get(part) or head_file(part.removeprefix("head."))


def _heads(
    heads: Mapping[str, Source] | None, embeddings: NDArray[np.float32]
) -> tuple[dict[str, int], dict[str, OnnxPart]]:
    """Outputs of each task, and the heads that there are, as "head.TASK"."""
    if heads is None:
        return {DEFAULT_TASK: _width("backbone, whose result is the answer", embeddings)}, {}
    if not isinstance(heads, Mapping):
        raise TypeError(
            f"heads: expected ONNX files by task, such as {{'label': 'head.onnx'}}, got {heads!r}"
        )
    if not heads:
        raise ValueError("heads: expected at least one task, or None: the backbone is the answer")
    tasks, parts = {}, {}
    for task, source in heads.items():
        check_task(task)
        part = parts[f"head.{task}"] = OnnxPart(f"heads: {task!r}", source, "embedding", task)
        tasks[task] = _width(part.part, part.run(embeddings))
    return tasks, parts


def _name_of(name: str | None, backbone: Source) -> str:
    if name is None:
        if isinstance(backbone, bytes):
            raise ValueError("name: expected one, as the backbone is no file that has a name")
        name = Path(backbone).stem
    check_name(name)
    return name


def _queries(
    given: Any, shape: tuple[int, ...] | None, least: int, needed: bool
) -> NDArray[np.float32]:
    if given is None:
        if needed:
            raise ValueError(f"anchors_queries: a model with an encoder needs {least} of them")
        if shape is None:
            raise ValueError(
                "anchors_queries: the backbone's graph leaves the size of a query open; give some "
                "typical ones, float32 (A, *input)"
            )
        return np.zeros((least, *shape), np.float32)
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    array = np.asarray(given)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"anchors_queries: expected floats, as queries are, got {array.dtype}: scale pixels to "
            "[0, 1]; give tokens as their embedding layer's output"
        )
    if array.ndim < 2 or len(array) < least or not array.size:
        raise ValueError(
            f"anchors_queries: expected (A, *input) with A >= {least}, got {array.shape}"
        )
    if shape is not None and array.shape[1:] != shape:
        raise ValueError(f"anchors_queries: expected (A, *{shape}), got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("anchors_queries: expected finite values, got NaN or infinity")
    return np.array(array, np.float32, order="C")


def _width(part: str, output: NDArray[np.float32]) -> int:
    """Outputs of a task."""
    if output.ndim != 2:
        raise ValueError(f"{part}: expected (B, outputs), got {output.shape}")
    return int(output.shape[1])


def _encoder(source: Source, queries: NDArray[np.float32], code: Code) -> OnnxPart:
    encoder = OnnxPart("encoder", source, "queries", "parity_queries")
    size = (code.k, *queries.shape[1:])
    groups = np.stack([np.resize(np.roll(queries, -i, 0), size) for i in (0, 1)])
    got, expected = encoder.run(groups).shape, (2, code.r, *queries.shape[1:])
    if got != expected:
        raise ValueError(f"encoder: expected (B, {code.k}, *input) -> {expected}, got {got}")
    return encoder


def _light(source: Source, queries: NDArray[np.float32], tasks: Mapping[str, int]) -> OnnxPart:
    light = OnnxPart("light", source, "query", "logits")
    got, expected = light.run(queries).shape, (len(queries), sum(tasks.values()))
    if got != expected:
        raise ValueError(f"light: expected {expected}, the outputs of all tasks, got {got}")
    return light
