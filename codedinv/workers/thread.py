"""Workers as threads of this process: for tests and small uses. A thread cannot be killed, so a
killed worker's thread is only disowned: what it still says is dropped, and it ends by itself."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace

from codedinv.workers.backbone import Array, Backbone
from codedinv.workers.faults import Faults, FaultyBackbone
from codedinv.workers.pool import Died, Message, Ready, Result, TaskError

_Out = queue.SimpleQueue[Message | None]


class _Crash(BaseException):
    """Unwinds a worker thread that is told to die."""


class _Worker:
    """One generation of one worker."""

    def __init__(
        self,
        index: int,
        generation: int,
        backbone: Backbone,
        out: queue.SimpleQueue[Message | None],
    ) -> None:
        self.index = index
        self.generation = generation
        self.tasks: queue.SimpleQueue[tuple[int, Array] | None] = queue.SimpleQueue()
        self.killed = threading.Event()
        self.backbone = FaultyBackbone(backbone, self._sleep, self._crash)
        self._out = out
        self._thread = threading.Thread(
            target=self._run, name=f"codedinv-worker-{index}.{generation}", daemon=True
        )
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def kill(self, reason: str) -> None:
        """Disowns the thread; the death is told once."""
        if not self.killed.is_set():
            self.killed.set()
            self.tasks.put(None)
            self._out.put(Died(self.index, self.generation, reason))

    def _run(self) -> None:
        self._say(Ready(self.index, self.generation))
        while (item := self.tasks.get()) is not None and not self.killed.is_set():
            task, query = item
            try:
                result = self.backbone(query)
            except _Crash:
                self.kill("crashed")
                return
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                self._say(TaskError(self.index, self.generation, task, reason))
            else:
                self._say(Result(self.index, self.generation, task, result))

    def _say(self, message: Message) -> None:
        if not self.killed.is_set():
            self._out.put(message)

    def _sleep(self, seconds: float) -> None:
        if self.killed.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise _Crash

    def _crash(self) -> None:
        raise _Crash


class ThreadPool:
    """A `Pool` of threads.

    Args:
        backbone: (*input) -> (*embedding); called from several threads at once.
        workers: how many.
    """

    def __init__(self, backbone: Backbone, workers: int) -> None:
        self._backbone = backbone
        self._workers: list[_Worker | None] = [None] * workers
        self._out: _Out = queue.SimpleQueue()

    def start(self, worker: int, generation: int) -> None:
        self._workers[worker] = _Worker(worker, generation, self._backbone, self._out)

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        w = self._workers[worker]
        if w is not None and w.generation == generation:
            w.tasks.put((task, query))

    def retire(self, worker: int, generation: int) -> None:
        w = self._workers[worker]
        if w is not None and w.generation == generation:
            w.kill("retired")

    def poll(self, timeout_s: float | None) -> list[Message]:
        messages: list[Message] = []
        try:
            message = self._out.get(timeout=timeout_s)
            while True:
                if message is not None:
                    messages.append(message)
                message = self._out.get_nowait()
        except queue.Empty:
            return messages

    def close(self, timeout_s: float) -> None:
        workers = [w for w in self._workers if w is not None]
        for worker in workers:
            worker.kill("closed")
        for worker in workers:
            worker.join(timeout_s)

    def wake(self) -> None:
        self._out.put(None)

    def kill(self, worker: int) -> None:
        w = self._workers[worker]
        if w is not None:
            w.kill("killed")

    def slow(self, worker: int, delay_s: float) -> None:
        self._set(worker, delay_s=delay_s)

    def hang(self, worker: int) -> None:
        self._set(worker, hang=True)

    def crash(self, worker: int) -> None:
        self._set(worker, crash=True)

    def fail(self, worker: int, message: str) -> None:
        self._set(worker, error=message)

    def corrupt(self, worker: int, noise: float) -> None:
        self._set(worker, corrupt=noise)

    def pids(self) -> list[int | None]:
        return [None] * len(self._workers)

    def _set(self, worker: int, **changes: object) -> None:
        w = self._workers[worker]
        if w is not None:
            old: Faults = w.backbone.faults
            w.backbone.faults = replace(old, **changes)  # type: ignore[arg-type]
