"""Queries, tasks and coding groups: what the core remembers."""

from __future__ import annotations

import enum
from typing import Any, Literal, Protocol

from codedinv.schemes.scheme import Plan, Source
from codedinv.serving.timers import Alarm


class SlotState(enum.Enum):
    """Where a slot of a group stands."""

    FREE = enum.auto()  # no query has joined yet, or a parity that is not asked for
    PLANNED = enum.auto()  # a parity that is asked for, and made once no data waits
    ENCODING = enum.auto()  # the parity is being made
    WAITING = enum.auto()  # its attempts wait for a worker
    SENT = enum.auto()  # an attempt is at a worker
    ARRIVED = enum.auto()  # its result is in; an anchor's is from the start
    LOST = enum.auto()  # its last attempt was lost or given up, and no other is to follow for now


# Names of their own: to look a member up in its class takes 0.1 us, and a query does so 30 times.
FREE, PLANNED, ENCODING, WAITING, SENT, ARRIVED, LOST = SlotState
PENDING = (PLANNED, ENCODING, WAITING, SENT)

NOBODY: frozenset[int] = frozenset()

Role = Literal["first", "retry", "hedge"]


class Query:
    """One accepted query until it ends."""

    __slots__ = (
        "alarm",
        "bucket",
        "deadline",
        "done",
        "doubt",
        "group",
        "id",
        "last_call",
        "payload",
        "since",
        "slot",
        "source",
    )

    def __init__(
        self,
        id: int,
        payload: Any,
        deadline: float | None,
        bucket: int = 0,
        doubt: float = 0.0,
    ) -> None:
        self.id = id
        self.payload = payload
        self.deadline = deadline
        self.bucket = bucket
        self.doubt = doubt
        self.done = False
        self.since = 0.0  # when it was submitted
        self.source: Source | None = None  # of its answer
        self.last_call = False  # take the best answer there is, from now on
        self.alarm: Alarm | None = None
        self.group: Group
        self.slot: int


class _Task:
    """Something that one worker is to do once."""

    __slots__ = ("id", "lane", "sent_at", "version", "worker")

    def __init__(self, id: int, version: int) -> None:
        self.id = id
        self.version = version
        self.lane: int | None = None  # while it waits for a worker
        self.worker: int | None = None  # once it was sent
        self.sent_at = 0.0  # in attended time


class Attempt(_Task):
    """One sending of one slot to one worker. A lost one is never revived; its slot gets another."""

    __slots__ = ("alarm", "group", "role", "slot")

    def __init__(self, id: int, group: Group, slot: int, role: Role) -> None:
        self.id = id  # what `_Task` does, at half the cost
        self.version = group.version
        self.lane = self.worker = None
        self.sent_at = 0.0
        self.group = group
        self.slot = slot
        self.role = role
        self.alarm: Alarm | None = None  # when it is hedged


class Errand(_Task):
    """A task that no caller waits for: the probe of a worker, or a slot run again to find out who
    lies. `purpose` is who asked for it and is told how it ends."""

    __slots__ = ("avoid", "model", "payload", "purpose", "run", "slot")

    def __init__(
        self,
        id: int,
        version: int,
        model: str,
        payload: Any,
        purpose: Purpose,
        avoid: frozenset[int] = frozenset(),
        slot: int = 0,
        run: int = 0,
    ) -> None:
        super().__init__(id, version)
        self.model = model
        self.payload = payload
        self.purpose = purpose
        self.avoid = avoid
        self.slot = slot
        self.run = run


Task = Attempt | Errand


class Purpose(Protocol):
    """Who asks for errands."""

    def errand_done(self, errand: Errand, worker: Any, result: Any) -> None: ...
    def errand_failed(self, errand: Errand, worker: Any) -> None: ...
    def errand_lost(self, errand: Errand) -> None: ...


class Group:
    """One coding group: its slots, and the live attempts of each."""

    __slots__ = (
        "alarm",
        "answerers",
        "arrived",
        "attempts",
        "bucket",
        "closed",
        "closes_at",
        "copies",
        "erred",
        "grace_over",
        "id",
        "inspected",
        "opened_at",
        "payloads",
        "plan",
        "queries",
        "recovered",
        "results",
        "sends",
        "states",
        "unanswered",
        "version",
    )

    def __init__(self, id: int, plan: Plan, version: int, bucket: int = 0) -> None:
        self.id = id
        self.plan = plan
        self.version = version
        self.bucket = bucket
        self.queries: list[Query] = []
        self.states = [FREE] * plan.n
        self.attempts: list[list[Attempt]] = [[] for _ in range(plan.n)]
        self.payloads: list[Any] = [None] * plan.n
        self.sends = [0] * plan.n  # hedges are not counted
        self.erred: list[frozenset[int]] = [NOBODY] * plan.n  # workers that failed the slot
        # Who gave each result: (worker, generation); None for an anchor.
        self.answerers: list[tuple[int, int] | None] = [None] * plan.n
        self.results: dict[int, Any] = {}  # while open: what the decoder gets at its close
        self.copies: dict[int, Query] = {}  # guided: slot -> the query that it carries
        self.arrived = 0
        self.unanswered = 0
        self.closed = False
        self.closes_at = 0.0
        self.grace_over = False
        self.inspected = False
        self.recovered = False  # an answer was made of others' results
        self.opened_at = 0.0
        self.alarm: Alarm | None = None  # while open: its wait; once decodable: its grace

    def join(self, query: Query) -> None:
        """Gives the query the next free data slot."""
        query.group, query.slot = self, len(self.queries)
        self.payloads[query.slot] = query.payload
        self.queries.append(query)
        self.unanswered += 1

    def take_in(self, other: Group) -> None:
        """Moves all members of another open group here, with their attempts and results."""
        for query in other.queries:
            old, new = query.slot, len(self.queries)
            query.group, query.slot = self, new
            self.queries.append(query)
            self.states[new] = other.states[old]
            self.attempts[new] = other.attempts[old]
            for attempt in self.attempts[new]:
                attempt.group, attempt.slot = self, new
            self.payloads[new] = other.payloads[old]
            self.sends[new] = other.sends[old]
            self.erred[new] = other.erred[old]
            self.answerers[new] = other.answerers[old]
            if old in other.results:
                self.results[new] = other.results[old]
        self.arrived += other.arrived
        self.unanswered += other.unanswered
        self.closes_at = min(self.closes_at, other.closes_at)

    def waits_for(self, slot: int) -> bool:
        """Is it a data slot whose query has not ended?"""
        return slot < len(self.queries) and not self.queries[slot].done

    def is_full(self) -> bool:
        """Does every data slot hold a query, none an anchor?"""
        return len(self.queries) == self.plan.k

    def holders(self) -> frozenset[int]:
        """Workers that hold a slot of this group: one they have not answered yet."""
        found = [a.worker for tried in self.attempts for a in tried if a.worker is not None]
        return frozenset(found) if found else NOBODY

    def lost_queries(self) -> list[int]:
        """Slots of queries that have not ended and whose own result will not come."""
        states = self.states
        if LOST not in states:
            return []
        return [q.slot for q in self.queries if not q.done and states[q.slot] is LOST]

    def pending(self) -> int:
        """How many slots may still give a result by themselves."""
        count = 0
        for state in self.states:
            if state in PENDING:
                count += 1
        return count

    def is_decodable(self) -> bool:
        """Are as many results in as it takes?"""
        return self.arrived >= self.plan.needed

    def parity_can_help(self) -> bool:
        """Could all that is still under way give a query its answer before its own result?"""
        possible = self.arrived + self.pending()
        if possible > self.plan.needed:
            return self.unanswered > 0
        return possible == self.plan.needed and bool(self.lost_queries())

    def finished(self) -> bool:
        """Is nobody waiting for it, and nothing of it under way?"""
        if not self.closed or self.unanswered or any(self.attempts):
            return False  # a hedge's loser may be at a worker still
        return not self.pending()
