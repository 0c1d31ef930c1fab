"""Pushes timed one by one, in turn."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

import numpy as np


class Pusher:
    """Pushes one row to the next slot of a decoder, over and over."""

    def __init__(self, decoder: Any, slots: int, row: Any, **how: bool) -> None:
        self.decoder, self.slots, self.row, self.how = decoder, slots, row, how
        self.next = 0
        self.nanoseconds: list[int] = []

    def time_one(self) -> None:
        if self.next == self.slots:
            self.decoder.reset()
            self.next = 0
        push, slot, row, how = self.decoder.push, self.next, self.row, self.how
        start = perf_counter_ns()
        push(slot, row, **how)
        self.nanoseconds.append(perf_counter_ns() - start)
        self.next += 1


def medians(pushers: dict[str, Pusher], trials: int) -> dict[str, float]:
    """Median time of a push of each, in nanoseconds, timed in turn, less the timer's own."""
    timer: list[int] = []
    for _ in range(trials):
        for pusher in pushers.values():
            pusher.time_one()
        start = perf_counter_ns()
        timer.append(perf_counter_ns() - start)
    own = float(np.median(timer))
    return {name: float(np.median(p.nanoseconds)) - own for name, p in pushers.items()}


def random_row(length: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(length).normal(size=length).astype(dtype)
