"""What a server counts and measures, in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from codedinv.schemes.scheme import Source
from codedinv.serving.actions import Failure
from codedinv.serving.core import Core
from codedinv.serving.fleet import Worker
from codedinv.serving.histogram import Histogram


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
        groups_recovered: groups of which an answer was made from the others' results.
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
    groups_recovered: int
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
    *(
        "groups_recovered",
        "parity_queries",
        "parities_dropped",
        "encode_errors",
        "retries",
        "hedges",
        "hedge_wins",
    ),
    *("late_results", "stale_results", "task_errors", "deaths", "hangs", "quarantines", "probes"),
    *("stalls", "reloads", "reloads_failed", "suspected_corruption", "audits"),
)


@dataclass(frozen=True)
class Snapshot:
    """Copies of everything that changes, made by the loop in microseconds; see `Metrics`.

    `counts` are the core's, most of them fields of `Stats`; `queue_wait`: seconds from submit to a
    worker, of queries that were sent; `group_wait`: seconds that coding groups were open.
    """

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
    queue_wait: Histogram
    group_wait: Histogram
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
                "all": Quantiles.of(Histogram.total(self.latency.values())),
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
            queue_wait=core.queue_wait.copy(),
            group_wait=core.group_wait.copy(),
            last_error=self.last_error,
        )


def _state(worker: Worker) -> str:
    if worker.probation is not None:
        return "quarantined"
    return "busy" if worker.outstanding else worker.state
