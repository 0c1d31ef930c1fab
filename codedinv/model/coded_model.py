"""CodedModel: a backbone, its heads, an encoder and their code, in memory and on disk.

Longer than a file should be by the docstrings of the public face; the work is done elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code, StreamingDecoder
from codedinv.extras import require
from codedinv.model import folder as folder_files
from codedinv.model.agreement import check_code, check_networks
from codedinv.model.anchors import Anchors, load_anchors
from codedinv.model.calibration import consistency_file, load_consistency
from codedinv.model.carried import carried_files
from codedinv.model.find import find
from codedinv.model.from_onnx import describe_onnx
from codedinv.model.light import Fusion, LightModel
from codedinv.model.manifest import ANCHORS, ENCODED, MANIFEST, Manifest, with_scheme
from codedinv.model.networks import Networks, onnx_networks, torch_networks
from codedinv.model.onnx_files import Source
from codedinv.model.runtimes import ArrayT, Runtime, TorchNetwork, check_batch, choose_runtime
from codedinv.model.worth import Worth, worth_of
from codedinv.verification import Consistency

if TYPE_CHECKING:
    import torch

    from codedinv.model.architecture import Given
    from codedinv.model.modules import TorchModules


class CodedModel:
    """A model that can be served coded.

    Made by `CodedModel.load` from a bundle, by `CodedModel.from_modules` from trained networks, or
    by `CodedModel.from_onnx` from ONNX files.
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
        scheme: how the model is meant to be served: "invertible", "worker-encoded", "guided",
            "replication" or "uncoded".
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
        networks: Networks,
        folder: Path | None = None,
        hashes: Mapping[str, str] | None = None,
        consistency: Consistency | None = None,
        trust_factory: bool = False,
    ) -> None:
        self._manifest = manifest
        self._hashes = hashes
        self._networks = networks
        self._trust_factory = trust_factory
        self.name = manifest.name
        self.code = Code(np.array(manifest.code.coefficients, dtype=np.float64))
        self.input_shape = manifest.input_shape
        self.input_range = manifest.input_range
        self.embedding_shape = manifest.embedding_shape
        self.tasks = dict(manifest.tasks)
        self.heads = dict(networks.heads)
        self.anchors = anchors
        self.consistency = consistency
        self.scheme = manifest.scheme
        light = networks.light
        self.light = None if light is None else LightModel(light, self.tasks, self.input_shape)
        self.fusion = None if manifest.fusion is None else Fusion(manifest.fusion)
        self.metadata = manifest.metadata
        self.folder = folder
        self.runtime = "torch" if isinstance(networks.backbone, TorchNetwork) else "onnx"

    def __repr__(self) -> str:
        return (
            f"CodedModel({self.name!r}, n={self.code.n}, k={self.code.k}, "
            f"tasks={list(self.heads)}, runtime={self.runtime!r})"
        )

    @classmethod
    def load(
        cls,
        name_or_folder: str | Path,
        runtime: Runtime = "auto",
        threads: int = 1,
        trust_factory: bool = False,
    ) -> CodedModel:
        """Loads a bundle after verifying the SHA-256 of each of its files; never unpickles.

        Args:
            name_or_folder: a bundled name ("fashion-mnist") or a bundle's folder. A bundled name
                wins over a folder of the same name; write "./fashion-mnist" for the folder.
            runtime: "onnx", "torch", or "auto": ONNX Runtime where it is installed, else torch.
                With ONNX Runtime torch is not imported.
            threads: of each ONNX Runtime session; torch keeps its own process-wide setting.
            trust_factory: a bundle may name Python functions that rebuild its torch modules
                ("package.module:factory"). True: import and call them where torch modules are
                asked for. That is running code of the bundle's choice: only for bundles whose
                maker you trust. Nothing is ever imported for ONNX Runtime.

        Raises:
            BundleError: no such bundle, or it is foreign, of another schema version or damaged
                (the message names the file), or runtime is "torch" and a network cannot be rebuilt.
            ValueError: an unknown runtime, one that is not installed, or threads below 1.
        """
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        runtime = choose_runtime(runtime)
        folder = find(name_or_folder)
        manifest, hashes = folder_files.read_verified(folder)
        check_code(folder / MANIFEST, manifest)
        anchors = load_anchors(folder / ANCHORS, manifest)
        consistency = load_consistency(folder, manifest)
        if runtime == "torch":
            require("torch")
            from codedinv.model.modules import load_modules

            modules = load_modules(folder, manifest, trust_factory)
            networks = torch_networks(modules)
        else:
            files = {name: folder / name for name in manifest.onnx_files()}
            networks, modules = onnx_networks(manifest, files, threads), None
        check_networks(folder, manifest, anchors, networks)
        model = cls(manifest, anchors, networks, folder, hashes, consistency, trust_factory)
        if modules is not None:
            model.__dict__["modules"] = modules  # what the cached property would load again
        return model

    @classmethod
    def from_modules(
        cls,
        *,
        name: str,
        backbone: torch.nn.Module,
        heads: Mapping[str, torch.nn.Module],
        anchors_queries: Any,
        code: Code | None = None,
        encoder: torch.nn.Module | None = None,
        metadata: Mapping[str, Any] | None = None,
        light: torch.nn.Module | None = None,
        fusion: Mapping[str, tuple[float, float]] | None = None,
        scheme: str | None = None,
        input_range: tuple[float, float] | None = None,
        architecture: Mapping[str, Given] | None = None,
    ) -> CodedModel:
        """Makes a model of trained torch modules, ready to be served, evaluated or saved.

        Any modules that `torch.onnx.export` takes; they are copied, in float32 on the CPU.

        Args:
            name: of letters, digits, dots, dashes and underscores.
            backbone: (B, *input) -> (B, *embedding). An i-ResNet is baked: its spectral
                normalisation becomes plain weights and certificates in the metadata.
            heads: task name (letters, digits, underscores) -> (B, *embedding) -> (B, outputs).
                `torch.nn.Identity()` where the embedding is the answer.
            anchors_queries: floats (A, *input), typical queries: one to show their shape; k - 1 or
                more with an encoder, whose partial groups they fill.
            code: the (n, k) code that the encoder was trained for. None: 4 queries and 1 parity.
            encoder: (B, k, *input) -> (B, r, *input); None for a scheme without parities.
            metadata: metrics, provenance, ...; macs, parameters and certificates are added.
                `metrics.A_d` and `metrics.floor` decide whether a server reconstructs by default.
            light: (B, *input) -> (B, sum of all tasks' outputs), calibrated logits in the tasks'
                order.
            fusion: weights for `codedinv.model.light.Fusion`; needs a light model.
            scheme: "invertible" (encoded at the front end) and "worker-encoded" (at the parity
                worker) need an encoder, "guided" a light model, "replication" and "uncoded"
                nothing. None: the first of "invertible", "guided" and "uncoded" that can be.
            input_range: least and greatest value of a query that the model was made for; a server
                refuses others. None: any.
            architecture: how the bundle rebuilds torch modules, by part ("backbone", "encoder",
                "light", "head.TASK"): "package.module:factory", {"factory": that, "arguments":
                {...}}, a config of `codedinv.nn`, or None: not at all, which is what a part that
                is no network of `codedinv.nn` has by default. A bundle is served without it.

        Raises:
            TypeError: an argument of another kind.
            ValueError: shapes of the parts do not fit together, a part is missing, results are not
                finite, a bad name, or an architecture that does not give its network back.
        """
        require("torch")
        from codedinv.model.describe import describe
        from codedinv.model.modules import assemble

        code = _code_of(code)
        modules = assemble(backbone, heads, encoder, light)
        manifest, anchors = describe(
            name, code, modules, anchors_queries, metadata or {}, architecture or {}
        )
        manifest = _completed(manifest, scheme, fusion, input_range)
        model = cls(manifest, anchors, torch_networks(modules))
        model.__dict__["modules"] = modules
        return model

    @classmethod
    def from_onnx(
        cls,
        backbone: Source,
        heads: Mapping[str, Source] | None = None,
        *,
        name: str | None = None,
        anchors_queries: Any = None,
        code: Code | None = None,
        encoder: Source | None = None,
        light: Source | None = None,
        fusion: Mapping[str, tuple[float, float]] | None = None,
        metadata: Mapping[str, Any] | None = None,
        scheme: str | None = None,
        input_range: tuple[float, float] | None = None,
        threads: int = 1,
    ) -> CodedModel:
        """Makes a model of ONNX files, without torch; needs the packages onnx and onnxruntime.

        Each file has one float32 tensor in and one out, both with a batch axis of any size. They
        are copied, with the weights that lie in files beside them.

        Args:
            backbone: a file or its content, (B, *input) -> (B, *embedding).
            heads: task -> (B, *embedding) -> (B, outputs). None: the backbone's result is the
                answer, to a task named "output".
            name: of the model; None: the backbone's file name.
            anchors_queries: as in `from_modules`. None: zeros, where there is no encoder and the
                graph says what shape a query has.
            code, encoder, light, fusion, metadata, scheme, input_range: as in `from_modules`.
            threads: of each ONNX Runtime session.

        Raises:
            BundleError: a file that is missing or no ONNX.
            TypeError: as in `from_modules`.
            ValueError: as in `from_modules`, or a fixed batch axis, another dtype, several tensors.
            MissingExtra: onnx is not installed.
        """
        code = _code_of(code)
        manifest, anchors, contents = describe_onnx(
            name, code, backbone, heads, encoder, light, anchors_queries, metadata or {}
        )
        manifest = _completed(manifest, scheme, fusion, input_range)
        return cls(manifest, anchors, onnx_networks(manifest, contents, threads))

    @property
    def hashes(self) -> Mapping[str, str] | None:
        """SHA-256 of each file of `folder` by name, `bundle.json` included, as they were when this
        model was loaded from it or saved to it; None before that."""
        return self._hashes

    @property
    def rebuildable(self) -> bool:
        """Can torch modules be made of a bundle of this model by one who does not trust it?"""
        return self._manifest.architecture.rebuildable(trust_factory=False)

    @property
    def worth(self) -> Worth:
        """What the metadata say of the accuracy of reconstructed answers, and of its floor."""
        return worth_of(self.metadata)

    @property
    def default_scheme(self) -> str:
        """The scheme that a server uses if it is told none: `scheme`, unless that reconstructs
        answers and nothing shows that they are worth giving; then "guided" where there is a light
        model, else "uncoded"."""
        if self.scheme not in ENCODED or self.worth.objection is None:
            return self.scheme
        return "uncoded" if self.light is None else "guided"

    @cached_property
    def modules(self) -> TorchModules:
        """The torch modules: backbone (with its `inverse`), encoder and heads; imports torch.

        A model on ONNX Runtime loads them from its folder's weights at first use.

        Raises:
            BundleError: a network cannot be rebuilt (see `load`), or a file is damaged.
            ValueError: a model of ONNX files, not saved.
        """
        if self.folder is None:
            raise ValueError("modules: a model of ONNX files has no torch modules")
        require("torch")
        from codedinv.model.modules import load_modules

        folder_files.read_manifest(self.folder)  # its files may have been damaged since loading
        return load_modules(self.folder, self._manifest, self._trust_factory)

    def encode(self, queries: ArrayT) -> ArrayT:
        """Makes the parity queries: float32 (B, k, *input) -> (B, r, *input).

        Raises:
            ValueError: another shape or dtype, or the model has no encoder (a guided one).
        """
        if self._networks.encoder is None:
            raise ValueError(
                f"encode: {self.name!r} has no encoder; it is meant for scheme {self.scheme!r}"
            )
        check_batch("queries", queries, "B", (self.code.k, *self.input_shape))
        return self._networks.encoder(queries)

    def embed(self, x: ArrayT) -> ArrayT:
        """Runs the backbone: float32 (B, *input) -> (B, *embedding)."""
        check_batch("x", x, "B", self.input_shape)
        return self._networks.backbone(x)

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
        seen; a bundle that is already there is replaced. Networks are exported from their torch
        modules (which imports torch) and checked; where those cannot be rebuilt, the ONNX graphs
        that the model has are written again.

        Args:
            folder: to write.
            shared_weights: the ONNX files refer to weights.safetensors for their weights, which
                halves the bundle; False: each holds its own, and can be copied elsewhere alone.

        Returns:
            The folder, which `self.folder` names from now on.

        Raises:
            BundleError: an exported network differs from torch, or cannot be exported; nothing is
                written.
            ValueError: the folder holds something else, or metadata is not plain JSON.
        """
        folder = Path(folder)
        files, exported = self._files(shared_weights)
        if self.consistency is not None:
            files |= consistency_file(self.consistency)
        metadata = {**self.metadata, "onnx": exported}
        manifest = self._manifest.model_copy(update={"metadata": metadata})
        self._hashes = folder_files.write_folder(folder, manifest, files)
        self.metadata = metadata
        self.folder = folder
        return folder

    def _files(self, shared_weights: bool) -> tuple[dict[str, bytes], dict[str, Any]]:
        in_memory = "modules" in self.__dict__
        if not in_memory and not self._manifest.architecture.rebuildable(self._trust_factory):
            networks, hashes = self._networks, self._hashes or {}
            folder = None if networks.contents else self.folder
            return carried_files(
                self._manifest, self.anchors, networks.contents, folder, hashes, shared_weights
            )
        require("torch")
        from codedinv.model.serialise import serialise

        return serialise(self.modules, self._manifest, self.anchors, shared_weights)


def _code_of(code: Code | None) -> Code:
    if code is None:
        return Code.uniform(k=4)
    if not isinstance(code, Code):
        raise TypeError(f"code: expected a Code, such as Code.uniform(k=4), got {code!r}")
    return code


def _completed(
    manifest: Manifest,
    scheme: str | None,
    fusion: Mapping[str, tuple[float, float]] | None,
    input_range: tuple[float, float] | None,
) -> Manifest:
    parts = manifest.architecture
    if scheme is None:
        scheme = "invertible" if parts.encoder else "guided" if parts.light else "uncoded"
    return with_scheme(manifest, scheme, fusion, input_range)


def _like(example: ArrayT, array: NDArray[Any]) -> ArrayT:
    if isinstance(example, np.ndarray):
        return array
    import torch

    # float64 on the way: torch takes no numpy bfloat16.
    exact = torch.from_numpy(array.astype(np.float64))
    return exact.to(dtype=example.dtype, device=example.device)
