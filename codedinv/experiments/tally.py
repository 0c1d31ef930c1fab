"""Counts, accuracies and quantiles of the answers to some traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.traffic import Answer
from codedinv.model import CodedModel

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
LATE_S = 0.050
# What workers are sent beyond each query once, as `CodedServer.stats` counts it.
_EXTRA_CALLS = ("parity_queries", "hedges", "retries", "probes")


@dataclass(frozen=True)
class Tally:
    """What became of some queries.

    Attributes:
        sent: queries sent.
        answered: of these, with an answer of any source.
        lost: of these, ended with an error or never.
        late: of those answered, more than `LATE_S` after their scheduled arrival.
        by_source: answers of each source ("exact", "reconstructed", ...).
        accuracy: percent right, against the true labels, of all answers ("all") and by source.
        latency_ms: quantiles from the scheduled arrival, by name, and "max"; empty without answers.
    """

    sent: int
    answered: int
    lost: int
    late: int
    by_source: dict[str, int]
    accuracy: dict[str, float]
    latency_ms: dict[str, float]

    @classmethod
    def of(cls, answers: Sequence[Answer], labels: NDArray[np.int64]) -> Tally:
        """Tallies answers; labels (N,) are the true classes by the queries' numbers."""
        right: dict[str, list[bool]] = {}
        latencies = []
        for answer in answers:
            if answer.source is None or answer.outputs is None:
                continue
            is_right = bool(answer.outputs.argmax() == labels[answer.query])
            right.setdefault(answer.source, []).append(is_right)
            latencies.append(answer.latency_s)
        outcomes = {source: np.array(each) for source, each in right.items()}
        return cls.of_arrays(outcomes, np.array(latencies), len(answers) - len(latencies))

    @classmethod
    def of_arrays(
        cls,
        right: Mapping[str, NDArray[np.bool_]],
        latencies: NDArray[np.float64],
        lost: int,
    ) -> Tally:
        """Tallies what is sorted already.

        Args:
            right: by source, for each of its answers whether it is right.
            latencies: of all answers, seconds.
            lost: queries that ended without an answer.
        """
        accuracy = {source: 100 * float(outcomes.mean()) for source, outcomes in right.items()}
        latency_ms = {}
        if len(latencies):
            accuracy["all"] = 100 * float(np.concatenate(list(right.values())).mean())
            # "higher": a latency that some query had, with no more than 1 - q of them above it
            quantiles = np.quantile(latencies, list(QUANTILES.values()), method="higher")
            latency_ms = dict(zip(QUANTILES, map(float, 1e3 * quantiles), strict=True))
            latency_ms["max"] = 1e3 * float(latencies.max())
        return cls(
            sent=len(latencies) + lost,
            answered=len(latencies),
            lost=lost,
            late=int((latencies > LATE_S).sum()),
            by_source={source: len(outcomes) for source, outcomes in right.items()},
            accuracy=accuracy,
            latency_ms=latency_ms,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Degraded:
    """Answers that are not the backbone's own of their query, and what else could have been said.

    Attributes:
        count: how many.
        right: of these, equal to the true label.
        exact_right: how many the backbone would have answered right.
        light_right: how many the light model alone would have; None without one.
    """

    count: int
    right: int
    exact_right: int
    light_right: int | None

    @classmethod
    def of(
        cls,
        answers: Sequence[Answer],
        model: CodedModel,
        queries: NDArray[np.float32],
        labels: NDArray[np.int64],
    ) -> Degraded:
        """Counts them; queries (N, *input) and labels (N,) are by the answers' numbers."""
        found = [a for a in answers if a.outputs is not None and a.is_degraded]
        numbers = [a.query for a in found]
        said = np.array([a.outputs.argmax() for a in found if a.outputs is not None], np.int64)
        truth, asked = labels[numbers], queries[numbers]
        light = None
        if model.light is not None:
            task = next(iter(model.heads))
            light = _right(model.light(asked)[task], truth) if found else 0
        exact = _right(model.head(model.embed(asked)), truth) if found else 0
        return cls(len(found), int((said == truth).sum()), exact, light)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def extra_calls(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Backbone calls that workers were sent beyond one for each query, per query.

    Args:
        before, after: `CodedServer.stats().to_dict()` around the traffic.

    Returns:
        Parity queries (or copies), hedges, queries sent again after a loss, and probes of workers
        by those names, and their sum as "all".
    """
    queries = after["accepted"] - before["accepted"]
    if queries < 1:
        raise ValueError(f"after: expected more queries accepted than before, got {queries}")
    shares = {name: (after[name] - before[name]) / queries for name in _EXTRA_CALLS}
    return {"all": sum(shares.values()), **shares}


def _right(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> int:
    return int((np.asarray(logits).argmax(axis=1) == truth).sum())
