"""Alarms of the core: a heap with cheap cancelling."""

from __future__ import annotations

import heapq
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
    """Alarms in order of time. Cancelled ones stay in the heap until they outnumber the rest."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._order = 0
        self._cancelled = 0

    def set(self, at: float, key: str, subject: Any) -> Alarm:
        """Adds an alarm at a time in seconds."""
        alarm = Alarm(key, subject)
        self._order += 1
        heapq.heappush(self._heap, _Entry(at, self._order, alarm))
        return alarm

    def cancel(self, alarm: Alarm | None) -> None:
        """Takes an alarm back; one that rang, was cancelled before or is None is left alone."""
        if alarm is None or alarm.key is None:
            return
        alarm.key = alarm.subject = None
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2 + 64:
            self._heap = [entry for entry in self._heap if entry.alarm.key is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def due(self, now: float) -> tuple[str, Any] | None:
        """Removes and returns the first alarm at or before `now`, or None."""
        while self._heap and self._heap[0].at <= now:
            alarm = heapq.heappop(self._heap).alarm
            if alarm.key is None:
                self._cancelled -= 1
                continue
            key, subject = alarm.key, alarm.subject
            alarm.key = alarm.subject = None
            return key, subject
        return None

    def next(self) -> float | None:
        """Time of the first alarm, or None."""
        while self._heap and self._heap[0].alarm.key is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0].at if self._heap else None
