"""Alarms of the core, cheap to set and to cancel: hardly one in a thousand rings."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any


class Alarm:
    """One pending call of `key` with `subject`; cancelled by `Timers.cancel`."""

    __slots__ = ("at", "key", "order", "subject")

    def __init__(self, at: float, order: int, key: str, subject: Any) -> None:
        self.at = at
        self.order = order  # ties are broken by age, so that a replay is exact
        self.key: str | None = key
        self.subject = subject

    def __lt__(self, other: Alarm) -> bool:
        return (self.at, self.order) < (other.at, other.order)


class Timers:
    """Alarms in order of time.

    Those of one key are mostly set in the order in which they are to ring, for they are a fixed
    time ahead: each key has a queue for these, and one heap has the rest. Cancelled ones stay where
    they are until they come to the front or outnumber the rest.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Alarm]] = {}
        self._heap: list[Alarm] = []
        self._order = 0
        self._count = 0  # of all alarms
        self._cancelled = 0  # of these

    def set(self, at: float, key: str, subject: Any) -> Alarm:
        """Adds an alarm at a time in seconds."""
        self._order += 1
        self._count += 1
        alarm = Alarm(at, self._order, key, subject)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        if not queue or queue[-1].at <= at:
            queue.append(alarm)
        else:
            heapq.heappush(self._heap, alarm)
        return alarm

    def cancel(self, alarm: Alarm | None) -> None:
        """Takes an alarm back; one that rang, was cancelled before or is None is left alone."""
        if alarm is None or alarm.key is None:
            return
        alarm.key = alarm.subject = None
        self._cancelled += 1
        if self._cancelled > self._count // 2 + 64:
            self._sweep()

    def due(self, now: float) -> tuple[str, Any] | None:
        """Removes and returns the first alarm at or before `now`, or None."""
        first = self._first()
        if first is None or first[0].at > now:
            return None
        alarm = first.popleft() if isinstance(first, deque) else heapq.heappop(first)
        self._count -= 1
        key, subject = alarm.key, alarm.subject
        alarm.key = alarm.subject = None
        return key or "", subject

    def next(self) -> float | None:
        """Time of the first alarm, or None."""
        first = self._first()
        return None if first is None else first[0].at

    def _first(self) -> deque[Alarm] | list[Alarm] | None:
        """Where the alarm is that rings first; those before it that were cancelled are gone."""
        first: deque[Alarm] | list[Alarm] | None = None
        for queue in self._queues.values():
            while queue and queue[0].key is None:
                queue.popleft()
                self._forget_one()
            if queue and (first is None or queue[0] < first[0]):
                first = queue
        heap = self._heap
        while heap and heap[0].key is None:
            heapq.heappop(heap)
            self._forget_one()
        return heap if heap and (first is None or heap[0] < first[0]) else first

    def _forget_one(self) -> None:
        self._count -= 1
        self._cancelled -= 1

    def _sweep(self) -> None:
        """Removes all that were cancelled."""
        for key, queue in self._queues.items():
            self._queues[key] = deque(alarm for alarm in queue if alarm.key is not None)
        self._heap = [alarm for alarm in self._heap if alarm.key is not None]
        heapq.heapify(self._heap)
        self._count -= self._cancelled
        self._cancelled = 0
