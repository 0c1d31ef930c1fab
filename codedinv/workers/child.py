"""The worker process: `python -m codedinv.workers.child CONFIG`, started by `ProcessPool` only.

It imports numpy and ONNX Runtime, and torch only where a backbone runs on torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from functools import partial
from typing import Any

from codedinv.model.runtimes import choose_runtime
from codedinv.workers.backbone import BackboneSpec, Place, load_all, load_backbone
from codedinv.workers.batches import Batching, Queue, results_of
from codedinv.workers.channel import Channel, Kind, Layout, Parcel, Received
from codedinv.workers.faults import Faults, FaultyBackbones

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serves tasks until the socket ends."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    _die_with(config["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which drains
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # it came blocked, see `Starter`
    specs = {name: BackboneSpec.from_json(text) for name, text in config["specs"].items()}
    embedding_shape = next(iter(specs.values())).embedding_shape
    queries = tuple(spec.query_shape for spec in specs.values())
    layout = Layout(queries, embedding_shape, config["slots"])
    batching = Batching(*config["batching"])
    memory_fd = config["memory_fd"]
    channel = Channel(socket.socket(fileno=config["fd"]), memory_fd, layout, is_worker=True)
    if memory_fd is not None:
        os.close(memory_fd)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
        try:
            loaded = load_all(specs, Place(config["device"], batching.max_batch))
        except Exception as error:
            channel.send_text(Kind.FATAL, f"{type(error).__name__}: {error}")
            return 1
        backbones = FaultyBackbones(
            loaded, time.sleep, _crash, lambda folder: load_backbone(folder, choose_runtime("auto"))
        )
        queue: Queue[Received] = Queue(batching, batching.limits(loaded), config["slots"])
        channel.send_text(Kind.READY)
        Servant(channel, backbones, list(specs), layout.embedding_shape, queue).serve()
    return 0


class Servant:
    """Does tasks, batch after batch.

    Before each batch it reads all that has come, so that a cancellation overtakes the tasks that it
    is about, and a fault those that have not begun.

    Args:
        channel: to the pool.
        backbones: what to run.
        models: their names, by the index that a task carries.
        embedding_shape: of a result.
        queue: what waits, empty.
    """

    def __init__(
        self,
        channel: Channel,
        backbones: FaultyBackbones,
        models: list[str],
        embedding_shape: tuple[int, ...],
        queue: Queue[Received],
    ) -> None:
        self._channel = channel
        self._backbones = backbones
        self._models = models
        self._embedding_shape = embedding_shape
        self._queue = queue

    def serve(self) -> None:
        """Works until the end of file.

        Raises:
            OSError: the pool is gone.
        """
        while self._read_ahead():
            self._work(*self._queue.take())

    def _read_ahead(self) -> bool:
        """Takes what has come until a batch is to begin; False at end of file."""
        while True:
            wait_s = self._queue.wait_s(time.monotonic())
            if wait_s:
                select.select([self._channel.sock], (), (), wait_s)
            try:
                messages = self._channel.receive(wait=wait_s is None)
            except BlockingIOError:
                if wait_s == 0.0:
                    return True
                continue
            if messages is None:
                return False
            for message in messages:
                self._take(message)

    def _take(self, message: Received) -> None:
        match message.kind:
            case Kind.TASK:
                model = self._models[message.model]
                self._queue.put(message.task, model, message, time.monotonic())
            case Kind.FAULTS:
                self._backbones.faults = Faults.from_json(message.text)
            case Kind.CANCEL:
                task = self._queue.cancel(message.task)
                if task is not None:  # else it is done
                    self._channel.send_text(Kind.DROPPED, "", task.task, task.slot)

    def _work(self, model: str, batch: list[Received]) -> None:
        queries = [task.array for task in batch if task.array is not None]
        results = results_of(partial(self._backbones, model), queries)
        for task, result in zip(batch, results, strict=True):
            if not isinstance(result, BaseException) and result.shape != self._embedding_shape:
                result = ValueError(
                    f"backbone: expected an embedding {self._embedding_shape}, got {result.shape}"
                )
            if isinstance(result, BaseException):
                text = f"{type(result).__name__}: {result}"
                self._channel.send_text(Kind.ERROR, text, task.task, task.slot)
            else:
                self._channel.send_arrays(
                    Kind.RESULT, [Parcel(task.task, task.slot, task.model, result)]
                )


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends, in whatever way.

    The end of file on the socket tells it too, but not while a long task runs. The kernel means the
    thread that started this process, which `Starter` keeps for that reason.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call above
        sys.exit(1)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
