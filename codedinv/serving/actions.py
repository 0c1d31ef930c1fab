"""What the core asks of whoever runs it; the actions of one event are to be done in order."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from codedinv.schemes.scheme import Source

Failure = Literal["deadline_exceeded", "unrecoverable", "closed"]
Refusal = Literal["overloaded", "closed"]


class Restart(NamedTuple):
    """Start this generation of a worker now; the first start is one too."""

    worker: int
    generation: int


class Kill(NamedTuple):
    """End this generation of a worker, by force: it hangs or never became ready."""

    worker: int
    generation: int
    reason: str


class Dispatch(NamedTuple):
    """Send a task to a worker that is ready."""

    worker: int
    generation: int
    task: int
    model: str
    payload: Any


class Encode(NamedTuple):
    """Make the parity queries of a closed group; answer with `Encoded`.

    `members` are the queries in slot order; None: a free slot, to be filled with an anchor whose
    embedding goes to the group's decoder at once.
    """

    group: int
    members: tuple[Any | None, ...]


class Absorb(NamedTuple):
    """Push a result to the group's decoder."""

    group: int
    slot: int
    result: Any


class Resolve(NamedTuple):
    """Answer a query: from `result`, or where that is None from what the decoder recovers."""

    query: int
    source: Source
    group: int
    slot: int
    result: Any | None


class Fail(NamedTuple):
    """End a query with an error."""

    query: int
    failure: Failure
    reason: str


class Reject(NamedTuple):
    """Refuse a query that was just submitted."""

    query: int
    refusal: Refusal


class Inspect(NamedTuple):
    """All n results of a group are in: check them against each other for corruption."""

    group: int


class Retire(NamedTuple):
    """Nothing more will come for this group; its decoder may be used again."""

    group: int


class SetTimer(NamedTuple):
    """Send a `Timer` at this time. A newer SetTimer replaces an older one."""

    at: float


class Drained(NamedTuple):
    """After `CloseRequested`: every query has ended."""


Action = (
    Restart
    | Kill
    | Dispatch
    | Encode
    | Absorb
    | Resolve
    | Fail
    | Reject
    | Inspect
    | Retire
    | SetTimer
    | Drained
)
