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

from codedinv.errors import BundleError, CodedInvError
from codedinv.model.onnx_install import import_onnxruntime
from codedinv.model.runtimes import Runtime, choose_runtime
from codedinv.workers.batches import most_at_once
from codedinv.workers.devices import CPU
from codedinv.workers.integrity import (
    BACKBONE_FILE,
    ENCODER_FILE,
    files_read,
    sha256,
    verified,
)

Array = NDArray[np.float32]
# Queries (B, *input) -> embeddings (B, *embedding). One that does not take as many as a worker may
# give it says so by an attribute `max_batch`.
Backbone = Callable[[Array], Array]


@dataclass(frozen=True)
class Place:
    """Where a worker runs its models.

    Attributes:
        device: "cpu", or "cuda:0" and so on.
        max_batch: queries in a call at most; a GPU keeps memory for so many.
    """

    device: str = CPU
    max_batch: int = 1

    @property
    def providers(self) -> list[Any]:
        """What ONNX Runtime is to run on; float32 is float32 there too: no TF32."""
        if self.device == CPU:
            return ["CPUExecutionProvider"]
        options = {"device_id": self.device.partition(":")[2], "use_tf32": "0"}
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


ON_CPU = Place()


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone a worker runs, alone or behind the encoder. Made by `BackboneSpec.of`.

    Attributes:
        folder: a bundle's folder, absolute: a worker may be restarted after a chdir.
        query_shape: of one query; of a parity model (k, *input).
        embedding_shape: of one result.
        runtime: "onnx": folder/backbone.onnx with ONNX Runtime on one thread, without torch;
            "torch": the bundle's own modules; "auto": the first where onnxruntime is installed.
        hashes: SHA-256 by file name, in hexadecimal, of at least every file that the runtime will
            read. A worker that finds anything else does not start.
        name: the bundle's; servers of other makers know the backbone by it.
        parity: None, or a parity model: what it gets are the k queries of a group, of which the
            bundle's encoder makes the parity query of this number, 0..r-1, for the backbone.
    """

    folder: str
    query_shape: tuple[int, ...]
    embedding_shape: tuple[int, ...]
    runtime: Runtime = "auto"
    hashes: Mapping[str, str] = field(kw_only=True)
    name: str = field(default="", kw_only=True)
    parity: int | None = field(default=None, kw_only=True)

    @classmethod
    def of(
        cls,
        folder: str | Path,
        query_shape: tuple[int, ...],
        embedding_shape: tuple[int, ...],
        runtime: Runtime = "auto",
        hashes: Mapping[str, str] | None = None,
        name: str = "",
        parity: int | None = None,
    ) -> BackboneSpec:
        """Describes the backbone in a folder.

        Args:
            folder, query_shape, embedding_shape, runtime: as the attributes; the folder may be
                relative.
            hashes: as the attribute: of the files that the front end itself loaded
                (`CodedModel.hashes`), so that its workers have the same. None: of those that are
                in the folder now.
            name, parity: as the attributes.

        Raises:
            BundleError: a file is missing; only with `hashes` None, else the worker says so.
            ValueError: an unknown runtime, or one that is not installed.
        """
        folder = Path(os.path.abspath(folder))
        resolved = choose_runtime(runtime)
        if hashes is None:
            names = files_read(folder, resolved, parity is not None)
            hashes = {name: sha256(folder / name) for name in names}
        shapes = tuple(query_shape), tuple(embedding_shape)
        return cls(str(folder), *shapes, resolved, hashes=dict(hashes), name=name, parity=parity)

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

    def load(self, backbone: Backbone | None = None, place: Place = ON_CPU) -> Backbone:
        """Loads the backbone into this process, from files that are those of `hashes`.

        Args:
            backbone: of a parity model: the bundle's, if it is loaded already.
            place: where it is to run.

        Raises:
            BundleError: a file is missing, or not the one that was meant.
            Whatever the runtime raises for a file that is damaged.
        """
        runtime = choose_runtime(self.runtime)
        with verified(Path(self.folder), runtime, self.hashes, self.parity is not None):
            if backbone is None or self.parity is None:
                backbone = load_backbone(self.folder, runtime, place)
            if self.parity is None:
                return backbone
            encoder = load_encoder(self.folder, runtime, place)
            return ParityBackbone(backbone, encoder, self.parity)


@dataclass(frozen=True)
class ParityBackbone:
    """The backbone of a parity query that is made where it is used.

    Attributes:
        backbone: (B, *input) -> (B, *embedding).
        encoder: (B, k, *input) -> (B, r, *input).
        parity: which of the r.
    """

    backbone: Backbone
    encoder: Callable[[Array], Array]
    parity: int

    def __call__(self, queries: Array) -> Array:
        """(B, k, *input) -> (B, *embedding).

        Raises:
            ValueError: the encoder's result is not finite; the backbone never sees it.
        """
        parity = self.encoder(queries)[:, self.parity]
        if not np.isfinite(parity).all():
            raise ValueError("the parity query has NaN or infinite values")
        return self.backbone(np.ascontiguousarray(parity))

    @property
    def max_batch(self) -> int:
        """What both of its parts take at a time."""
        return min(most_at_once(self.backbone), most_at_once(self.encoder))


def load_all(specs: Mapping[str, BackboneSpec], place: Place = ON_CPU) -> dict[str, Backbone]:
    """Loads the models of a worker, each backbone once, and runs each once: a worker that says it
    is ready has answered.

    Raises:
        Whatever `BackboneSpec.load` raises.
        ValueError: a model gives another shape than its spec says.
    """
    plain: dict[str, Backbone] = {}  # by folder
    loaded: dict[str, Backbone] = {}
    for name, spec in sorted(specs.items(), key=lambda item: item[1].parity is not None):
        backbone = loaded[name] = spec.load(plain.get(spec.folder), place)
        if spec.parity is None:
            plain[spec.folder] = backbone
        got = backbone(np.zeros((1, *spec.query_shape), np.float32)).shape
        if got != (1, *spec.embedding_shape):
            raise ValueError(f"{name}: expected embeddings {spec.embedding_shape}, got {got[1:]}")
    return loaded


def load_backbone(
    folder: str | Path, runtime: Literal["onnx", "torch"], place: Place = ON_CPU
) -> Backbone:
    """Loads whatever backbone a folder holds, unverified.

    Raises:
        Whatever the runtime raises for a file that is missing or damaged.
    """
    if runtime == "onnx":
        return _load_onnx(Path(folder) / BACKBONE_FILE, place)
    model = _load_model(Path(folder))
    return _torch_part(model.embed, model.modules.backbone, model.input_shape, place)


def load_encoder(
    folder: str | Path, runtime: Literal["onnx", "torch"], place: Place = ON_CPU
) -> Callable[[Array], Array]:
    """Loads the encoder that a folder holds, unverified: (B, k, *input) -> (B, r, *input).

    Raises:
        Whatever the runtime raises for a file that is missing or damaged.
    """
    if runtime == "onnx":
        return _load_onnx(Path(folder) / ENCODER_FILE, place)
    model = _load_model(Path(folder))
    group = (model.code.k, *model.input_shape)
    return _torch_part(model.encode, model.modules.encoder, group, place)


def _torch_part(on_cpu: Backbone, module: Any, shape: tuple[int, ...], place: Place) -> Backbone:
    """A torch network where it is to run; `shape` is of one thing that it takes."""
    if place.device == CPU:
        return on_cpu
    from codedinv.workers.staging import on_cuda

    return on_cuda(module, place.device, shape, place.max_batch)


class OnnxBackbone:
    """A session that is called with queries (B, *input).

    Attributes:
        max_batch: 1 where the graph's batch axis is fixed; else there is no such attribute.

    Raises:
        BundleError: it is fixed at another number.
    """

    def __init__(self, session: Any, path: Path) -> None:
        self._session = session
        (query,) = session.get_inputs()
        self._query = query.name
        if isinstance(query.shape[0], int):
            self.max_batch = 1
            if query.shape[0] != 1:
                raise BundleError(
                    f"{path}: expected a batch axis of any length, or of 1, got {query.shape[0]}"
                )

    def __call__(self, queries: Array) -> Array:
        (results,) = self._session.run(None, {self._query: queries})
        return np.asarray(results, np.float32)


def _load_onnx(path: Path, place: Place) -> Backbone:
    onnxruntime = import_onnxruntime()
    if place.device != CPU and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA's libraries out of pip's packages
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    # A spinning thread would take the core that the next worker needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=place.providers)
    if place.device != CPU and "CUDAExecutionProvider" not in session.get_providers():
        # It would go on without, on the CPU.
        raise CodedInvError(
            f"ONNX Runtime found no way to {place.device}: it says above which library it lacks "
            "(pip install 'codedinv[onnx-gpu]' brings CUDA's)"
        )
    return OnnxBackbone(session, path)


def _load_model(folder: Path) -> Any:
    import torch

    from codedinv.model import CodedModel

    torch.set_num_threads(1)
    return CodedModel.load(folder, runtime="torch")
