"""A record of answers in memory that is all there from the start, so that what a process grows by
while it fills is not the record's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.tally import Tally
from codedinv.experiments.traffic import Answer, Record

_NONE = -1


class CompactRecord(Record):
    """As `Record`, a few dozen bytes for each query whether it has ended or not.

    Args:
        count: queries, numbered from 0.
        outputs: numbers in an answer.
    """

    def __init__(self, count: int, outputs: int) -> None:
        super().__init__(count)
        self.ends = touched(count, np.int16)
        self._arrival_s = touched(count, np.float64)
        self._latency_s = touched(count, np.float64)
        self._source = touched(count, np.int16)
        self._source[:] = _NONE
        self._outputs = touched((count, outputs), np.float32)
        self._names: list[str] = []  # of the sources, by their numbers
        self._errors: dict[int, BaseException | None] = {}  # of the lost queries
        self._ended = 0

    def add(self, answer: Answer) -> None:
        number = answer.query
        with self._lock:
            self.ends[number] += 1
            self._arrival_s[number] = answer.arrival_s
            self._latency_s[number] = answer.latency_s
            if answer.source is None or answer.outputs is None:
                self._errors[number] = answer.error
            else:
                self._source[number] = self._number_of(answer.source)
                self._outputs[number] = answer.outputs
            self._ended += 1
            if self._ended == self.count:
                self._all_ended.set()

    def answers(self) -> list[Answer]:
        """Those so far, in the order of the queries; made anew at each call."""
        with self._lock:
            return [self._answer(int(number)) for number in np.flatnonzero(self.ends)]

    def tally(self, labels: NDArray[np.int64]) -> Tally:
        """`Tally.of` the answers so far, from the arrays themselves."""
        with self._lock:
            answered = np.flatnonzero(self._source != _NONE)
            sources, latencies = self._source[answered], self._latency_s[answered]
            right = self._outputs[answered].argmax(axis=1) == labels[answered]
            lost, names = len(self._errors), list(self._names)
        by_source = {name: right[sources == i] for i, name in enumerate(names)}
        return Tally.of_arrays(by_source, latencies, lost)

    def _answer(self, number: int) -> Answer:
        times = float(self._arrival_s[number]), float(self._latency_s[number])
        source = int(self._source[number])
        if source == _NONE:
            return Answer(number, *times, None, None, self._errors[number])
        return Answer(number, *times, self._names[source], self._outputs[number].copy())

    def _number_of(self, source: str) -> int:
        if source not in self._names:
            self._names.append(source)
        return self._names.index(source)


def touched(shape: int | tuple[int, int], kind: type) -> NDArray[Any]:
    """An array of zeros whose pages are there: the system gives them at the first write only."""
    array: NDArray[Any] = np.empty(shape, kind)
    array.fill(1)
    array.fill(0)
    return array
