"""Counters and latency quantiles in bounded memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, get_args

from codedinv.schemes.scheme import Source
from codedinv.serving.actions import Failure
from codedinv.serving.core import Core

_SUB_BUCKETS = 64  # per power of two: a quantile is within 1/128 of its value
_LEAST_EXPONENT = -20  # of math.frexp: values from 2^-21, half a microsecond,
_OCTAVES = 32  # to 2^11, 34 minutes, where the unit is a second


class Histogram:
    """Counts of positive values in logarithmic buckets, as HdrHistogram keeps them.

    2,048 counters hold any number of values from 5e-7 to 2,048 with a relative error below 1 %;
    what lies outside counts in the first or last bucket. The maximum is exact.
    """

    def __init__(self) -> None:
        self._counts = [0] * (_SUB_BUCKETS * _OCTAVES)
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

    def quantile(self, q: float) -> float:
        """The smallest recorded value that a share `q` of all does not exceed; NaN when empty."""
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(q * self.count))
        index = bisect_left(list(accumulate(self._counts)), rank)
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
        p50, p99, p999 = (histogram.quantile(q) for q in (0.5, 0.99, 0.999))
        worst = histogram.max if histogram.count else math.nan
        return cls(histogram.count, p50, p99, p999, worst)


@dataclass(frozen=True)
class Stats:
    """What a server did since it started. accepted = queued + outstanding + answered + failed.

    Attributes:
        accepted: queries taken by `submit`.
        queued: accepted, not ended, and still waiting for a worker.
        outstanding: accepted, not ended, and at a worker or waiting to be reconstructed.
        answered: by source ("exact", "reconstructed", ...).
        failed: by error: "deadline_exceeded", "unrecoverable", "closed".
        overloaded: queries refused because `Policy.max_queue` was reached; not accepted.
        groups: coding groups closed.
        groups_partial: of these, with anchors in free slots.
        groups_not_encoded: of these, without parities because all their queries were answered.
        parity_queries: parity queries (with scheme "replication": copies) sent to workers.
        retries: tasks queued again after a loss.
        late_results: results that came after their query had its answer.
        stale_results: results of a generation that was already given up.
        task_errors: tasks that a worker could not do, or whose result was unusable.
        deaths: workers that died, were killed, or could not be started.
        hangs: of these, killed because they hung.
        restarts: starts of a worker beyond its first.
        groups_checked: groups whose n results all came, so that they could be compared.
        suspected_corruption: of these, with a residual above the threshold.
        workers: state of each worker: "starting", "ready", "busy" or "dead" (to be restarted).
        latency: quantiles of all answers ("all") and by source.
        residual_median: median relative residual of the groups checked; NaN if none was.
        last_error: of the latest worker that died or failed a task; None if none did.
    """

    accepted: int
    queued: int
    outstanding: int
    answered: Mapping[str, int]
    failed: Mapping[str, int]
    overloaded: int
    groups: int
    groups_partial: int
    groups_not_encoded: int
    parity_queries: int
    retries: int
    late_results: int
    stale_results: int
    task_errors: int
    deaths: int
    hangs: int
    restarts: int
    groups_checked: int
    suspected_corruption: int
    workers: tuple[str, ...]
    latency: Mapping[str, Quantiles]
    residual_median: float
    last_error: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, as for JSON."""
        return asdict(self) | {"workers": list(self.workers)}


class Metrics:
    """What the shell measures; the core counts the rest.

    Args:
        corruption_residual: see `Policy`.
    """

    _EVERY_GROUPS = 32  # a median of fewer says little, and finding it takes 0.1 ms
    _TIMES_MEDIAN = 4.0

    def __init__(self, corruption_residual: float | None) -> None:
        self._is_fixed = corruption_residual is not None
        self._threshold = corruption_residual if corruption_residual is not None else math.inf
        self._latency = {"all": Histogram()}
        self._residuals = Histogram()
        self.suspected_corruption = 0
        self.overloaded = 0
        self.last_error: str | None = None

    def answered(self, source: str, latency: float) -> None:
        """Records an answer's latency in seconds."""
        self._latency["all"].record(latency)
        self._latency.setdefault(source, Histogram()).record(latency)

    def inspected(self, residual: float) -> None:
        """Records the largest relative residual of a group whose n results all came."""
        self.suspected_corruption += residual > self._threshold
        self._residuals.record(residual)
        if not self._is_fixed and self._residuals.count % self._EVERY_GROUPS == 0:
            self._threshold = self._TIMES_MEDIAN * self._residuals.quantile(0.5)

    def stats(self, core: Core) -> Stats:
        """Everything, as of now."""
        counts: Counter[str] = core.counts
        workers = tuple("busy" if w.outstanding else w.state for w in core.fleet)
        return Stats(
            accepted=counts["accepted"],
            queued=core.queued,
            outstanding=len(core.queries) - core.queued,
            answered={source: core.answered[source] for source in get_args(Source)},
            failed={failure: core.failed[failure] for failure in get_args(Failure)},
            overloaded=self.overloaded,
            groups=counts["groups"],
            groups_partial=counts["groups_partial"],
            groups_not_encoded=counts["groups_not_encoded"],
            parity_queries=counts["parity_queries"],
            retries=counts["retries"],
            late_results=counts["late_results"],
            stale_results=counts["stale_results"],
            task_errors=counts["task_errors"],
            deaths=counts["deaths"],
            hangs=counts["hangs"],
            restarts=max(0, counts["starts"] - len(core.fleet.workers)),
            groups_checked=self._residuals.count,
            suspected_corruption=self.suspected_corruption,
            workers=workers,
            latency={name: Quantiles.of(h) for name, h in self._latency.items()},
            residual_median=self._residuals.quantile(0.5),
            last_error=self.last_error,
        )
