"""Workers as threads of this process: for tests and small uses. A thread cannot be killed, so a
killed worker's thread is only disowned: what it still says is dropped, and it ends by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from codedinv.model.runtimes import choose_runtime
from codedinv.workers.backbone import Array, Backbone, load_backbone
from codedinv.workers.base import MailboxPool, Versions
from codedinv.workers.batches import MOST_IN_A_BATCH, ONE_BY_ONE, Batching, Queue, results_of
from codedinv.workers.breakable import BreakablePool
from codedinv.workers.faults import FaultyBackbones
from codedinv.workers.pool import Died, Dropped, Message, Ready, Result, TaskError


class _Killed(BaseException):
    """Unwinds a worker thread that is told to die."""


class _Worker:
    """One generation of one worker.

    Args:
        index, generation: which.
        models: what it runs, by name.
        queue: what waits, empty.
        say: takes its messages, from any thread.
    """

    def __init__(
        self,
        index: int,
        generation: int,
        models: Mapping[str, Backbone],
        queue: Queue[tuple[int, Array]],
        say: Callable[[Message], None],
    ) -> None:
        self.index = index
        self.generation = generation
        self._models = models
        self.backbones = FaultyBackbones(
            models,
            self._sleep,
            self._crash,
            lambda folder: load_backbone(folder, choose_runtime("auto")),
        )
        self._say = say
        self._changed = threading.Condition()  # of the three below
        self._queue = queue
        self._is_killed = False
        self._is_paused = False
        self._thread = threading.Thread(
            target=self._run, name=f"codedinv-worker-{index}.{generation}", daemon=True
        )
        self._thread.start()

    def send(self, task: int, model: str, query: Array) -> None:
        with self._changed:
            if self._is_killed:
                return  # its death is told already
            if model in self._models:
                self._queue.put(task, model, (task, query), time.monotonic())
                self._changed.notify_all()
            else:
                reason = f"model: expected one of {list(self._models)}, got {model!r}"
                self._say(TaskError(self.index, self.generation, task, reason))

    def cancel(self, task: int) -> None:
        with self._changed:
            if not self._is_killed and self._queue.cancel(task) is not None:
                self._say(Dropped(self.index, self.generation, task))

    def kill(self, reason: str | None) -> None:
        """Disowns the thread; the death is told once, or not at all if `reason` is None."""
        with self._changed:
            if not self._is_killed:
                self._is_killed = True
                self._changed.notify_all()
                if reason is not None:
                    self._say(Died(self.index, self.generation, reason))

    def pause(self, is_paused: bool) -> None:
        with self._changed:
            self._is_paused = is_paused
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._tell(Ready(self.index, self.generation))
            while True:
                self._work(*self._next())
        except _Killed:
            self.kill("crashed")  # unless it is known already

    def _next(self) -> tuple[str, list[tuple[int, Array]]]:
        with self._changed:
            while True:
                self._wait(lambda: bool(len(self._queue)))
                wait_s = self._queue.wait_s(time.monotonic())
                if not wait_s:
                    return self._queue.take()
                self._changed.wait(wait_s)

    def _work(self, model: str, batch: list[tuple[int, Array]]) -> None:
        queries = [query for _, query in batch]
        results = results_of(partial(self.backbones, model), queries, (_Killed,))
        for (task, _), result in zip(batch, results, strict=True):
            origin = self.index, self.generation, task
            if isinstance(result, BaseException):
                self._tell(TaskError(*origin, f"{type(result).__name__}: {result}"))
            else:
                self._tell(Result(*origin, np.array(result, np.float32)))

    def _tell(self, message: Message) -> None:
        with self._changed:
            self._wait(lambda: True)
            self._say(message)

    def _wait(self, is_met: Callable[[], bool]) -> None:
        """Waits for a condition, and for the end of a pause; call with the lock held."""
        self._changed.wait_for(lambda: self._is_killed or (is_met() and not self._is_paused))
        if self._is_killed:
            raise _Killed

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            if self._changed.wait_for(lambda: self._is_killed, seconds):
                raise _Killed

    def _crash(self) -> None:
        raise _Killed


class ThreadPool(MailboxPool, BreakablePool):
    """A `Pool` of threads.

    Args:
        models: what version 0 runs, by name, each (B, *input) -> (B, *embedding) and called from
            several threads at once; a bare callable is the model "backbone".
        workers: how many indices there are.
        in_flight: tasks that a worker is given at a time; None: any number.
        batching: how workers make batches.

    Raises:
        ValueError: no models, or no workers.
        TypeError: a model that cannot be called.
    """

    def __init__(
        self,
        models: Mapping[str, Backbone] | Backbone,
        workers: int,
        in_flight: int | None = None,
        batching: Batching = ONE_BY_ONE,
    ) -> None:
        self._batching = batching
        self._capacity = 2 * MOST_IN_A_BATCH if in_flight is None else in_flight
        first = models if isinstance(models, Mapping) else {"backbone": models}
        self._versions = Versions({0: _checked(first)})
        super().__init__(workers)  # last of all that may fail, for it opens descriptors
        self._workers: list[_Worker | None] = [None] * workers

    # ---- for the thread that owns the pool

    def provide(self, version: int, models: Mapping[str, Backbone]) -> None:
        self._versions.provide(version, _checked(models))

    def forget(self, version: int) -> None:
        self._versions.pop(version, None)

    def start(self, worker: int, generation: int, version: int = 0) -> None:
        self._check(worker)
        models = self._versions[version]
        old = self._workers[worker]
        if old is not None:
            old.kill(None)
        self._wanted[worker] = generation
        limits = self._batching.limits(models)
        queue: Queue[tuple[int, Array]] = Queue(self._batching, limits, self._capacity)
        try:
            self._workers[worker] = _Worker(worker, generation, models, queue, self._say)
        except RuntimeError as error:  # no more threads
            self._workers[worker] = None
            self._say(Died(worker, generation, f"could not be started: {error}"))

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        w = self._living(worker, generation)
        if w is not None:
            w.send(task, model, query)

    def cancel(self, worker: int, generation: int, task: int) -> None:
        w = self._living(worker, generation)
        if w is not None:
            w.cancel(task)

    def retire(self, worker: int, generation: int) -> None:
        w = self._living(worker, generation)
        if self._wanted[worker] == generation:
            self._wanted[worker] = None
        if w is not None:
            w.kill(None)
            self._workers[worker] = None

    def close(self, timeout_s: float) -> None:
        if self._is_forked() or self._is_closed:
            return
        self._is_closed = True
        workers = [w for w in self._workers if w is not None]
        for worker in workers:
            worker.kill(None)
        until = time.monotonic() + timeout_s
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
        self._close_descriptors()

    # ---- for any thread

    def kill(self, worker: int) -> None:
        w = self._at(worker)
        if w is not None:
            w.kill("killed")

    def pause(self, worker: int) -> None:
        w = self._at(worker)
        if w is not None:
            w.pause(True)

    def resume(self, worker: int) -> None:
        w = self._at(worker)
        if w is not None:
            w.pause(False)

    # ---- within

    def _at(self, worker: int) -> _Worker | None:
        self._check(worker)
        return self._workers[worker]

    def _living(self, worker: int, generation: int) -> _Worker | None:
        w = self._at(worker)
        return w if w is not None and w.generation == generation else None

    def _set_faults(self, worker: int, **changes: Any) -> None:
        w = self._at(worker)
        if w is not None:
            w.backbones.faults = replace(w.backbones.faults, **changes)


def _checked(models: Mapping[str, Backbone]) -> dict[str, Backbone]:
    """A copy of models that can be run.

    Raises:
        ValueError: there are none.
        TypeError: one cannot be called.
    """
    if not models:
        raise ValueError("models: expected at least one")
    for name, backbone in models.items():
        if not callable(backbone):
            raise TypeError(f"models: expected a callable for {name!r}, got {backbone!r}")
    return dict(models)
