"""Counts of positive values in logarithmic buckets."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

_SUB_BUCKETS = 64  # per power of two: a quantile is within 1/128 of its value
_LEAST_EXPONENT = -20  # of math.frexp: values from 2^-21, half a microsecond,
_OCTAVES = 32  # to 2^11, 34 minutes, where the unit is a second


class Histogram:
    """Counts of positive values in logarithmic buckets, as HdrHistogram keeps them.

    2,048 counters hold any number of values from 5e-7 to 2,048 with a relative error below 1 %;
    what lies outside counts in the first or last bucket. The maximum and the sum are exact.
    """

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _SUB_BUCKETS * _OCTAVES))
        self.count = 0
        self.max = self.sum = 0.0

    def record(self, value: float) -> None:
        """Adds one value."""
        self._counts[_index(value)] += 1
        self.count += 1
        self.sum += value
        self.max = max(self.max, value)

    def copy(self) -> Histogram:
        """One of its own, for another thread to read."""
        twin = Histogram.__new__(Histogram)
        twin._counts, twin.count = self._counts[:], self.count
        twin.max, twin.sum = self.max, self.sum
        return twin

    @classmethod
    def total(cls, histograms: Iterable[Histogram]) -> Histogram:
        """All values of several histograms."""
        total = cls()
        counts = np.frombuffer(total._counts, np.int64)
        for one in histograms:
            counts += np.frombuffer(one._counts, np.int64)
            total.count += one.count
            total.sum += one.sum
            total.max = max(total.max, one.max)
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
        totals = np.cumsum(np.frombuffer(self._counts, np.int64))
        return [int(totals[_index(bound)]) for bound in bounds]

    def _value(self, index: int) -> float:
        octave, sub = divmod(index, _SUB_BUCKETS)
        middle = (1 + (sub + 0.5) / _SUB_BUCKETS) / 2
        return min(math.ldexp(middle, octave + _LEAST_EXPONENT), self.max)


def _index(value: float) -> int:
    """The bucket of a value."""
    mantissa, exponent = math.frexp(value)  # value = mantissa * 2^exponent, mantissa in [.5, 1)
    index = (exponent - _LEAST_EXPONENT) * _SUB_BUCKETS
    index += int((mantissa * 2 - 1) * _SUB_BUCKETS)
    return 0 if value <= 0 else min(max(index, 0), _SUB_BUCKETS * _OCTAVES - 1)
