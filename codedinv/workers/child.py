"""The worker process: `python -m codedinv.workers.child CONFIG`, started by `ProcessPool` only.

It imports numpy and ONNX Runtime, and torch only where a backbone runs on torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import time
from collections import OrderedDict
from typing import Any

from codedinv.model.runtimes import choose_runtime
from codedinv.workers.backbone import Array, BackboneSpec, load_all, load_backbone
from codedinv.workers.channel import Channel, Kind, Layout, Received
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
    memory_fd = config["memory_fd"]
    channel = Channel(socket.socket(fileno=config["fd"]), memory_fd, layout, is_worker=True)
    if memory_fd is not None:
        os.close(memory_fd)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
        try:
            loaded = load_all(specs)
        except Exception as error:
            channel.send_text(Kind.FATAL, f"{type(error).__name__}: {error}")
            return 1
        backbones = FaultyBackbones(
            loaded, time.sleep, _crash, lambda folder: load_backbone(folder, choose_runtime("auto"))
        )
        channel.send_text(Kind.READY)
        Servant(channel, backbones, list(specs), layout.embedding_shape).serve()
    return 0


class Servant:
    """Does tasks one after the other.

    Before each it reads all that has come, so that a cancellation overtakes the tasks that it is
    about, and a fault those that have not begun.

    Args:
        channel: to the pool.
        backbones: what to run.
        models: their names, by the index that a task carries.
        embedding_shape: of a result.
    """

    def __init__(
        self,
        channel: Channel,
        backbones: FaultyBackbones,
        models: list[str],
        embedding_shape: tuple[int, ...],
    ) -> None:
        self._channel = channel
        self._backbones = backbones
        self._models = models
        self._embedding_shape = embedding_shape
        self._waiting: OrderedDict[int, Received] = OrderedDict()  # by task

    def serve(self) -> None:
        """Works until the end of file.

        Raises:
            OSError: the pool is gone.
        """
        while self._read_ahead():
            _, task = self._waiting.popitem(last=False)
            self._work(task)

    def _read_ahead(self) -> bool:
        """Takes what has come, and waits for a task where there is none; False at end of file."""
        while True:
            try:
                message = self._channel.receive(wait=not self._waiting)
            except BlockingIOError:
                return True
            if message is None:
                return False
            match message.kind:
                case Kind.TASK:
                    self._waiting[message.task] = message
                case Kind.FAULTS:
                    self._backbones.faults = Faults.from_json(message.text)
                case Kind.CANCEL:
                    task = self._waiting.pop(message.task, None)
                    if task is not None:  # else it is done
                        self._channel.send_text(Kind.DROPPED, "", task.task, task.slot)

    def _work(self, message: Received) -> None:
        try:
            result = self._run(message)
        except BaseException as error:  # SystemExit is no reason to leave the others unserved
            text = f"{type(error).__name__}: {error}"
            self._channel.send_text(Kind.ERROR, text, message.task, message.slot)
        else:
            self._channel.send_array(Kind.RESULT, message.task, message.slot, result)

    def _run(self, message: Received) -> Array:
        if message.array is None:
            raise ValueError("a task without a query")
        result = self._backbones(self._models[message.model], message.array)
        if result.shape != self._embedding_shape:
            raise ValueError(
                f"backbone: expected an embedding {self._embedding_shape}, got {result.shape}"
            )
        return result


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
