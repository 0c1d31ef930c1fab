"""Alarms of the core, cheap to set and to cancel: hardly one in a thousand rings."""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any, NamedTuple


class Alarm:
    """One pending call of `key` with `subject`; cancelled by `Timers.cancel`."""

    __slots__ = ("key", "subject")

    def __init__(self, key: str, subject: Any) -> None:
        self.key: str | None = key
        self.subject = subject


class _Entry(NamedTuple):
    at: float
    order: int  # ties are broken by age, so that a replay is exact
    alarm: Alarm


class Timers:
    """Alarms in order of time.

    Those of one key are mostly set in the order in which they are to ring, for they are a fixed
    time ahead: each key has a queue for these, and one heap has the rest. Cancelled ones stay where
    they are until they come to the front or outnumber the rest.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[_Entry]] = {}
        self._heap: list[_Entry] = []
        self._order = 0
        self._count = 0  # of all entries
        self._cancelled = 0  # of these

    def set(self, at: float, key: str, subject: Any) -> Alarm:
        """Adds an alarm at a time in seconds."""
        alarm = Alarm(key, subject)
        self._order += 1
        self._count += 1
        entry = _Entry(at, self._order, alarm)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
        if not queue or queue[-1].at <= at:
            queue.append(entry)
        else:
            heapq.heappush(self._heap, entry)
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
        alarm = first[0].alarm
        if isinstance(first, deque):
            first.popleft()
        else:
            heapq.heappop(first)
        self._count -= 1
        key, subject = alarm.key, alarm.subject
        alarm.key = alarm.subject = None
        return key or "", subject

    def next(self) -> float | None:
        """Time of the first alarm, or None."""
        first = self._first()
        return None if first is None else first[0].at

    def _first(self) -> deque[_Entry] | list[_Entry] | None:
        """Where the alarm is that rings first; those before it that were cancelled are gone."""
        first: deque[_Entry] | list[_Entry] | None = None
        for queue in self._queues.values():
            while queue and queue[0].alarm.key is None:
                queue.popleft()
                self._forget_one()
            if queue and (first is None or queue[0] < first[0]):
                first = queue
        heap = self._heap
        while heap and heap[0].alarm.key is None:
            heapq.heappop(heap)
            self._forget_one()
        return heap if heap and (first is None or heap[0] < first[0]) else first

    def _forget_one(self) -> None:
        self._count -= 1
        self._cancelled -= 1

    def _sweep(self) -> None:
        """Removes all that were cancelled."""
        for key, queue in self._queues.items():
            self._queues[key] = deque(entry for entry in queue if entry.alarm.key is not None)
        self._heap = [entry for entry in self._heap if entry.alarm.key is not None]
        heapq.heapify(self._heap)
        self._count -= self._cancelled
        self._cancelled = 0
