"""Counts, accuracies and quantiles of the answers to some traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.traffic import Answer

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class Tally:
    """What became of some queries.

    Attributes:
        sent: queries sent.
        answered: of these, with an answer of any source.
        lost: of these, ended with an error or never.
        by_source: answers of each source ("exact", "reconstructed", ...).
        accuracy: percent right, against the true labels, of all answers ("all") and by source.
        latency_ms: quantiles from the scheduled arrival, by name, and "max"; empty without answers.
    """

    sent: int
    answered: int
    lost: int
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
            latencies.append(1e3 * answer.latency_s)
        everything = [outcome for outcomes in right.values() for outcome in outcomes]
        accuracy = {source: 100 * float(np.mean(outcomes)) for source, outcomes in right.items()}
        latency_ms = {}
        if latencies:
            accuracy["all"] = 100 * float(np.mean(everything))
            # "higher": a latency that some query had, with no more than 1 - q of them above it
            quantiles = np.quantile(latencies, list(QUANTILES.values()), method="higher")
            latency_ms = dict(zip(QUANTILES, map(float, quantiles), strict=True))
            latency_ms["max"] = max(latencies)
        return cls(
            sent=len(answers),
            answered=len(everything),
            lost=len(answers) - len(everything),
            by_source={source: len(outcomes) for source, outcomes in right.items()},
            accuracy=accuracy,
            latency_ms=latency_ms,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)
