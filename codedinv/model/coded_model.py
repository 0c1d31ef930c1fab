"""CodedModel: a backbone, its heads, an encoder and their code, in memory and on disk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code, StreamingDecoder
from codedinv.errors import BundleError
from codedinv.extras import require
from codedinv.model import folder as folder_files
from codedinv.model.anchors import Anchors, load_anchors
from codedinv.model.calibration import consistency_file, load_consistency
from codedinv.model.find import find
from codedinv.model.light import Fusion, LightModel
from codedinv.model.manifest import (
    ANCHORS,
    BACKBONE,
    ENCODER,
    LIGHT,
    MANIFEST,
    Manifest,
    head_file,
    with_scheme,
)
from codedinv.model.runtimes import (
    ArrayT,
    Network,
    OnnxNetwork,
    Runtime,
    TorchNetwork,
    check_batch,
    choose_runtime,
)
from codedinv.verification import Consistency

if TYPE_CHECKING:
    import torch

    from codedinv.model.modules import TorchModules


class CodedModel:
    """A model that can be served coded.

    Made by `CodedModel.load` from a bundle or by `CodedModel.from_modules` from trained networks.
    Every network call takes numpy arrays or torch tensors and answers in kind.

    Attributes:
        name: the model's name.
        code: its (n, k) code.
        input_shape: of one query, e.g. (1, 28, 28).
        input_range: least and greatest value that its queries may have; None: any finite one.
        embedding_shape: of one result, e.g. (16, 7, 7).
        tasks: outputs of each task's head by name; the first is the default task.
        heads: the task heads by name, each (B, *embedding) -> (B, outputs).
        anchors: queries and embeddings for the free slots of partial groups.
        consistency: tells a group with a wrong result from a clean one; None: not calibrated.
        scheme: how the model is meant to be served: "invertible", "worker-encoded" or "guided".
        light: the light model, x -> {task: calibrated logits}; None where the bundle has none.
        fusion: mixes decoded with light answers; None where no weights were fitted.
        metadata: metrics, macs, parameters, certificates and provenance; plain JSON values.
        folder: where the model was loaded from or last saved to; None before that.
        runtime: "onnx" or "torch".
    """

    report: Any = None  # what `codedinv.fit` found of the ways to serve it (fitting.Report)

    def __init__(
        self,
        manifest: Manifest,
        anchors: Anchors,
        backbone: Network,
        encoder: Network | None,
        heads: Mapping[str, Network],
        folder: Path | None,
        hashes: Mapping[str, str] | None = None,
        consistency: Consistency | None = None,
        light: Network | None = None,
    ) -> None:
        self._manifest = manifest
        self._hashes = hashes
        self._backbone = backbone
        self._encoder = encoder
        self.name = manifest.name
        self.code = Code(np.array(manifest.code.coefficients, dtype=np.float64))
        self.input_shape = manifest.input_shape
        self.input_range = manifest.input_range
        self.embedding_shape = manifest.embedding_shape
        self.tasks = dict(manifest.tasks)
        self.heads = dict(heads)
        self.anchors = anchors
        self.consistency = consistency
        self.scheme = manifest.scheme
        self.light = None if light is None else LightModel(light, self.tasks, self.input_shape)
        self.fusion = None if manifest.fusion is None else Fusion(manifest.fusion)
        self.metadata = manifest.metadata
        self.folder = folder
        self.runtime = "torch" if isinstance(backbone, TorchNetwork) else "onnx"

    def __repr__(self) -> str:
        return (
            f"CodedModel({self.name!r}, n={self.code.n}, k={self.code.k}, "
            f"tasks={list(self.heads)}, runtime={self.runtime!r})"
        )

    @classmethod
    def load(
        cls, name_or_folder: str | Path, runtime: Runtime = "auto", threads: int = 1
    ) -> CodedModel:
        """Loads a bundle after verifying the SHA-256 of each of its files; never unpickles.

        Args:
            name_or_folder: a bundled name ("fashion-mnist") or a bundle's folder. A bundled name
                wins over a folder of the same name; write "./fashion-mnist" for the folder.
            runtime: "onnx", "torch", or "auto": ONNX Runtime where it is installed, else torch.
                With ONNX Runtime torch is not imported.
            threads: of each ONNX Runtime session; torch keeps its own process-wide setting.

        Raises:
            BundleError: no such bundle, or it is foreign, of another schema version or damaged;
                the message names the file.
            ValueError: an unknown runtime, one that is not installed, or threads below 1.
        """
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        runtime = choose_runtime(runtime)
        folder = find(name_or_folder)
        manifest, hashes = folder_files.read_verified(folder)
        _check_code(folder / MANIFEST, manifest)
        anchors = load_anchors(folder / ANCHORS, manifest)
        consistency = load_consistency(folder, manifest)
        if runtime == "torch":
            require("torch")
            from codedinv.model.modules import load_modules

            modules = load_modules(folder, manifest)
            return cls._of_modules(manifest, anchors, modules, folder, hashes, consistency)
        heads = {task: OnnxNetwork(folder / head_file(task), threads) for task in manifest.tasks}
        architecture = manifest.architecture
        encoder = OnnxNetwork(folder / ENCODER, threads) if architecture.encoder else None
        light = OnnxNetwork(folder / LIGHT, threads) if architecture.light else None
        for network in (encoder, light, *heads.values()):
            if network is not None:
                network.open()  # a front end's first query should not wait for it
        # Front ends leave the backbone to workers: it is opened only where it is called.
        backbone = OnnxNetwork(folder / BACKBONE, threads)
        return cls(manifest, anchors, backbone, encoder, heads, folder, hashes, consistency, light)

    @classmethod
    def from_modules(
        cls,
        *,
        name: str,
        code: Code,
        backbone: torch.nn.Module,
        heads: Mapping[str, torch.nn.Module],
        encoder: torch.nn.Module | None,
        anchors_queries: Any,
        metadata: Mapping[str, Any] | None = None,
        light: torch.nn.Module | None = None,
        fusion: Mapping[str, tuple[float, float]] | None = None,
        scheme: str = "invertible",
        input_range: tuple[float, float] | None = None,
    ) -> CodedModel:
        """Makes a model of trained torch modules, ready to be served, evaluated or saved.

        Args:
            name: of letters, digits, dots, dashes and underscores.
            code: the (n, k) code that the encoder was trained for.
            backbone: (B, *input) -> (B, *embedding). A network with `bake()` is baked: its
                spectral normalisation becomes plain weights and certificates in the metadata.
            heads: task name (letters, digits, underscores) -> (B, *embedding) -> (B, outputs).
            encoder: (B, k, *input) -> (B, r, *input); None for a scheme without parities.
            anchors_queries: float32 (A, *input) array or tensor of typical queries, A >= k - 1
                and A >= 1.
            metadata: metrics, provenance, ...; macs, parameters and certificates are added.
            light: (B, *input) -> (B, sum of all tasks' outputs), calibrated logits in the tasks'
                order.
            fusion: weights for `codedinv.model.light.Fusion`; needs a light model.
            scheme: "invertible" (encoded at the front end) and "worker-encoded" (at the parity
                worker) need an encoder, "guided" a light model.
            input_range: least and greatest value of a query that the model was made for; a server
                refuses others. None: any.

        Raises:
            ValueError: shapes of the parts do not fit together, a part is missing, or a bad name.
        """
        require("torch")
        from codedinv.model.describe import describe
        from codedinv.model.modules import assemble

        assembled = assemble(backbone, heads, encoder, light)
        manifest, anchors = describe(name, code, assembled, anchors_queries, metadata or {})
        manifest = with_scheme(manifest, scheme, fusion)
        manifest = manifest.model_copy(update={"input_range": _checked_range(input_range)})
        return cls._of_modules(manifest, anchors, assembled, None)

    @classmethod
    def _of_modules(
        cls,
        manifest: Manifest,
        anchors: Anchors,
        modules: TorchModules,
        folder: Path | None,
        hashes: Mapping[str, str] | None = None,
        consistency: Consistency | None = None,
    ) -> CodedModel:
        heads = {task: TorchNetwork(head) for task, head in modules.heads.items()}
        model = cls(
            manifest,
            anchors,
            TorchNetwork(modules.backbone),
            None if modules.encoder is None else TorchNetwork(modules.encoder),
            heads,
            folder,
            hashes,
            consistency,
            None if modules.light is None else TorchNetwork(modules.light),
        )
        model.__dict__["modules"] = modules  # what the cached property would load from the folder
        return model

    @property
    def hashes(self) -> Mapping[str, str] | None:
        """SHA-256 of each file of `folder` by name, `bundle.json` included, as they were when this
        model was loaded from it or saved to it; None before that."""
        return self._hashes

    @cached_property
    def modules(self) -> TorchModules:
        """The torch modules: backbone (with its `inverse`), encoder and heads; imports torch.

        A model on ONNX Runtime loads them from its folder's weights at first use.
        """
        if self.folder is None:
            raise ValueError("folder: a model without torch modules must come from a folder")
        require("torch")
        from codedinv.model.modules import load_modules

        folder_files.read_manifest(self.folder)  # its files may have been damaged since loading
        return load_modules(self.folder, self._manifest)

    def encode(self, queries: ArrayT) -> ArrayT:
        """Makes the parity queries: float32 (B, k, *input) -> (B, r, *input).

        Raises:
            ValueError: another shape or dtype, or the model has no encoder (a guided one).
        """
        if self._encoder is None:
            raise ValueError(
                f"encode: {self.name!r} has no encoder; it is meant for scheme {self.scheme!r}"
            )
        check_batch("queries", queries, "B", (self.code.k, *self.input_shape))
        return self._encoder(queries)

    def embed(self, x: ArrayT) -> ArrayT:
        """Runs the backbone: float32 (B, *input) -> (B, *embedding)."""
        check_batch("x", x, "B", self.input_shape)
        return self._backbone(x)

    def head(self, z: ArrayT, task: str | None = None) -> ArrayT:
        """Runs a task's head (None: the first task's): float32 (B, *embedding) -> (B, outputs)."""
        task = next(iter(self.heads)) if task is None else task
        if task not in self.heads:
            raise ValueError(f"task: expected one of {list(self.heads)}, got {task!r}")
        check_batch("z", z, "B", self.embedding_shape)
        return self.heads[task](z)

    def reconstruct(
        self, results: Mapping[int, ArrayT], queries: ArrayT | None = None
    ) -> dict[int, ArrayT]:
        """Rebuilds the embeddings of the missing data slots.

        Args:
            results: {slot: embedding} of at least k of the n slots; slots 0..k-1 hold data,
                k..n-1 parity. Embeddings of one dtype that the decoder knows.
            queries: the group's queries, float32 (k, *input): side information for bundles that
                carry a branch for it. None does yet: they are checked and make no difference.

        Returns:
            {slot: embedding} of the data slots that `results` lacks; empty if it has them all.

        Raises:
            ValueError: fewer than k results, an unknown slot, or a wrong shape or dtype.

        Source: the paper's section 3 and equation (6), solved for all missing slots at once.
        """
        if len(results) < self.code.k:
            raise ValueError(f"results: expected at least {self.code.k} slots, got {len(results)}")
        if queries is not None:
            check_batch("queries", queries, str(self.code.k), self.input_shape)
            if len(queries) != self.code.k:
                raise ValueError(f"queries: expected {self.code.k} queries, got {len(queries)}")
        first = next(iter(results.values()))
        decoder = StreamingDecoder(self.code, shape=self.embedding_shape, dtype=first.dtype)
        for slot, embedding in results.items():
            on_cpu = embedding if isinstance(embedding, np.ndarray) else embedding.detach().cpu()
            decoder.push(slot, on_cpu)
        recovered = decoder.recover()
        return {slot: _like(first, embedding) for slot, embedding in recovered.items()}

    def save(self, folder: str | Path, shared_weights: bool = False) -> Path:
        """Writes the bundle: bundle.json, weights, anchors and ONNX files (see docs/bundles.md).

        The folder is written beside its place and renamed, so a half-written bundle is never
        seen; a bundle that is already there is replaced. Every network is exported from its torch
        module (which imports torch) and checked.

        Args:
            folder: to write.
            shared_weights: the ONNX files refer to weights.safetensors for their weights, which
                halves the bundle; False: each holds its own, and can be copied elsewhere alone.

        Returns:
            The folder, which `self.folder` names from now on.

        Raises:
            BundleError: an exported network differs from torch; nothing is written.
            ValueError: the folder holds something else, or metadata is not plain JSON.
        """
        folder = Path(folder)
        require("torch")
        from codedinv.model.serialise import serialise

        files, exported = serialise(self.modules, self._manifest, self.anchors, shared_weights)
        if self.consistency is not None:
            files |= consistency_file(self.consistency)
        metadata = {**self.metadata, "onnx": exported}
        manifest = self._manifest.model_copy(update={"metadata": metadata})
        self._hashes = folder_files.write_folder(folder, manifest, files)
        self.metadata = metadata
        self.folder = folder
        return folder


def _checked_range(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    if bounds is None:
        return None
    low, high = (float(bound) for bound in bounds)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"input_range: expected two finite numbers, least first, got {bounds}")
    return low, high


def _like(example: ArrayT, array: NDArray[Any]) -> ArrayT:
    if isinstance(example, np.ndarray):
        return array
    import torch

    # float64 on the way: torch takes no numpy bfloat16.
    exact = torch.from_numpy(array.astype(np.float64))
    return exact.to(dtype=example.dtype, device=example.device)


def _check_code(path: Path, manifest: Manifest) -> None:
    entry = manifest.code
    coefficients = np.array(entry.coefficients, dtype=np.float64)
    if coefficients.shape != (entry.r, entry.k):
        raise BundleError(
            f"{path}: expected {entry.r} x {entry.k} code coefficients, got {coefficients.shape}"
        )
    try:
        Code(coefficients)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
