"""Writes the folder: configuration, backbone, and what runs it."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from codedinv.errors import BundleError
from codedinv.model import CodedModel
from codedinv.model.shared_weights import with_own_weights
from codedinv.triton_repo.numpy_graph import GRAPH, OPERATORS, NumpyGraph
from codedinv.workers.integrity import BACKBONE_FILE, content_hash, verified

Backend = Literal["python", "onnxruntime"]

_HERE = Path(__file__).parent
_NUMPY_FILE = "backbone.npz"
_TOLERANCE = 1e-4  # as of all our exports
_MAX_BATCH = 64  # of a request, for other clients; a front end sends one query at a time
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def write_repository(
    model: CodedModel,
    repository: Path,
    *,
    backend: Backend = "python",
    name: str | None = None,
    version: int = 1,
    threads: int = 1,
) -> Path:
    """Adds a model's backbone to a Triton model repository.

    Args:
        model: one from a folder, with all weights in its ONNX file.
        repository: what Triton is given as `--model-repository`; made if it does not exist.
        backend: "python" is served by any Triton with its Python backend, by ONNX Runtime where
            that Python has it and by NumPy else; "onnxruntime" needs Triton's backend of that name.
        name: of the model at the server; None: the bundle's.
        version: its number; other versions that are there stay.
        threads: of one worker.

    Returns:
        The model's folder.

    Raises:
        ValueError: a name or number that Triton does not take, or a model without a folder.
        BundleError: the ONNX file has its weights elsewhere, is not the one that was loaded, or
            (backend "python") has operators that `numpy_graph` does not know.
    """
    name = name or model.name
    if not _NAME.fullmatch(name):
        raise ValueError(f"name: expected letters, digits, dots and dashes, got {name!r}")
    for what, number in (("version", version), ("threads", threads)):
        if number < 1:
            raise ValueError(f"{what}: expected 1 or more, got {number}")
    if backend not in ("python", "onnxruntime"):
        raise ValueError(f"backend: expected 'python' or 'onnxruntime', got {backend!r}")
    content, identity = _backbone_file(model)
    files = {BACKBONE_FILE: content}
    parameters = {"codedinv_sha256": identity}
    if backend == "python":
        graph = to_numpy(content)
        files[_NUMPY_FILE] = graph
        files |= {n: (_HERE / n).read_bytes() for n in ("model.py", "numpy_graph.py")}
        parameters |= {
            "codedinv_onnx_sha256": _sha256(content),
            "codedinv_numpy_sha256": _sha256(graph),
            "threads": str(threads),
        }
    folder = repository / name
    _replace(folder / str(version), files)
    (folder / "config.pbtxt").write_text(_config(model, name, backend, threads, parameters))
    return folder


def to_numpy(content: bytes) -> bytes:
    """An ONNX network as the file that `NumpyGraph` reads, checked against onnx's own evaluator.

    Raises:
        BundleError: it has operators that `numpy_graph` does not know, or comes out differently.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[dict[str, Any]] = []
    for node in graph.node:
        if all(name in constants or not name for name in node.input):
            feed = {name: constants[name] for name in node.input if name}
            values = ReferenceEvaluator(node, opsets={"": model.opset_import[0].version}).run(
                None, feed
            )
            constants |= dict(zip(node.output, values, strict=True))
        else:
            nodes.append(_node(node))
    used = {name for node in nodes for name in node["inputs"]}
    described = {"nodes": nodes, "input": graph.input[0].name, "output": graph.output[0].name}
    buffer = io.BytesIO()
    arrays = {name: value for name, value in constants.items() if name in used}
    encoded = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez(buffer, allow_pickle=False, **arrays, **{GRAPH: encoded})
    _check(model, buffer.getvalue())
    return buffer.getvalue()


def _node(node: onnx.NodeProto) -> dict[str, Any]:
    if node.op_type not in OPERATORS or len(node.output) != 1:
        raise BundleError(
            f"backbone.onnx: operator {node.op_type} is none of {sorted(OPERATORS)}; "
            'use backend "onnxruntime"'
        )
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in attributes.items()}
    return {
        "op": node.op_type,
        "inputs": list(node.input),
        "output": node.output[0],
        "attributes": plain,
    }


def _check(model: onnx.ModelProto, content: bytes) -> None:
    """Runs both on random queries."""
    sizes = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    queries = np.random.default_rng(0).uniform(0, 1, (2, *sizes)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: queries})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _NUMPY_FILE
        path.write_bytes(content)
        got = NumpyGraph(str(path))(queries)
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    if not error <= _TOLERANCE:
        raise BundleError(f"backbone.onnx: NumPy differs by {error:.1e} of the largest value")


def _backbone_file(model: CodedModel) -> tuple[bytes, str]:
    """The ONNX file that the model was loaded with, weights of other files taken in; and the hash
    by which a front end knows it."""
    if model.folder is None or model.hashes is None:
        raise ValueError("model: expected one that was loaded from a folder or saved to one")
    with verified(model.folder, "onnx", model.hashes):
        content = with_own_weights((model.folder / BACKBONE_FILE).read_bytes(), model.folder)
    identity = content_hash(model.folder, model.hashes)
    if identity is None:
        raise BundleError(f"{model.folder}: expected hashes of all files that it refers to")
    return content, identity


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Puts a version's folder in place at once: Triton may be looking."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    new.chmod(0o755)
    for name, content in files.items():
        (new / name).write_bytes(content)
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def _config(
    model: CodedModel, name: str, backend: Backend, threads: int, parameters: Mapping[str, str]
) -> str:
    """config.pbtxt; Triton makes no batches: a worker does one request after the other."""
    lines = [
        f'name: "{name}"',
        f'backend: "{backend}"',
        f"max_batch_size: {_MAX_BATCH}",
        f'input [ {{ name: "query" data_type: TYPE_FP32 dims: {[*model.input_shape]} }} ]',
        f'output [ {{ name: "embedding" data_type: TYPE_FP32 dims: {[*model.embedding_shape]} }} ]',
    ]
    if backend == "python":
        lines.append("instance_group [ { count: 1 kind: KIND_CPU } ]")
    else:
        lines += ['default_model_filename: "backbone.onnx"', "instance_group [ { count: 1 } ]"]
        parameters = {**parameters, "intra_op_thread_count": str(threads)}
    for key, value in parameters.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
