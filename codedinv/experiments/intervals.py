"""95 % intervals of accuracies whose outcomes depend on each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z95 = 1.959964
_FEW = 400  # examples


@dataclass(frozen=True)
class Estimate:
    """A mean in percent with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def few_examples(count: int) -> str | None:
    """What is to be said beside figures of so few test examples; None: there are enough.

    Few are fewer than 400: an accuracy of 50 % then has an interval of 5 points or more each way.
    The printed intervals do not say so where all answers are right, or none.

    Args:
        count: of the test examples.
    """
    if count >= _FEW:
        return None
    half = 100 * _Z95 * 0.5 / max(count, 1) ** 0.5
    return (
        f"Only {count} test examples: an accuracy is known to ±{min(half, 100.0):.0f} points at "
        "worst (95 %), and smaller differences say nothing."
    )


def interval(
    values: NDArray[Any], images: NDArray[np.int64], groups: NDArray[np.int64] | None = None
) -> Estimate:
    """Mean in percent with a 95 % interval that is robust to two kinds of dependence.

    Outcomes of one image in several groupings depend on each other, and so do outcomes in one
    coding group, which share a parity query's error. The variance is the two-way
    cluster-robust one, V(image) + V(group) - V(outcome), where V(c) sums the squared cluster
    totals of the deviations from the mean; with no `groups` it is the usual one of a mean.

    Args:
        values: (M,) outcomes, 0 or 1 or a share.
        images: (M,) which image an outcome belongs to.
        groups: (M,) which coding group of which grouping; None where there is none.

    Source: Cameron, Gelbach & Miller, "Robust inference with multiway clustering", 2011.
    """
    found = difference(values, images, groups)
    return Estimate(found.mean, max(found.low, 0.0), min(found.high, 100.0))


def difference(
    values: NDArray[Any], images: NDArray[np.int64], groups: NDArray[np.int64] | None = None
) -> Estimate:
    """`interval` of outcomes that may be negative: of one answer's minus another's, image by image.

    Such a pairing is far narrower than the difference of two intervals, as most images are easy or
    hard for both.
    """
    values = np.asarray(values, dtype=np.float64)
    deviations = values - values.mean()
    variance = _cluster_variance(deviations, images)
    if groups is not None:
        both = np.unique(np.stack([images, groups]), axis=1, return_inverse=True)[1].ravel()
        combined = variance + _cluster_variance(deviations, groups)
        combined -= _cluster_variance(deviations, both)
        # The difference may fall below the one-way variance by chance: the wider one is kept.
        variance = max(variance, combined)
    mean, half = 100 * values.mean(), 100 * _Z95 * np.sqrt(variance)
    return Estimate(float(mean), float(mean - half), float(mean + half))


@dataclass(frozen=True)
class Outcomes:
    """Whether degraded answers were right, one entry each.

    Attributes:
        values: 0 or 1.
        images: which image was asked.
        groups: which coding group of which grouping it was in.
        slots: its slot there.
    """

    values: NDArray[Any]
    images: NDArray[np.int64]
    groups: NDArray[np.int64]
    slots: NDArray[np.int64]

    @classmethod
    def concatenated(cls, parts: list[Outcomes]) -> Outcomes:
        return cls(
            *(
                np.concatenate([getattr(part, name).ravel() for part in parts])
                for name in ("values", "images", "groups", "slots")
            )
        )

    def estimate(self) -> Estimate:
        return interval(self.values, self.images, self.groups)

    def over(self, right: NDArray[np.bool_]) -> Estimate:
        """How much better these answers are than others; `right` says which of those are right."""
        paired = self.values.astype(np.float64) - right[self.images]
        return difference(paired, self.images, self.groups)

    def by_slot(self, k: int) -> list[float]:
        return [float(100 * self.values[self.slots == slot].mean()) for slot in range(k)]


def _cluster_variance(deviations: NDArray[np.float64], clusters: NDArray[np.int64]) -> float:
    totals = np.bincount(clusters, weights=deviations)
    return float((totals**2).sum() / len(deviations) ** 2)
