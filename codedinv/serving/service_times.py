"""How long workers take: quantiles of the recent past, for hedges and hopeless queries."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

_WINDOW = 256  # results: a p95 of some use, and forgotten within seconds


class ServiceTimes:
    """A moving window of service times in seconds, from sending a task to its result.

    Adding one costs a microsecond, a quantile less.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self.count = 0  # how many are in the window

    def add(self, seconds: float) -> None:
        """Takes one more and forgets the oldest of a full window."""
        if len(self._recent) == _WINDOW:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
        else:
            self.count += 1
        self._recent.append(seconds)
        insort(self._sorted, seconds)

    def quantile(self, q: float) -> float:
        """The time that a share `q`, below 1, of the window does not exceed.

        Raises:
            IndexError: nothing was added yet.
        """
        return self._sorted[int(q * self.count)]
