"""Counters and latency quantiles in bounded memory."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from codedinv.schemes.scheme import Source
from codedinv.serving.actions import Failure
from codedinv.serving.core import Core
from codedinv.serving.fleet import Worker

_SUB_BUCKETS = 64  # per power of two: a quantile is within 1/128 of its value
_LEAST_EXPONENT = -20  # of math.frexp: values from 2^-21, half a microsecond,
_OCTAVES = 32  # to 2^11, 34 minutes, where the unit is a second


class Histogram:
    """Counts of positive values in logarithmic buckets, as HdrHistogram keeps them.

    2,048 counters hold any number of values from 5e-7 to 2,048 with a relative error below 1 %;
    what lies outside counts in the first or last bucket. The maximum is exact.
    """

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * _SUB_BUCKETS * _OCTAVES))
        self.count = 0
        self.max = 0.0

    def record(self, value: float) -> None:
        """Adds one value."""
        mantissa, exponent = math.frexp(value)  # value = mantissa * 2^exponent, mantissa in [.5, 1)
        index = (exponent - _LEAST_EXPONENT) * _SUB_BUCKETS
        index += int((mantissa * 2 - 1) * _SUB_BUCKETS)
        index = 0 if value <= 0 else min(max(index, 0), len(self._counts) - 1)
        self._counts[index] += 1
        self.count += 1
        self.max = max(self.max, value)

    def copy(self) -> Histogram:
        """One of its own, for another thread to read."""
        twin = Histogram.__new__(Histogram)
        twin._counts, twin.count, twin.max = self._counts[:], self.count, self.max
        return twin

    @classmethod
    def sum(cls, histograms: Iterable[Histogram]) -> Histogram:
        """All values of several histograms."""
        total = cls()
        counts = np.frombuffer(total._counts, np.int64)
        for one in histograms:
            counts += np.frombuffer(one._counts, np.int64)
            total.count += one.count
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

    def _value(self, index: int) -> float:
        octave, sub = divmod(index, _SUB_BUCKETS)
        middle = (1 + (sub + 0.5) / _SUB_BUCKETS) / 2
        return min(math.ldexp(middle, octave + _LEAST_EXPONENT), self.max)


@dataclass(frozen=True)
class Quantiles:
    """Latencies in seconds, from submit to the answer; NaN where `count` is 0."""

    count: int
    p50: float
    p99: float
    p999: float
    max: float

    @classmethod
    def of(cls, histogram: Histogram) -> Quantiles:
        """Reads the quantiles off a histogram."""
        p50, p99, p999 = histogram.quantiles((0.5, 0.99, 0.999))
        worst = histogram.max if histogram.count else math.nan
        return cls(histogram.count, p50, p99, p999, worst)


@dataclass(frozen=True)
class Stats:
    """What a server did since it started. accepted = queued + outstanding + answered + failed.

    Attributes:
        accepted: queries taken by `submit`.
        queued: accepted, not ended, and still waiting for a worker.
        outstanding: accepted, not ended, and at a worker or waiting to be reconstructed.
        answered: by source ("exact", "reconstructed", "hedged", "fallback").
        failed: by error: "deadline_exceeded", "unrecoverable", "closed", "cancelled"; "error": the
            answer could not be made, for head, decoder or server raised.
        overloaded: queries refused because `Policy.max_queue` was reached; not accepted.
        hopeless: of those that failed with "deadline_exceeded", given up before they were sent,
            for no worker could have answered in time.
        corrections: exact results that came after an answer of another source.
        groups: coding groups closed.
        groups_partial: of these, with anchors in free slots.
        groups_not_encoded: of these, without parities because all their queries were answered.
        parity_queries: parity queries (with scheme "replication": copies) sent to workers.
        parities_dropped: parity queries that became useless before they were sent.
        encode_errors: groups whose parities the encoder could not make.
        retries: tasks queued again after a loss.
        hedges: queries sent to a second worker, for the first took long.
        hedge_wins: of these, answered by the second.
        late_results: results that came after their query had its answer.
        stale_results: results of a generation that was already given up.
        task_errors: tasks that a worker could not do, or whose result was unusable.
        deaths: workers that died, were killed, or could not be started.
        hangs: of these, killed because they hung.
        restarts: starts of a worker beyond its first.
        quarantines: times that a worker was given no queries, for it erred or lied.
        probes: copies of queries sent to workers in quarantine, or much slower than the rest.
        stalls: times that the server's own loop was away for 0.1 s or more.
        reloads: models replaced by `CodedServer.reload`.
        reloads_failed: models that could not be started, so that the present one went on.
        groups_checked: groups whose n results were checked against each other (`Policy.verify`).
        suspected_corruption: of these, with an alarm.
        audits: groups whose queries were run again, to find who was wrong.
        corrupt: results found wrong, for other workers agree on another.
        workers: state of each worker: "starting", "ready", "busy", "quarantined", "vacant" or
            "dead" (to be restarted).
        latency: quantiles of all answers ("all") and by source.
        last_error: the latest thing that went wrong; None if nothing did.
    """

    accepted: int
    queued: int
    outstanding: int
    answered: Mapping[str, int]
    failed: Mapping[str, int]
    overloaded: int
    hopeless: int
    corrections: int
    groups: int
    groups_partial: int
    groups_not_encoded: int
    parity_queries: int
    parities_dropped: int
    encode_errors: int
    retries: int
    hedges: int
    hedge_wins: int
    late_results: int
    stale_results: int
    task_errors: int
    deaths: int
    hangs: int
    restarts: int
    quarantines: int
    probes: int
    stalls: int
    reloads: int
    reloads_failed: int
    groups_checked: int
    suspected_corruption: int
    audits: int
    corrupt: int
    workers: tuple[str, ...]
    latency: Mapping[str, Quantiles]
    last_error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, as for JSON."""
        return asdict(self) | {"workers": list(self.workers)}


# Counted by the core under these names, and passed on as they are.
_OF_THE_CORE = (
    *("accepted", "hopeless", "corrections", "groups", "groups_partial", "groups_not_encoded"),
    *("parity_queries", "parities_dropped", "encode_errors", "retries", "hedges", "hedge_wins"),
    *("late_results", "stale_results", "task_errors", "deaths", "hangs", "quarantines", "probes"),
    *("stalls", "reloads", "reloads_failed", "suspected_corruption", "audits"),
)


@dataclass(frozen=True)
class Snapshot:
    """Copies of everything that changes, made by the loop in microseconds; see `Metrics`."""

    counts: Mapping[str, int]
    queued: int
    outstanding: int
    answered: Mapping[Source, int]
    failed: Mapping[Failure, int]
    failed_answers: Mapping[Source, int]
    lost: int
    overloaded: int
    groups_checked: int
    starts: int
    workers: tuple[str, ...]
    latency: Mapping[Source, Histogram]
    last_error: str | None

    def stats(self) -> Stats:
        """The same for a reader, in the reader's own time."""
        errors = sum(self.failed_answers.values()) + self.lost
        return Stats(
            **{name: self.counts[name] for name in _OF_THE_CORE},
            corrupt=self.counts["corrupt_results"],
            queued=self.queued,
            outstanding=self.outstanding,
            answered={s: self.answered[s] - self.failed_answers[s] for s in get_args(Source)},
            failed={f: self.failed[f] for f in get_args(Failure)} | {"error": errors},
            overloaded=self.overloaded,
            restarts=max(0, self.counts["starts"] - self.starts),
            groups_checked=self.groups_checked,
            workers=self.workers,
            latency={
                "all": Quantiles.of(Histogram.sum(self.latency.values())),
                **{source: Quantiles.of(h) for source, h in self.latency.items()},
            },
            last_error=self.last_error,
        )


class Metrics:
    """What the shell measures; the core counts the rest.

    Args:
        workers: how many are started at first.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._latency: dict[Source, Histogram] = {}
        self._failed_answers: Counter[Source] = Counter()
        self.groups_checked = 0
        self.last_error: str | None = None

    def answered(self, source: Source, latency: float) -> None:
        """Records an answer's latency in seconds."""
        of_source = self._latency.get(source)
        if of_source is None:
            of_source = self._latency[source] = Histogram()
        of_source.record(latency)

    def failed_answer(self, source: Source) -> None:
        """An answer that the core decided on could not be made."""
        self._failed_answers[source] += 1

    def snapshot(self, core: Core, overloaded: int, has_ended: bool = False) -> Snapshot:
        """Everything, as of now; for the loop, between its turns.

        Args:
            core: of the same loop.
            overloaded: queries refused.
            has_ended: queries that the core still has were ended by a failure of the server.
        """
        states = [_state(worker) for worker in core.fleet]
        while len(states) > self._workers and states[-1] == "vacant":
            states.pop()  # the spare, which only a reload uses
        lost = len(core.queries) if has_ended else 0
        return Snapshot(
            counts=core.counts.copy(),
            queued=0 if has_ended else core.queued,
            outstanding=0 if has_ended else len(core.queries) - core.queued,
            answered=core.answered.copy(),
            failed=core.failed.copy(),
            failed_answers=self._failed_answers.copy(),
            lost=lost,
            overloaded=overloaded,
            groups_checked=self.groups_checked,
            starts=self._workers,
            workers=tuple(states),
            latency={source: h.copy() for source, h in self._latency.items()},
            last_error=self.last_error,
        )


def _state(worker: Worker) -> str:
    if worker.probation is not None:
        return "quarantined"
    return "busy" if worker.outstanding else worker.state
