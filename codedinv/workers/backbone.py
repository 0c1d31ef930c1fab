"""BackboneSpec: how a worker gets its backbone; small enough to travel as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codedinv.model.runtimes import Runtime, choose_runtime
from codedinv.workers.integrity import BACKBONE_FILE, files_read, sha256, verified

Array = NDArray[np.float32]
Backbone = Callable[[Array], Array]  # (*input) -> (*embedding), one query at a time


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone a worker runs. Made by `BackboneSpec.of`.

    Attributes:
        folder: a bundle's folder, absolute: a worker may be restarted after a chdir.
        query_shape: of one query.
        embedding_shape: of one result.
        runtime: "onnx": folder/backbone.onnx with ONNX Runtime on one thread, without torch;
            "torch": the bundle's own modules; "auto": the first where onnxruntime is installed.
        hashes: SHA-256 by file name, in hexadecimal, of at least every file that the runtime will
            read. A worker that finds anything else does not start.
        name: the bundle's; servers of other makers know the backbone by it.
    """

    folder: str
    query_shape: tuple[int, ...]
    embedding_shape: tuple[int, ...]
    runtime: Runtime = "auto"
    hashes: Mapping[str, str] = field(kw_only=True)
    name: str = field(default="", kw_only=True)

    @classmethod
    def of(
        cls,
        folder: str | Path,
        query_shape: tuple[int, ...],
        embedding_shape: tuple[int, ...],
        runtime: Runtime = "auto",
        hashes: Mapping[str, str] | None = None,
        name: str = "",
    ) -> BackboneSpec:
        """Describes the backbone in a folder.

        Args:
            folder, query_shape, embedding_shape, runtime: as the attributes; the folder may be
                relative.
            hashes: as the attribute: of the files that the front end itself loaded
                (`CodedModel.hashes`), so that its workers have the same. None: of those that are
                in the folder now.
            name: as the attribute.

        Raises:
            BundleError: a file is missing; only with `hashes` None, else the worker says so.
            ValueError: an unknown runtime, or one that is not installed.
        """
        folder = Path(os.path.abspath(folder))
        resolved = choose_runtime(runtime)
        if hashes is None:
            hashes = {name: sha256(folder / name) for name in files_read(folder, resolved)}
        shapes = tuple(query_shape), tuple(embedding_shape)
        return cls(str(folder), *shapes, resolved, hashes=dict(hashes), name=name)

    def to_json(self) -> str:
        """The spec as `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BackboneSpec:
        """Reads what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for name in ("query_shape", "embedding_shape"):
            values[name] = tuple(values[name])
        return cls(**values)

    def load(self) -> Backbone:
        """Loads the backbone into this process, from files that are those of `hashes`.

        Raises:
            BundleError: a file is missing, or not the one that was meant.
            Whatever the runtime raises for a file that is damaged.
        """
        runtime = choose_runtime(self.runtime)
        with verified(Path(self.folder), runtime, self.hashes):
            return load_backbone(self.folder, runtime)


def load_backbone(folder: str | Path, runtime: Literal["onnx", "torch"]) -> Backbone:
    """Loads whatever backbone a folder holds, unverified.

    Raises:
        Whatever the runtime raises for a file that is missing or damaged.
    """
    return _load_onnx(Path(folder)) if runtime == "onnx" else _load_torch(Path(folder))


def _load_onnx(folder: Path) -> Backbone:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # A spinning thread would take the core that the next worker needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(folder / BACKBONE_FILE), options, providers=["CPUExecutionProvider"]
    )
    (query,) = (i.name for i in session.get_inputs())

    def backbone(x: Array) -> Array:
        (result,) = session.run(None, {query: x[np.newaxis]})
        return np.asarray(result[0], np.float32)

    return backbone


def _load_torch(folder: Path) -> Backbone:
    import torch

    from codedinv.model import CodedModel

    torch.set_num_threads(1)
    model = CodedModel.load(folder, runtime="torch")

    def backbone(x: Array) -> Array:
        return np.asarray(model.embed(x[np.newaxis])[0], np.float32)

    return backbone
