"""Models as they are served: what a version is made of, and where its workers find it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from codedinv.errors import UnprovenWarning
from codedinv.model.runtimes import Runtime
from codedinv.schemes import Scheme, ServedModel
from codedinv.schemes.scheme import BACKBONE, ENCODED, Array, parity_model
from codedinv.serving.light import Grouping
from codedinv.serving.queries import QueryCheck
from codedinv.serving.temporary import TemporaryFolder, is_temporary
from codedinv.serving.versions import Fallback, Served, build_served, load_model, try_out
from codedinv.workers import Backbone, BackboneSpec, Batching, Pool, ProcessPool, ThreadPool
from codedinv.workers.backbone import ParityBackbone
from codedinv.workers.batches import ONE_BY_ONE
from codedinv.workers.devices import CPU

if TYPE_CHECKING:
    from codedinv.workers.oip import Security

Backend = Literal["process", "thread", "ray"]


@dataclass(frozen=True, eq=False)
class Deployment:
    """One version of the model with all that serving it takes.

    Attributes:
        model: the model.
        served: what the loop needs of it.
        models: what its workers run, by name.
        check: of its queries.
        temporary: the folder that it was saved to for its workers, if it had none.
    """

    model: ServedModel
    served: Served
    models: Mapping[str, Any]
    check: QueryCheck
    temporary: TemporaryFolder | None

    def remove(self) -> None:
        """Deletes what was made for it."""
        if self.temporary is not None:
            self.temporary.remove()


class Deployments:
    """Makes deployments that are served the same way.

    Args:
        scheme: as `CodedServer` takes it.
        grouping, fuse: as `CodedServer` takes them.
        fallback: as `CodedServer` takes it.
        as_threads: workers are threads of this process.
        others_too: workers may know more models than they are given here.
        runtime: what runs the models of processes.
        verify: results are to be checked.
        start_timeout_s: for heads, encoder and fallback to show that they work.
    """

    def __init__(
        self,
        scheme: str | Scheme | None,
        grouping: Grouping,
        fuse: bool,
        fallback: Fallback,
        as_threads: bool,
        others_too: bool,
        verify: bool,
        start_timeout_s: float,
        runtime: Runtime = "auto",
    ) -> None:
        self._runtime = runtime
        self._scheme = scheme
        self._grouping, self._fuse = grouping, fuse
        self._fallback = fallback
        self._as_threads = as_threads
        self._others_too = others_too
        self._verify = verify
        self._start_timeout_s = start_timeout_s

    def prepare(self, model: ServedModel | str | Path, scheme: Scheme | None = None) -> Deployment:
        """A deployment that has been tried out.

        Args:
            model: as `CodedServer` takes it.
            scheme: in place of the one that all deployments have.

        Raises:
            ValueError: scheme, runtime, fallback and model do not fit together.
            BundleError: a folder that holds no sound bundle.
            CodedInvError: heads, encoder or fallback take too long.
        """
        model = load_model(model)
        chosen = scheme or self._scheme or _default_scheme(model)
        _warn_of_worth(model, chosen)
        served = build_served(
            model, chosen, self._fallback, self._verify, self._grouping, self._fuse
        )
        check = QueryCheck(tuple(model.input_shape), getattr(model, "input_range", None))
        parities = {parity_model(i): i for i in range(model.code.r)}
        wanted = {BACKBONE, *served.scheme.plan.models}
        known = {BACKBONE, *parities} if served.scheme.name in ENCODED else {BACKBONE}
        if not (wanted <= known or self._others_too):
            unknown = sorted(wanted - known)
            raise ValueError(f"scheme: its slots want {unknown}; workers have {sorted(known)}")
        parities = {name: i for name, i in parities.items() if name in wanted}
        try_out(served, check.input_shape, self._start_timeout_s)
        if self._as_threads:
            return Deployment(model, served, _in_process(model, parities), check, None)
        _check_runtime(model, self._runtime)
        temporary = None
        folder = model.folder
        if folder is None or is_temporary(folder):  # another server's, and gone when that closes
            temporary = TemporaryFolder()
            folder = temporary.path / "bundle"
            model.save(folder)
        hashes = getattr(model, "hashes", None)

        def spec(shape: tuple[int, ...], parity: int | None = None) -> BackboneSpec:
            embedding = served.embedding_shape
            return BackboneSpec.of(
                folder, shape, embedding, self._runtime, hashes, model.name, parity
            )

        group = (model.code.k, *check.input_shape)
        models = {name: spec(group, parity) for name, parity in parities.items()}
        return Deployment(
            model, served, {BACKBONE: spec(check.input_shape), **models}, check, temporary
        )


def _default_scheme(model: ServedModel) -> str:
    meant = getattr(model, "scheme", "invertible")
    own: str = getattr(model, "default_scheme", meant)
    return own


def _check_runtime(model: ServedModel, runtime: Runtime) -> None:
    """Refuses what would only be found by workers that do not start."""
    if runtime == "torch" and not getattr(model, "rebuildable", True):
        raise ValueError(
            f"runtime: workers cannot make torch modules of {model.name!r}, which has ONNX graphs "
            "alone or factories that they never call; expected runtime='onnx' (on a GPU with "
            "onnxruntime-gpu)"
        )


def _warn_of_worth(model: ServedModel, chosen: str | Scheme) -> None:
    """Says so where nothing shows that reconstructed answers of the model are worth giving."""
    objection = getattr(getattr(model, "worth", None), "objection", None)
    meant: str = getattr(model, "scheme", "")
    name = chosen.name if isinstance(chosen, Scheme) else chosen
    if objection is None or (name not in ENCODED and meant not in ENCODED):
        return
    if name in ENCODED:
        text = f"{model.name!r} is served by scheme {name!r} as asked for, though {objection}"
    elif name == getattr(model, "default_scheme", None):
        text = (
            f"{model.name!r} is served by scheme {name!r}, not by {meant!r}, for {objection}: "
            f"no answer is reconstructed. To have that all the same: scheme={meant!r}"
        )
    else:
        return
    warnings.warn(text, UnprovenWarning, stacklevel=4)


def make_pool(
    models: Mapping[str, Any],
    backend: Backend,
    workers: int | Sequence[str],
    in_flight: int,
    batching: Batching = ONE_BY_ONE,
    devices: Sequence[str] = (CPU,),
    security: Security | None = None,
) -> Pool:
    """The workers, and one index more for the spare that a reload uses.

    Args:
        models: what they run.
        backend: what they are; any, where `workers` are endpoints.
        workers: how many; or the endpoints of servers of the Open Inference Protocol.
        in_flight: tasks that a worker holds.
        batching: how local workers make batches.
        devices: of worker processes.
        security: certificates and token for endpoints.

    Raises:
        ValueError: an endpoint that cannot be understood, or files that are no certificates.
        ImportError: what the workers need is not installed; it names the extra.
    """
    if not isinstance(workers, int):
        from codedinv.workers.oip import OipPool

        return OipPool(models, workers, in_flight, security)
    if backend == "ray":
        from codedinv.workers.ray import RayPool

        return RayPool(models, workers + 1)
    if backend == "thread":
        return ThreadPool(models, workers + 1, in_flight, batching)
    return ProcessPool(models, workers + 1, in_flight, batching, devices)


def _in_process(model: ServedModel, parities: Mapping[str, int]) -> dict[str, Backbone]:
    """What threads run: the backbone, and parity models by name."""

    def backbone(queries: Array) -> Array:
        return np.asarray(model.embed(queries), np.float32)

    def encoder(queries: Array) -> Array:
        return np.asarray(model.encode(queries), np.float32)

    parts = {name: ParityBackbone(backbone, encoder, parity) for name, parity in parities.items()}
    return {BACKBONE: backbone, **parts}
