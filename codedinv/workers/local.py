"""What pools of workers on this machine have in common: one thread waits for all of a pool's
descriptors, any thread may wake it or break a worker, and a forked copy is kept from doing harm."""

from __future__ import annotations

import math
import os
import selectors
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codedinv.errors import CodedInvError
from codedinv.workers.backbone import Backbone
from codedinv.workers.bell import Bell
from codedinv.workers.pool import FaultInjection, Message, Pool

_LONGEST_WAIT_S = 1e6  # epoll counts milliseconds in 32 bits


class LocalPool(Pool, FaultInjection):
    """Base of `ProcessPool` and `ThreadPool`.

    Args:
        workers: how many indices there are.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        self._count = workers
        self._wanted: list[int | None] = [None] * workers  # the generation that is listened to
        self._pid = os.getpid()
        self._is_closed = False
        self._bell = Bell()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ, None)

    # ---- for any thread

    def wake(self) -> None:
        if not self._is_forked():
            self._bell.ring()

    def fileno(self) -> int:
        return self._selector.fileno()

    def slow(self, worker: int, delay_s: float) -> None:
        if not delay_s >= 0:
            raise ValueError(f"delay_s: expected 0 or more seconds, got {delay_s}")
        self._set_faults(worker, delay_s=float(delay_s))

    def hang(self, worker: int) -> None:
        self._set_faults(worker, hang=True)

    def crash(self, worker: int) -> None:
        self._set_faults(worker, crash=True)

    def fail(self, worker: int, message: str) -> None:
        self._set_faults(worker, error=message)

    def corrupt(self, worker: int, noise: float) -> None:
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"noise: expected a finite number of 0 or more, got {noise}")
        self._set_faults(worker, corrupt=float(noise))

    def stick(self, worker: int, stuck: bool = True) -> None:
        self._set_faults(worker, stuck=stuck)

    def flip(self, worker: int, bit: int | None = 30) -> None:
        if bit is not None and not 0 <= bit <= 31:
            raise ValueError(f"bit: expected 0..31 or None, got {bit}")
        self._set_faults(worker, flip=bit)

    def impersonate(self, worker: int, backbone: str | Path | Backbone | None) -> None:
        self._set_faults(worker, backbone=self._other_backbone(backbone))

    # ---- for the pools

    def _other_backbone(self, backbone: str | Path | Backbone | None) -> str | Backbone | None:
        """What `Faults.backbone` is to be.

        Raises:
            TypeError: these workers cannot run it.
        """
        return os.path.abspath(backbone) if isinstance(backbone, str | Path) else backbone

    def _set_faults(self, worker: int, **changes: Any) -> None:
        """Changes a worker's `Faults`."""
        raise NotImplementedError

    def _select(self, timeout_s: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready among the descriptors, after at most this long; the bell is cleared."""
        if timeout_s is not None:
            timeout_s = min(timeout_s, _LONGEST_WAIT_S)
        ready = self._selector.select(timeout_s)
        if not ready:
            # If this process was stopped (SIGSTOP, a paused container) while it waited, CPython
            # finds the time used up and reports nothing, whatever has come meanwhile.
            ready = self._selector.select(0.0)
        if any(key.data is None for key, _ in ready):
            self._bell.clear()
        return [(key, events) for key, events in ready if key.data is not None]

    def _check(self, worker: int | None = None) -> None:
        """Refuses a forked copy of the pool, and a worker that there is not."""
        if self._is_forked():
            raise CodedInvError(
                f"this pool belongs to process {self._pid}; a forked copy (here: process "
                f"{os.getpid()}) cannot use its workers and must make a pool of its own"
            )
        if worker is not None and not 0 <= worker < self._count:
            raise ValueError(f"worker: expected 0..{self._count - 1}, got {worker}")

    def _is_wanted(self, message: Message) -> bool:
        """Is it from a worker that was not retired since?"""
        return self._wanted[message.worker] == message.generation

    def _is_forked(self) -> bool:
        return os.getpid() != self._pid

    def _close_descriptors(self) -> None:
        self._selector.close()
        self._bell.close()


def check_version(version: int, versions: Mapping[int, Any]) -> None:
    """Refuses a version that is not provided.

    Raises:
        ValueError: it names those that are.
    """
    if version not in versions:
        raise ValueError(f"version: expected one of {sorted(versions)}, got {version}")
