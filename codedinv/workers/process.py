"""Workers as processes of their own: a crash, a leak or a kill of one touches nobody else.

A socket pair is the duplex pipe, a pidfd the sentinel; either tells of a death within milliseconds.
"""

from __future__ import annotations

import contextlib
import queue
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codedinv.workers.backbone import Array, Backbone, BackboneSpec
from codedinv.workers.base import Versions
from codedinv.workers.batches import ONE_BY_ONE, Batching
from codedinv.workers.breakable import BreakablePool
from codedinv.workers.channel import MOST_SLOTS, Kind, Received
from codedinv.workers.devices import CPU
from codedinv.workers.pool import Died, Dropped, Message, Ready, Result, Task, TaskError
from codedinv.workers.starter import Starter
from codedinv.workers.worker_process import Launch, Version, WorkerProcess, import_path

_STARTS_END_S = 5.0  # a start takes 5 ms; this much is a file system that does not answer


class ProcessPool(BreakablePool):
    """A `Pool` of processes.

    Args:
        models: what version 0 runs, by name; a bare spec is the model "backbone".
        workers: how many indices there are.
        in_flight: tasks that a worker has in hand, 128 at most; more may be sent, and wait here.
        batching: how workers make batches.
        devices: of workers 0, 1, ..., gone through again and again, see `choose_devices`.

    Raises:
        ValueError: models of different shapes, or a number out of range.
    """

    def __init__(
        self,
        models: Mapping[str, BackboneSpec] | BackboneSpec,
        workers: int,
        in_flight: int = 1,
        batching: Batching = ONE_BY_ONE,
        devices: Sequence[str] = (CPU,),
    ) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight: expected 1 or more, got {in_flight}")
        specs = {"backbone": models} if isinstance(models, BackboneSpec) else models
        self._batching, self._devices = batching, tuple(devices)
        self._slots = min(in_flight, MOST_SLOTS)
        self._versions = Versions({0: Version.of(specs, self._slots)})
        super().__init__(workers)  # last of all that may fail, for it opens descriptors
        self._workers: list[WorkerProcess | None] = [None] * workers
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._out: list[Message] = []
        self._deaths: list[Message] = []
        self._ended: list[subprocess.Popen[bytes]] = []  # killed, not yet reaped
        # Taken now: a restart must find the same modules also after a chdir.
        self._import_path = import_path()
        self._starter = Starter(
            started=lambda worker: self._post(lambda: self._adopt(worker)),
            failed=lambda *died: self._post(lambda: self._deaths.append(Died(*died))),
        )

    # ---- for the thread that owns the pool

    def provide(self, version: int, models: Mapping[str, BackboneSpec]) -> None:
        self._versions.provide(version, Version.of(models, self._slots))

    def forget(self, version: int) -> None:
        self._versions.pop(version, None)

    def start(self, worker: int, generation: int, version: int = 0) -> None:
        self._check(worker)
        models = self._versions[version]
        device = self._devices[worker % len(self._devices)]
        launch = Launch(worker, generation, models, self._import_path, self._batching, device)
        old = self._workers[worker]
        if old is not None:
            self._let_go(old)
        self._wanted[worker] = generation
        self._starter.start(launch)

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        self.send_many(worker, generation, [Task(task, model, query)])

    def send_many(self, worker: int, generation: int, tasks: Sequence[Task]) -> None:
        w = self._living(worker, generation)
        if w is None:
            return  # its death is on the way
        for task, model, query in tasks:
            index = w.models.get(model)
            if index is None:
                reason = f"model: expected one of {list(w.models)}, got {model!r}"
                self._tell(TaskError(worker, generation, task, reason))
            else:
                w.outbox.put_task(task, index, query)
        self._flush(w)

    def cancel(self, worker: int, generation: int, task: int) -> None:
        w = self._living(worker, generation)
        if w is None:
            return
        if w.outbox.withdraw(task):
            self._tell(Dropped(worker, generation, task))
        else:
            w.outbox.put_urgent(Kind.CANCEL, task=task)
            self._flush(w)

    def retire(self, worker: int, generation: int) -> None:
        w = self._living(worker, generation)
        if self._wanted[worker] == generation:
            self._wanted[worker] = None
        if w is not None:
            self._let_go(w)

    def poll(self, timeout_s: float | None) -> list[Message]:
        self._check()
        if self._is_closed:
            return []
        for key, events in self._select(timeout_s):
            w: WorkerProcess = key.data
            if key.fd == w.pidfd or events & selectors.EVENT_READ:
                self._hear(w, is_over=key.fd == w.pidfd)
            else:
                self._flush(w)
        while not self._posted.empty():
            self._posted.get()()
        if self._ended:
            self._ended = [p for p in self._ended if p.poll() is None]
        # Deaths last: nothing that came is lost to one.
        out, self._out = self._out + self._deaths, []
        if self._deaths:
            self._deaths = []
        wanted = self._wanted
        return [message for message in out if wanted[message.worker] == message.generation]

    def close(self, timeout_s: float) -> None:
        if self._is_forked() or self._is_closed:  # a copy's shutdown() would be the original's too
            return
        self._is_closed = True
        self._starter.stop(_STARTS_END_S)
        while not self._posted.empty():
            self._posted.get()()
        workers = [w for w in self._workers if w is not None]
        for w in workers:
            with contextlib.suppress(OSError):  # it is dead already
                w.channel.sock.shutdown(socket.SHUT_RDWR)  # the end of file ends one that is well
        until = time.monotonic() + timeout_s
        for w in workers:
            try:
                w.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                w.process.kill()
            self._let_go(w)
        for process in self._ended:
            process.wait()
        self._starter.end(_STARTS_END_S)
        self._close_descriptors()

    # ---- for any thread

    def kill(self, worker: int) -> None:
        self._signal(worker, signal.SIGKILL)

    def pause(self, worker: int) -> None:
        self._signal(worker, signal.SIGSTOP)

    def resume(self, worker: int) -> None:
        self._signal(worker, signal.SIGCONT)

    def pids(self) -> list[int | None]:
        return [w.process.pid if w is not None else None for w in self._workers]

    # ---- within

    def _living(self, worker: int, generation: int) -> WorkerProcess | None:
        self._check(worker)
        w = self._workers[worker]
        return w if w is not None and w.generation == generation else None

    def _signal(self, worker: int, number: signal.Signals) -> None:
        self._check(worker)
        w = self._workers[worker]
        if w is not None:
            w.process.send_signal(number)

    def _post(self, job: Callable[[], None]) -> None:
        """Lets the owner do something in its next `poll`."""
        self._posted.put(job)
        self._bell.ring()

    def _tell(self, message: Message) -> None:
        """Lets the next `poll` return a message that no descriptor announces."""
        self._out.append(message)
        self._bell.ring()

    def _adopt(self, w: WorkerProcess) -> None:
        if self._wanted[w.index] != w.generation:
            w.destroy()  # retired while it was being started
            self._ended.append(w.process)
            return
        self._workers[w.index] = w
        self._selector.register(w.channel.sock, selectors.EVENT_READ, w)
        if w.pidfd is not None:
            self._selector.register(w.pidfd, selectors.EVENT_READ, w)

    def _flush(self, w: WorkerProcess) -> None:
        """Sends what can be sent, and asks to be told when the rest can."""
        try:
            is_full = w.outbox.flush()
        except OSError:
            self._hear(w, is_over=True)
            self._bell.ring()
            return
        if is_full != w.is_full:
            w.is_full = is_full
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if is_full else 0)
            self._selector.modify(w.channel.sock, events, w)

    def _hear(self, w: WorkerProcess, is_over: bool) -> None:
        """Takes what a worker sent; if it is over, all that it sent before."""
        if self._workers[w.index] is not w:
            return  # both its descriptors were ready, and the first told of its end
        while True:
            try:
                messages = w.channel.receive(wait=False)
            except BlockingIOError:
                break
            except OSError:
                messages = None
            if messages is None:
                is_over = True
                break
            for message in messages:
                self._take(w, message)
            if not is_over and w.outbox.is_worker_idle():
                break  # it has nothing to say; what it says all the same, the next poll finds
        if is_over:
            self._deaths.append(Died(w.index, w.generation, w.epitaph()))
            self._let_go(w)
        else:
            self._flush(w)  # there may be room now

    def _take(self, w: WorkerProcess, message: Received) -> None:
        kind, task, slot, _, array, text = message
        if array is not None:
            self._out.append(Result(w.index, w.generation, task, array))
        elif kind is Kind.READY:
            self._out.append(Ready(w.index, w.generation))
            return
        elif kind is Kind.FATAL:
            w.fatal = text
            return
        elif kind is Kind.DROPPED:
            self._out.append(Dropped(w.index, w.generation, task))
        else:
            self._out.append(TaskError(w.index, w.generation, task, text))
        w.outbox.give_back(slot)

    def _let_go(self, w: WorkerProcess) -> None:
        self._workers[w.index] = None
        for fd in (w.channel.sock, w.pidfd):
            if fd is not None:
                self._selector.unregister(fd)
        w.destroy()
        self._ended.append(w.process)

    def _other_backbone(self, backbone: str | Path | Backbone | None) -> str | Backbone | None:
        if callable(backbone):
            raise TypeError("backbone: expected a bundle's folder, for a process runs no callable")
        return super()._other_backbone(backbone)

    def _set_faults(self, worker: int, **changes: Any) -> None:
        self._check(worker)

        def change() -> None:
            w = self._workers[worker]
            if w is not None:
                w.faults = replace(w.faults, **changes)
                w.outbox.put_urgent(Kind.FAULTS, w.faults.to_json())
                self._flush(w)

        self._post(change)
