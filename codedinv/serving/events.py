"""What happens to the core. Every event carries its time in seconds, of any one monotonic clock.

Queries, parity queries and results are opaque handles: the core passes them on and never looks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from codedinv.schemes.scheme import Plan


class Opened(NamedTuple):
    """The server starts; the first of all events."""

    time: float


class Submitted(NamedTuple):
    """A caller's query.

    `deadline` is a time, not a duration; None: it has none. `bucket`: queries of one are grouped
    with each other, as long as enough come. `doubt`: how unsure the light model is of it; guided
    copies go to the most doubtful.
    """

    time: float
    query: int
    payload: Any
    deadline: float | None
    bucket: int = 0
    doubt: float = 0.0


class Cancelled(NamedTuple):
    """The caller of a query no longer wants its answer."""

    time: float
    query: int


class Encoded(NamedTuple):
    """The answer to `Encode`: one payload per parity slot."""

    time: float
    group: int
    parities: tuple[Any, ...]


class EncodeFailed(NamedTuple):
    """The other answer to `Encode`: there are no parities."""

    time: float
    group: int
    reason: str


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


class TaskDropped(NamedTuple):
    """The answer to `Cancel` where the worker had not begun the task."""

    time: float
    worker: int
    generation: int
    task: int


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


class Inspected(NamedTuple):
    """The answer to `Inspect`. `alarm`: the results contradict each other, and `slot` is the one
    that is wrong, where the code can tell; else None."""

    time: float
    group: int
    alarm: bool
    slot: int | None


class Compared(NamedTuple):
    """The answer to `Compare`: the earlier runs of this slot that agree with it; 0 is the first."""

    time: float
    group: int
    slot: int
    run: int
    agrees: tuple[int, ...]


class ReloadRequested(NamedTuple):
    """From now on `version` is to be served, one version at a time."""

    time: float
    version: int
    plan: Plan


class Stalled(NamedTuple):
    """Whoever runs the core was away (stopped, starved, suspended) for so many seconds.

    Told before what is found at the return. Workers are not blamed for that time.
    """

    time: float
    seconds: float


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
    | Cancelled
    | Encoded
    | EncodeFailed
    | ResultArrived
    | TaskFailed
    | TaskDropped
    | WorkerDied
    | WorkerReady
    | Inspected
    | Compared
    | ReloadRequested
    | Stalled
    | Timer
    | CloseRequested
)
