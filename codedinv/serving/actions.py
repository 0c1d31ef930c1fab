"""What the core asks of whoever runs it; the actions of one event are to be done in order."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from codedinv.schemes.scheme import Source

Failure = Literal["deadline_exceeded", "unrecoverable", "closed", "cancelled"]
Refusal = Literal["overloaded", "closed"]


class Restart(NamedTuple):
    """Start this generation of a worker now; the first start is one too."""

    worker: int
    generation: int
    version: int


class Kill(NamedTuple):
    """End this generation of a worker, by force: it hangs, errs, lies or is replaced."""

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


class Cancel(NamedTuple):
    """Tell a worker to drop a task if it has not begun it; then `TaskDropped` is the answer."""

    worker: int
    generation: int
    task: int


class Encode(NamedTuple):
    """Make the parity queries of a closed group; answer with `Encoded` or `EncodeFailed`.

    `members` are the queries in slot order; None: a free slot, to be filled with an anchor whose
    embedding goes to the group's decoder at once.
    """

    group: int
    version: int
    members: tuple[Any | None, ...]


class Absorb(NamedTuple):
    """Push a result to the group's decoder."""

    group: int
    version: int
    slot: int
    result: Any


class Resolve(NamedTuple):
    """Answer a query.

    From `result`; where that is None from what the decoder recovers, or with source "fallback" from
    `query`'s own payload at the front end.
    """

    query: int
    source: Source
    group: int
    version: int
    slot: int
    result: Any | None


class Correct(NamedTuple):
    """The exact result of a query that was answered otherwise before."""

    query: int
    version: int
    result: Any


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
    """All n results of a group are in: check them against each other; answer with `Inspected`.

    `full`: no slot holds an anchor, as `Policy.verify` wants it.
    """

    group: int
    version: int
    full: bool


class Compare(NamedTuple):
    """A slot of an inconsistent group was run again: compare with its earlier runs; answer with
    `Compared`. Run 0 is the result that `Absorb` gave."""

    group: int
    version: int
    slot: int
    run: int
    result: Any


class Retire(NamedTuple):
    """Nothing more will come for this group; its decoder may be used again."""

    group: int


class Reloaded(NamedTuple):
    """Every worker and group is of this version now; older ones can be forgotten."""

    version: int


class ReloadFailed(NamedTuple):
    """The first worker of a version died before it was ready; the old version goes on."""

    version: int
    reason: str


class SetTimer(NamedTuple):
    """Send a `Timer` at this time. A newer SetTimer replaces an older one."""

    at: float


class Drained(NamedTuple):
    """After `CloseRequested`: every query has ended."""


Action = (
    Restart
    | Kill
    | Dispatch
    | Cancel
    | Encode
    | Absorb
    | Resolve
    | Correct
    | Fail
    | Reject
    | Inspect
    | Compare
    | Retire
    | Reloaded
    | ReloadFailed
    | SetTimer
    | Drained
)
