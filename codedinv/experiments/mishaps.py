"""The same mishaps in every run: the same workers, by the same arrivals.

Which worker holds a query at a moment differs from run to run, and a kill that hits an idle worker
costs nobody anything. So the victim is fixed. From its arrival on it stands still (SIGSTOP), and it
is killed as soon as it holds a query: at once if it was at work, else with the next one that it is
given. So in every run somebody's query dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

_WATCH_S = 0.003  # after each query; it is at its worker in a millisecond
_LOOK_EVERY_S = 0.0003  # each look is a turn of the server's loop
_PATIENCE = 50  # queries; with ten workers the victim gets every tenth


class Server(Protocol):
    """What mishaps need of a server."""

    pool: Any

    def stats(self) -> Any: ...


@dataclass(frozen=True)
class Mishap:
    """What is done to one worker.

    Attributes:
        kind: "kill" (SIGKILL) or "slow".
        worker: its index.
        after: number of the query after which it is due.
        seconds: by which every further task is slowed.
    """

    kind: Literal["kill", "slow"]
    worker: int
    after: int
    seconds: float = 0.0

    def __str__(self) -> str:
        return "SIGKILL" if self.kind == "kill" else f"{1e3 * self.seconds:.0f} ms slow"


@dataclass(frozen=True)
class Struck:
    """A mishap that has happened.

    Attributes:
        mishap: which.
        query: number of the query after which it happened.
        at_work: did the worker hold a query?
    """

    mishap: Mishap
    query: int
    at_work: bool


class Mishaps:
    """Does what is planned, as the traffic tells which query was just sent.

    Args:
        server: with a pool that can be broken.
        planned: what to do.
        tell: called with each mishap that has just happened.
    """

    def __init__(
        self, server: Server, planned: Sequence[Mishap], tell: Callable[[Mishap], None]
    ) -> None:
        self._server, self._tell = server, tell
        self._pending = list(planned)
        self.struck: list[Struck] = []

    def after_query(self, number: int) -> None:
        """Called by the sender after each query; takes a few milliseconds at most."""
        for mishap in [m for m in self._pending if number >= m.after]:
            if mishap.kind == "slow":
                self._server.pool.slow(mishap.worker, mishap.seconds)
                at_work = self._holds_work(mishap.worker)
            else:
                if number == mishap.after:
                    self._server.pool.pause(mishap.worker)
                at_work = self._watch(mishap.worker)
                if not at_work and number < mishap.after + _PATIENCE:
                    continue
                self._server.pool.kill(mishap.worker)
            self._pending.remove(mishap)
            self.struck.append(Struck(mishap, number, at_work))
            self._tell(mishap)

    def _watch(self, worker: int) -> bool:
        """Is it given a query within the next few milliseconds, or has it one?"""
        give_up = time.monotonic() + _WATCH_S
        while not (found := self._holds_work(worker)) and time.monotonic() < give_up:
            time.sleep(_LOOK_EVERY_S)
        return found

    def _holds_work(self, worker: int) -> bool:
        return bool(self._server.stats().workers[worker] == "busy")
