"""What happens to the core. Every event carries its time in seconds, of any one monotonic clock.

Queries, parity queries and results are opaque handles: the core passes them on and never looks.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Opened(NamedTuple):
    """The server starts; the first of all events."""

    time: float


class Submitted(NamedTuple):
    """A caller's query. `deadline` is a time, not a duration; None: it has none."""

    time: float
    query: int
    payload: Any
    deadline: float | None


class Encoded(NamedTuple):
    """The answer to `Encode`: one payload per parity slot."""

    time: float
    group: int
    parities: tuple[Any, ...]


class ResultArrived(NamedTuple):
    """A worker finished a task."""

    time: float
    worker: int
    generation: int
    task: int
    result: Any


class TaskFailed(NamedTuple):
    """A worker is well but could not do this task, or its result is unusable (NaN, wrong size)."""

    time: float
    worker: int
    generation: int
    task: int
    reason: str


class WorkerDied(NamedTuple):
    """A worker process ended, or could not be started."""

    time: float
    worker: int
    generation: int
    reason: str


class WorkerReady(NamedTuple):
    """A worker has loaded its backbone and takes tasks."""

    time: float
    worker: int
    generation: int


class Timer(NamedTuple):
    """The time that the last `SetTimer` asked for has come; early or extra ones do no harm."""

    time: float


class CloseRequested(NamedTuple):
    """No more queries will come; those there are end within `drain_s` seconds."""

    time: float
    drain_s: float


Event = (
    Opened
    | Submitted
    | Encoded
    | ResultArrived
    | TaskFailed
    | WorkerDied
    | WorkerReady
    | Timer
    | CloseRequested
)
