"""Workers as Ray actors, on one node or many.

Ray takes about a second to tell of a process or node that is gone, and a task of it costs a
millisecond. So no answer waits for what Ray says of a worker: the server's own deadlines, its code
and its hedges go on, and Ray's word only decides when the worker is started again.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from codedinv.workers.backbone import Array, BackboneSpec
from codedinv.workers.base import MailboxPool, Versions
from codedinv.workers.breakable import BreakablePool
from codedinv.workers.faults import Faults
from codedinv.workers.pool import Died, Dropped, Ready, Result, TaskError
from codedinv.workers.ray_actor import CONTROL, WATCH, BackboneActor, Parcel

_Models = Mapping[str, BackboneSpec]

_log = logging.getLogger("codedinv")


class _Actor:
    """One generation of one worker.

    Attributes:
        version: what it runs.
        handle: Ray's; None until the pool's thread has made it.
        pid: of its process, once it is ready.
        tasks: Ray's references to the results that are awaited, by task.
        faults: those that it was given.
        is_over: its death was told.
        survives: and Ray restarts it by itself.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self.handle: Any = None
        self.pid: int | None = None
        self.tasks: dict[int, Any] = {}
        self.faults = Faults()
        self.is_over = False
        self.survives = False


class RayPool(MailboxPool, BreakablePool):
    """A `Pool` of Ray actors.

    Ray must be installed (extra `ray`), and codedinv on every node. Where `ray.init` was not
    called, it is, with its defaults: the cluster that RAY_ADDRESS names, or else a new one here.

    Args:
        models: what version 0 runs, by name; a bare spec is the model "backbone". None: what it is
            provided with, as by the `CodedServer` that it is given to.
        workers: how many indices there are.
        placement: "SPREAD": on as many nodes as there are, so that a node's end takes few workers;
            "DEFAULT": Ray packs; or a `ray.util.placement_group`, worker i in bundle
            i modulo its bundles.
        num_cpus, num_gpus: that Ray reserves for each worker.
        max_restarts: how often Ray may restart a worker by itself, in its place. A worker beyond
            that is made anew by the server, wherever there is room.
        resources: custom resources of each worker, as Ray's option.

    Raises:
        ValueError: no models, or a number out of range.
        ImportError: Ray is not installed.
    """

    def __init__(
        self,
        models: Mapping[str, BackboneSpec] | BackboneSpec | None,
        workers: int,
        *,
        placement: Any = "SPREAD",
        num_cpus: float = 1,
        num_gpus: float = 0,
        max_restarts: int = 0,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        try:
            import ray.exceptions
        except ModuleNotFoundError as error:
            raise ImportError(
                f"Ray's workers need {error.name}, which is not installed: "
                "pip install 'codedinv[ray]'"
            ) from error
        if isinstance(models, BackboneSpec):
            models = {"backbone": models}
        if models is not None and not models:
            raise ValueError("models: expected at least one")
        if max_restarts < 0:
            raise ValueError(f"max_restarts: expected 0 or more, got {max_restarts}")
        self._ray: Any = ray
        self._placement = placement
        self._options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": max_restarts,
            "resources": dict(resources or {}),
        }
        self._versions = Versions({} if models is None else {0: dict(models)})
        super().__init__(workers)
        if not ray.is_initialized():
            ray.init()
        self._actor_class = self._ray.remote(concurrency_groups={WATCH: 1, CONTROL: 1})(
            BackboneActor
        )
        self._parcels: dict[int, Any] = {}  # in Ray's object store; of the pool's thread
        self._actors: list[_Actor | None] = [None] * workers
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        # What waits for Ray's control store, to make and to end actors, is done in this thread.
        self._thread = threading.Thread(target=self._run_jobs, name="codedinv-ray", daemon=True)
        self._thread.start()

    # ---- for the thread that owns the pool

    def provide(self, version: int, models: Mapping[str, BackboneSpec]) -> None:
        self._versions.provide(version, dict(models))

    def forget(self, version: int) -> None:
        self._versions.pop(version, None)
        self._jobs.put(lambda: self._parcels.pop(version, None))

    def start(self, worker: int, generation: int, version: int = 0) -> None:
        self._check(worker)
        models = self._versions[version]
        old, new = self._actors[worker], _Actor(version)
        self._actors[worker] = new
        self._wanted[worker] = generation
        self._jobs.put(lambda: self._begin(worker, generation, old, new, models))

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        actor = self._living(worker, generation)
        if actor is None:
            return  # its death is on the way
        models = self._versions[actor.version]
        if model not in models:
            reason = f"model: expected one of {list(models)}, got {model!r}"
            self._say(TaskError(worker, generation, task, reason))
            return
        actor.tasks[task] = reference = actor.handle.run.remote(model, query)
        self._await(reference, partial(self._done, worker, generation, task))

    def cancel(self, worker: int, generation: int, task: int) -> None:
        actor = self._living(worker, generation)
        reference = actor.tasks.get(task) if actor is not None else None
        if reference is not None:
            self._ray.cancel(reference)

    def retire(self, worker: int, generation: int) -> None:
        actor = self._living(worker, generation)
        if self._wanted[worker] == generation:
            self._wanted[worker] = None
        if actor is not None:
            self._actors[worker] = None
            self._jobs.put(lambda: self._end(actor))

    def close(self, timeout_s: float) -> None:
        if self._is_forked() or self._is_closed:
            return
        self._is_closed = True
        for actor in self._actors:
            if actor is not None:
                self._jobs.put(partial(self._end, actor))
        self._jobs.put(None)
        self._thread.join(timeout_s)
        self._close_descriptors()

    # ---- for any thread

    def kill(self, worker: int) -> None:
        """`ray.kill`: the actor's process is gone, and nobody but Ray says so."""
        self._check(worker)
        actor = self._actors[worker]
        if actor is not None and actor.handle is not None:
            self._ray.kill(actor.handle, no_restart=not self._options["max_restarts"])

    def pause(self, worker: int) -> None:
        raise NotImplementedError("a Ray actor cannot be stopped from here; see hang and slow")

    def resume(self, worker: int) -> None:
        raise NotImplementedError("a Ray actor cannot be stopped from here; see hang and slow")

    def pids(self) -> list[int | None]:
        """Process id of each worker, on whatever node it is."""
        return [actor.pid if actor is not None else None for actor in self._actors]

    # ---- within

    def _living(self, worker: int, generation: int) -> _Actor | None:
        self._check(worker)
        return self._actors[worker] if self._wanted[worker] == generation else None

    def _await(self, reference: Any, then: Callable[[Future[Any]], None]) -> None:
        """Lets a thread of Ray's call `then` once a result is there or never will be."""
        reference.future().add_done_callback(then)

    def _began(self, worker: int, generation: int, future: Future[Any]) -> None:
        actor, error = self._listened_to(worker, generation), future.exception()
        if error is not None:
            self._ended(worker, generation, future)
        elif actor is not None:
            actor.pid = future.result()
            self._say(Ready(worker, generation))

    def _done(self, worker: int, generation: int, task: int, future: Future[Any]) -> None:
        actor, error = self._listened_to(worker, generation), future.exception()
        if actor is None:
            return
        actor.tasks.pop(task, None)
        exceptions = self._ray.exceptions
        if error is None:
            self._say(Result(worker, generation, task, np.array(future.result(), np.float32)))
        elif isinstance(error, exceptions.TaskCancelledError):
            self._say(Dropped(worker, generation, task))
        elif isinstance(error, exceptions.RayTaskError):
            cause = error.cause
            self._say(TaskError(worker, generation, task, f"{type(cause).__name__}: {cause}"))
        else:
            self._ended(worker, generation, future)

    def _ended(self, worker: int, generation: int, future: Future[Any]) -> None:
        """An actor is gone, as one of its calls tells; the others' word of it is dropped."""
        actor, error = self._listened_to(worker, generation), future.exception()
        if actor is not None:
            actor.is_over = True
            unavailable = isinstance(error, self._ray.exceptions.ActorUnavailableError)
            actor.survives = unavailable and self._options["max_restarts"] > 0
            first_line = next(iter(str(error).splitlines()), "")
            self._say(Died(worker, generation, f"{type(error).__name__}: {first_line}"))

    def _listened_to(self, worker: int, generation: int) -> _Actor | None:
        """The actor, if that is its generation and its death was not told."""
        actor = self._actors[worker]
        if actor is None or self._wanted[worker] != generation or actor.is_over:
            return None
        return actor

    def _set_faults(self, worker: int, **changes: Any) -> None:
        self._check(worker)
        actor = self._actors[worker]
        if actor is not None and actor.handle is not None:
            actor.faults = replace(actor.faults, **changes)
            actor.handle.set_faults.options(concurrency_group=CONTROL).remote(actor.faults)

    # ---- in the pool's thread

    def _run_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a cluster that is gone has no actors to end either
                _log.exception("Ray did not do what it was asked for")

    def _begin(
        self, worker: int, generation: int, old: _Actor | None, new: _Actor, models: _Models
    ) -> None:
        try:
            if old is not None and old.survives and old.version == new.version:
                new.handle = old.handle
            else:
                if old is not None:
                    self._end(old)
                new.handle = self._make(worker, new.version, models)
            self._await(new.handle.ready.remote(), partial(self._began, worker, generation))
            live = new.handle.live.options(concurrency_group=WATCH).remote()
            self._await(live, partial(self._ended, worker, generation))
        except Exception as error:  # whatever it is, this thread must live and somebody know
            reason = f"could not be started: {type(error).__name__}: {error}"
            self._say(Died(worker, generation, reason))

    def _make(self, worker: int, version: int, models: _Models) -> Any:
        if version not in self._parcels:
            parcels = {name: Parcel.of(spec) for name, spec in models.items()}
            self._parcels[version] = self._ray.put(parcels)
        strategy = self._placement
        if not isinstance(strategy, str):
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            bundle = worker % strategy.bundle_count
            strategy = PlacementGroupSchedulingStrategy(strategy, bundle)
        options = self._actor_class.options(scheduling_strategy=strategy, **self._options)
        return options.remote(self._parcels[version])

    def _end(self, actor: _Actor) -> None:
        if actor.handle is not None:
            self._ray.kill(actor.handle, no_restart=True)
