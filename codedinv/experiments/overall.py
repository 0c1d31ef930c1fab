"""A_o: accuracy of all answers where each result is lost with some probability, and its interval.

A_o = (1 - q) A_n + q (p A_d + (1 - p) A_light): a result that is lost, with probability q and
independently of the others, is answered as A_d says if what that takes arrives (probability p), by
the light model otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.intervals import Estimate, Outcomes, difference, interval


def arrives(scheme: str, k: int, lost: float | NDArray[np.float64]) -> Any:
    """Probability that a lost query is answered as A_d says.

    Coded groups need all other k results of theirs. A guided group needs its copy, and so does
    replication; without redundancy there is nothing to arrive.

    Args:
        scheme: as in `codedinv.schemes`.
        k: queries in a group.
        lost: probability q that a result is lost.
    """
    if scheme in ("invertible", "worker-encoded"):
        return (1 - lost) ** k
    return 0.0 * lost if scheme == "uncoded" else 1 - lost


@dataclass(frozen=True)
class Answers:
    """Which answers are right, for one way to serve a test set.

    Attributes:
        exact: (N,) of f.
        light: (N,) of the light model.
        degraded: of answers to lost queries, as the way gives them.
    """

    exact: NDArray[np.bool_]
    light: NDArray[np.bool_]
    degraded: Outcomes

    def overall(self, lost: float, arrive: float) -> Estimate:
        """A_o in percent with its 95 % interval.

        Every image counts alike, whatever number of groupings it was lost in, so that ways with
        other groups are compared on the same images; the width is that of the outcomes.

        Args:
            lost: q.
            arrive: p, see `arrives`.
        """
        values = self._mixed(lost, arrive)
        found = interval(values, self.degraded.images, self.degraded.groups)
        mean = 100 * float(np.nanmean(self.by_image(lost, arrive)))
        moved = mean - found.mean
        return Estimate(mean, max(found.low + moved, 0.0), min(found.high + moved, 100.0))

    def by_image(self, lost: float, arrive: float) -> NDArray[np.float64]:
        """(N,) each image's share of right answers; NaN for one that no grouping lost."""
        size = len(self.exact)
        images = self.degraded.images
        totals = np.bincount(images, self._mixed(lost, arrive), size)
        with np.errstate(invalid="ignore"):
            shares: NDArray[np.float64] = totals / np.bincount(images, minlength=size)
        return shares

    def _mixed(self, lost: float, arrive: float) -> NDArray[np.float64]:
        exact = self.exact[self.degraded.images].astype(np.float64)
        light = self.light[self.degraded.images].astype(np.float64)
        found = arrive * self.degraded.values + (1 - arrive) * light
        mixed: NDArray[np.float64] = (1 - lost) * exact + lost * found
        return mixed


def better_by(one: NDArray[np.float64], other: NDArray[np.float64]) -> Estimate:
    """How much better one way serves than another, image by image, in points with its interval.

    Args:
        one, other: what `Answers.by_image` gave for the same images.
    """
    both = np.isfinite(one) & np.isfinite(other)
    return difference(one[both] - other[both], np.arange(int(both.sum())))


def always(right: NDArray[np.bool_]) -> Outcomes:
    """Degraded answers that are those of another model, whatever the group: (N,) right or wrong."""
    images = np.arange(len(right))
    return Outcomes(right.astype(np.float64), images, images, np.zeros(len(right), np.int64))
