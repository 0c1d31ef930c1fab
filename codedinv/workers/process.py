"""Workers as processes of their own: a crash, a leak or a kill of one touches nobody else.

Each is `python -m codedinv.workers.child`, started by subprocess rather than multiprocessing: the
caller's main module is not imported again (a script needs no `if __name__ == "__main__"`), no
resource tracker or fork server runs beside it, and nothing is forked after ONNX Runtime or torch
have started threads. A socket pair is the duplex pipe, a pidfd the sentinel; either tells of a
death within milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from codedinv.workers.backbone import Array, BackboneSpec
from codedinv.workers.channel import Channel, Kind, Layout, Received, create_memory
from codedinv.workers.faults import Faults
from codedinv.workers.pool import Died, Message, Ready, Result, TaskError

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    "1",  # the workers are the parallelism
)


class _Worker:
    """One generation of one worker: its process and the wire to it."""

    def __init__(self, index: int, generation: int, spec: BackboneSpec, layout: Layout) -> None:
        self.index = index
        self.generation = generation
        self.faults = Faults()
        self.fatal = ""
        self.memory_slots = list(range(layout.in_flight))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory_fd = create_memory(layout.memory_bytes) if layout.memory_bytes else None
        try:
            self.channel = Channel(ours, memory_fd, layout, is_worker=False)
            ours.setblocking(False)
            config = {
                "fd": theirs.fileno(),
                "memory_fd": memory_fd,
                "in_flight": layout.in_flight,
                "parent": os.getpid(),
                "spec": spec.to_json(),
            }
            self.process = subprocess.Popen(
                # -P: only the parent's own import path, whatever the working directory holds.
                [sys.executable, "-P", "-m", "codedinv.workers.child", json.dumps(config)],
                stdin=subprocess.DEVNULL,
                pass_fds=[fd for fd in (theirs.fileno(), memory_fd) if fd is not None],
                env=os.environ | _ONE_THREAD | {"PYTHONPATH": _import_path()},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # a copy left open here would hide the worker's end of file
            if memory_fd is not None:
                os.close(memory_fd)
        self.pidfd = _open_pidfd(self.process.pid)

    def epitaph(self) -> str:
        """Why it died, as far as known."""
        if self.fatal:
            return self.fatal
        code = self.process.poll()
        if code is None:
            return "ended"  # its socket did; the exit status comes milliseconds later
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def destroy(self) -> None:
        """Kills the process and lets go of everything but the process itself."""
        self.process.kill()
        self.channel.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


def _import_path() -> str:
    """This process's import path, so that a worker imports the same modules."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)


def _open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable when the process ends; None where the system has none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old kernel, or a sandbox; the end of file has to do
        return None


class ProcessPool:
    """A `Pool` of processes.

    Args:
        spec: the backbone that every worker runs.
        workers: how many.
        in_flight: tasks a worker holds at most.
    """

    def __init__(self, spec: BackboneSpec, workers: int, in_flight: int = 1) -> None:
        self._spec = spec
        self._layout = Layout(spec.query_shape, spec.embedding_shape, in_flight)
        self._workers: list[_Worker | None] = [None] * workers
        self._wanted: list[int | None] = [None] * workers  # the generation that should run
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._woken = False
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._posted: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._out: list[Message] = []
        self._ended: list[subprocess.Popen[bytes]] = []  # killed, not yet reaped
        # Workers die with the thread that started them (prctl), and a start takes milliseconds that
        # the loop does not have: so one thread does all starts, and outlives the last worker.
        self._jobs: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._no_more_starts = threading.Event()
        self._all_ended = threading.Event()
        self._starter = threading.Thread(
            target=self._run_starter, name="codedinv-starter", daemon=True
        )
        self._starter.start()

    # ---- for the thread that owns the pool

    def start(self, worker: int, generation: int) -> None:
        self._wanted[worker] = generation
        self._jobs.put((worker, generation))

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        w = self._workers[worker]
        if w is None or w.generation != generation:
            return  # its death is on the way
        try:
            w.channel.send_array(Kind.TASK, task, w.memory_slots.pop(), query)
        except OSError as error:
            self._bury(w, w.epitaph() if w.process.poll() is not None else f"socket: {error}")

    def retire(self, worker: int, generation: int) -> None:
        if self._wanted[worker] == generation:
            self._wanted[worker] = None
        w = self._workers[worker]
        if w is not None and w.generation == generation:
            self._let_go(w)

    def poll(self, timeout_s: float | None) -> list[Message]:
        if self._out:
            timeout_s = 0.0
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._wake_read.recv(4096)
                # After reading, or the byte of a wake in between would be read with the flag left
                # set, and no later wake would write. What that wake is about is looked at below.
                self._woken = False
            else:
                self._hear(key.data, is_over=key.fd == key.data.pidfd)
        while not self._posted.empty():
            self._posted.get()()
        if self._ended:
            self._ended = [p for p in self._ended if p.poll() is None]
        out, self._out = self._out, []
        return out

    def close(self, timeout_s: float) -> None:
        self._jobs.put(None)
        self._no_more_starts.wait()
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
        self._all_ended.set()
        self._starter.join()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    # ---- for any thread

    def wake(self) -> None:
        if not self._woken:
            self._woken = True
            with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody is left
                self._wake_write.send(b"\0")

    def kill(self, worker: int) -> None:
        w = self._workers[worker]
        if w is not None:
            w.process.kill()

    def slow(self, worker: int, delay_s: float) -> None:
        self._post(lambda: self._set_faults(worker, delay_s=delay_s))

    def hang(self, worker: int) -> None:
        self._post(lambda: self._set_faults(worker, hang=True))

    def crash(self, worker: int) -> None:
        self._post(lambda: self._set_faults(worker, crash=True))

    def fail(self, worker: int, message: str) -> None:
        self._post(lambda: self._set_faults(worker, error=message))

    def corrupt(self, worker: int, noise: float) -> None:
        self._post(lambda: self._set_faults(worker, corrupt=noise))

    def pids(self) -> list[int | None]:
        return [w.process.pid if w is not None else None for w in self._workers]

    # ---- within

    def _post(self, job: Callable[[], None]) -> None:
        self._posted.put(job)
        self.wake()

    def _run_starter(self) -> None:
        while (job := self._jobs.get()) is not None:
            index, generation = job
            try:
                worker = _Worker(index, generation, self._spec, self._layout)
            except OSError as error:  # no memory, no descriptors, no processes left
                died = Died(index, generation, f"could not be started: {error}")
                self._post(lambda died=died: self._out.append(died))  # type: ignore[misc]
            else:
                self._post(lambda worker=worker: self._adopt(worker))  # type: ignore[misc]
        self._no_more_starts.set()
        self._all_ended.wait()

    def _adopt(self, w: _Worker) -> None:
        if self._wanted[w.index] != w.generation:
            w.destroy()  # retired while it was being started
            self._ended.append(w.process)
            return
        self._workers[w.index] = w
        self._selector.register(w.channel.sock, selectors.EVENT_READ, w)
        if w.pidfd is not None:
            self._selector.register(w.pidfd, selectors.EVENT_READ, w)

    def _hear(self, w: _Worker, is_over: bool) -> None:
        """Takes what a worker sent; if it is over, all that it sent before."""
        if self._workers[w.index] is not w:
            return  # both its descriptors were ready, and the first told of its end
        while True:
            try:
                message = w.channel.receive()
            except BlockingIOError:
                break
            except OSError:
                message = None
            if message is None:
                is_over = True
                break
            self._take(w, message)
        if is_over:
            self._bury(w, w.epitaph())

    def _take(self, w: _Worker, message: Received) -> None:
        if message.kind is Kind.READY:
            self._out.append(Ready(w.index, w.generation))
        elif message.kind is Kind.FATAL:
            w.fatal = message.text
        else:
            w.memory_slots.append(message.slot)
            if message.array is not None:
                self._out.append(Result(w.index, w.generation, message.task, message.array))
            else:
                self._out.append(TaskError(w.index, w.generation, message.task, message.text))

    def _bury(self, w: _Worker, reason: str) -> None:
        self._out.append(Died(w.index, w.generation, reason))
        self._let_go(w)

    def _let_go(self, w: _Worker) -> None:
        self._workers[w.index] = None
        for fd in (w.channel.sock, w.pidfd):
            if fd is not None and self._is_registered(fd):
                self._selector.unregister(fd)
        w.destroy()
        self._ended.append(w.process)

    def _is_registered(self, fd: socket.socket | int) -> bool:
        try:
            self._selector.get_key(fd)
        except (KeyError, ValueError):  # ValueError: the socket is closed
            return False
        return True

    def _set_faults(self, worker: int, **changes: object) -> None:
        w = self._workers[worker]
        if w is None:
            return
        w.faults = replace(w.faults, **changes)  # type: ignore[arg-type]
        with contextlib.suppress(OSError):  # it is dying, or hangs already
            w.channel.send_text(Kind.FAULTS, w.faults.to_json())
