"""Queries, tasks and coding groups: what the core remembers."""

from __future__ import annotations

import enum
from collections import deque
from typing import Any

from codedinv.schemes.scheme import Plan
from codedinv.serving.timers import Alarm


class SlotState(enum.Enum):
    """Where a slot of a group stands."""

    FREE = enum.auto()  # no query has joined yet, or a parity that is not asked for (yet)
    ENCODING = enum.auto()  # the parity is being made
    WAITING = enum.auto()  # its task waits for a worker
    SENT = enum.auto()  # its task is at a worker
    ARRIVED = enum.auto()  # its result is in; an anchor's is from the start
    LOST = enum.auto()  # its task was lost or given up, and is not to be sent again for now


PENDING = (SlotState.ENCODING, SlotState.WAITING, SlotState.SENT)


class Query:
    """One accepted query until it ends."""

    __slots__ = ("alarm", "deadline", "done", "group", "id", "last_call", "payload", "slot")

    def __init__(self, id: int, payload: Any, deadline: float | None) -> None:
        self.id = id
        self.payload = payload
        self.deadline = deadline
        self.done = False
        self.last_call = False  # take the best answer there is, from now on
        self.alarm: Alarm | None = None
        self.group: Group
        self.slot: int


class Task:
    """One sending of one slot to one worker. A lost one is never revived; its slot gets another."""

    __slots__ = ("cancelled", "group", "id", "slot", "worker")

    def __init__(self, id: int, group: Group, slot: int) -> None:
        self.id = id
        self.group = group
        self.slot = slot
        self.worker: int | None = None
        self.cancelled = False


class Group:
    """One coding group: its slots, and the live task of each (at most one per slot)."""

    __slots__ = (
        "alarm",
        "arrived",
        "closed",
        "grace_over",
        "id",
        "payloads",
        "queries",
        "sends",
        "states",
        "tasks",
        "unanswered",
    )

    def __init__(self, id: int, plan: Plan) -> None:
        self.id = id
        self.queries: list[Query] = []
        self.states = [SlotState.FREE] * plan.n
        self.tasks: list[Task | None] = [None] * plan.n
        self.payloads: list[Any] = [None] * plan.n
        self.sends = [0] * plan.n
        self.arrived = 0
        self.unanswered = 0
        self.closed = False
        self.grace_over = False
        self.alarm: Alarm | None = None  # while open: its wait; once decodable: its grace

    def join(self, query: Query) -> None:
        """Gives the query the next free data slot."""
        query.group, query.slot = self, len(self.queries)
        self.payloads[query.slot] = query.payload
        self.queries.append(query)
        self.unanswered += 1

    def waits_for(self, slot: int) -> bool:
        """Is it a data slot whose query has not ended?"""
        return slot < len(self.queries) and not self.queries[slot].done

    def holders(self) -> list[int]:
        """Workers that hold a slot of this group: one they have not answered yet."""
        return [t.worker for t in self.tasks if t is not None and t.worker is not None]

    def finished(self) -> bool:
        """Is nobody waiting for it, and nothing of it under way?"""
        if not self.closed or self.unanswered:
            return False
        return not any(state in PENDING for state in self.states)


class Backlog:
    """Tasks that wait for a worker, first come first served. Cancelled ones are swept lazily."""

    def __init__(self) -> None:
        self._tasks: deque[Task] = deque()
        self._cancelled = 0

    def __len__(self) -> int:
        return len(self._tasks) - self._cancelled

    def append(self, task: Task) -> None:
        """Adds a task at the end."""
        self._tasks.append(task)

    def prepend(self, task: Task) -> None:
        """Adds a task that was sent before: its query is older than those waiting."""
        self._tasks.appendleft(task)

    def cancel(self, task: Task) -> None:
        """Gives up a task that waits."""
        task.cancelled = True
        self._cancelled += 1
        if self._cancelled > len(self._tasks) // 2 + 64:
            self._tasks = deque(t for t in self._tasks if not t.cancelled)
            self._cancelled = 0

    def peek(self, index: int) -> Task | None:
        """The task at `index`, counted without the cancelled at the front; None: no such."""
        tasks = self._tasks
        while tasks and tasks[0].cancelled:
            tasks.popleft()
            self._cancelled -= 1
        return tasks[index] if index < len(tasks) else None

    def remove(self, index: int) -> None:
        """Takes out the task that `peek(index)` returned."""
        del self._tasks[index]
