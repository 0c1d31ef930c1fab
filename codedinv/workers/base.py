"""What pools of workers have in common: one thread waits for all of a pool's descriptors, any
thread may wake it, and a forked copy is kept from doing harm."""

from __future__ import annotations

import os
import selectors
from collections import deque
from typing import NoReturn, TypeVar

from codedinv.errors import CodedInvError
from codedinv.workers.bell import Bell
from codedinv.workers.pool import Message, Pool

_LONGEST_WAIT_S = 1e6  # epoll counts milliseconds in 32 bits
_Models = TypeVar("_Models")


class WatchedPool(Pool):
    """Base of all pools: workers by index, and one descriptor to wait for.

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

    def pids(self) -> list[int | None]:
        return [None] * self._count

    # ---- for the pools

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


class MailboxPool(WatchedPool):
    """Base of pools whose workers' messages come from other threads of this process."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._out: deque[Message] = deque()

    def poll(self, timeout_s: float | None) -> list[Message]:
        self._check()
        if self._is_closed:
            return []
        self._select(timeout_s)
        out = [self._out.popleft() for _ in range(len(self._out))]
        return [message for message in out if self._is_wanted(message)]

    def _say(self, message: Message) -> None:
        """Lets the next `poll` return it; for any thread."""
        self._out.append(message)
        self._bell.ring()


class Versions(dict[int, _Models]):
    """What the workers of each version run; to look for another is a ValueError naming those."""

    def provide(self, version: int, models: _Models) -> None:
        """Adds a version.

        Raises:
            ValueError: it is there, and runs something else.
        """
        if self.setdefault(version, models) != models:
            raise ValueError(f"version: {version} is taken by other models")

    def __missing__(self, version: int) -> NoReturn:
        raise ValueError(f"version: expected one of {sorted(self)}, got {version}")
