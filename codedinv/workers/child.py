"""The worker process: `python -m codedinv.workers.child CONFIG`, started by `ProcessPool` only.

It imports numpy and ONNX Runtime, and torch only where the backbone runs on torch.
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
from typing import Any

import numpy as np

from codedinv.workers.backbone import Backbone, BackboneSpec
from codedinv.workers.channel import Channel, Kind, Layout, Received
from codedinv.workers.faults import Faults, FaultyBackbone

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serves tasks until the socket ends."""
    config: dict[str, Any] = json.loads(sys.argv[1])
    _die_with(config["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which drains
    spec = BackboneSpec.from_json(config["spec"])
    layout = Layout(spec.query_shape, spec.embedding_shape, config["in_flight"])
    memory_fd = config["memory_fd"]
    channel = Channel(socket.socket(fileno=config["fd"]), memory_fd, layout, is_worker=True)
    if memory_fd is not None:
        os.close(memory_fd)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone
        try:
            backbone = _load(spec)
        except Exception as error:
            channel.send_text(Kind.FATAL, f"{type(error).__name__}: {error}")
            return 1
        channel.send_text(Kind.READY)
        _serve(channel, FaultyBackbone(backbone, time.sleep, _crash), spec.embedding_shape)
    return 0


def _load(spec: BackboneSpec) -> Backbone:
    """Loads the backbone and runs it once: a worker that says it is ready has answered."""
    backbone = spec.load()
    got = backbone(np.zeros(spec.query_shape, np.float32)).shape
    if got != spec.embedding_shape:
        raise ValueError(f"backbone: expected embeddings {spec.embedding_shape}, got {got}")
    return backbone


def _serve(channel: Channel, backbone: FaultyBackbone, shape: tuple[int, ...]) -> None:
    while (message := channel.receive()) is not None:
        if message.kind is Kind.FAULTS:
            backbone.faults = Faults.from_json(message.text)
        elif message.kind is Kind.TASK:
            _work(channel, backbone, message, shape)


def _work(
    channel: Channel, backbone: FaultyBackbone, message: Received, shape: tuple[int, ...]
) -> None:
    try:
        if message.array is None:
            raise ValueError("a task without a query")
        result = backbone(message.array)
        if result.shape != shape:
            raise ValueError(f"backbone: expected an embedding {shape}, got {result.shape}")
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        channel.send_text(Kind.ERROR, text, message.task, message.slot)
    else:
        channel.send_array(Kind.RESULT, message.task, message.slot, result)


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends, in whatever way.

    The end of file on the socket tells it too, but not while a long task runs. The kernel means the
    thread that started this process, which `ProcessPool` keeps for that reason.
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
