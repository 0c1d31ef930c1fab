"""Counts of positive values in logarithmic buckets."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_SUB_BUCKETS = 64  # per power of two: a quantile is within 1/128 of its value
_LEAST_EXPONENT = -20  # of math.frexp: values from 2^-21, half a microsecond,
_OCTAVES = 32  # to 2^11, 34 minutes, where the unit is a second
_AT_ONCE = 256  # values that are counted together


class Histogram:
    """Counts of positive values in logarithmic buckets, as HdrHistogram keeps them.

    2,048 counters hold any number of values from 5e-7 to 2,048 with a relative error below 1 %;
    what lies outside counts in the first or last bucket. The maximum and the sum are exact.
    """

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _SUB_BUCKETS * _OCTAVES))
        self._count = 0
        self._max = self._sum = 0.0
        self._recent: list[float] = []  # recorded, and not yet counted

    def record(self, value: float) -> None:
        """Adds one value."""
        self._recent.append(value)
        if len(self._recent) == _AT_ONCE:
            self._count_recent()

    @property
    def count(self) -> int:
        """How many values there are."""
        self._count_recent()
        return self._count

    @property
    def sum(self) -> float:
        """The sum of all values."""
        self._count_recent()
        return self._sum

    @property
    def max(self) -> float:
        """The greatest value; 0 when empty."""
        self._count_recent()
        return self._max

    def copy(self) -> Histogram:
        """One of its own, for another thread to read."""
        self._count_recent()
        twin = Histogram.__new__(Histogram)
        twin._counts, twin._count, twin._recent = self._counts[:], self._count, []
        twin._max, twin._sum = self._max, self._sum
        return twin

    def _count_recent(self) -> None:
        """Counts values in one go, which is seven times as fast as one by one."""
        recent, self._recent = self._recent, []
        if not recent:
            return
        places, times = np.unique(_indices(np.array(recent)), return_counts=True)
        np.frombuffer(self._counts, np.int64)[places] += times
        self._count += len(recent)
        self._sum += math.fsum(recent)
        self._max = max(self._max, *recent)

    @classmethod
    def total(cls, histograms: Iterable[Histogram]) -> Histogram:
        """All values of several histograms."""
        total = cls()
        counts = np.frombuffer(total._counts, np.int64)
        for one in histograms:
            total._count += one.count
            total._sum += one.sum
            total._max = max(total._max, one.max)
            counts += np.frombuffer(one._counts, np.int64)
        return total

    def quantiles(self, shares: tuple[float, ...]) -> list[float]:
        """For each share the smallest recorded value that this share of all does not exceed; NaN
        when empty."""
        if not self.count:
            return [math.nan] * len(shares)
        ranks = [max(1, math.ceil(q * self.count)) for q in shares]
        totals = np.cumsum(np.frombuffer(self._counts, np.int64))
        return [self._value(int(index)) for index in np.searchsorted(totals, ranks)]

    def at_most(self, bounds: Sequence[float]) -> list[int]:
        """How many values do not exceed each bound; one within 1 % of it may count either way."""
        self._count_recent()
        totals = np.cumsum(np.frombuffer(self._counts, np.int64))
        return [int(total) for total in totals[_indices(np.asarray(bounds, np.float64))]]

    def _value(self, index: int) -> float:
        octave, sub = divmod(index, _SUB_BUCKETS)
        middle = (1 + (sub + 0.5) / _SUB_BUCKETS) / 2
        return min(math.ldexp(middle, octave + _LEAST_EXPONENT), self._max)


def _indices(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The buckets of values."""
    mantissas, exponents = np.frexp(values)  # value = mantissa * 2^exponent, mantissa in [.5, 1)
    indices = (exponents.astype(np.int64) - _LEAST_EXPONENT) * _SUB_BUCKETS
    indices += ((mantissas * 2 - 1) * _SUB_BUCKETS).astype(np.int64)
    indices[values <= 0] = 0
    return np.clip(indices, 0, _SUB_BUCKETS * _OCTAVES - 1)
