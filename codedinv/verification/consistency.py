"""Consistency: is a group's syndrome the encoder's own error, or is one of its results wrong?

The clean syndromes of a parity have a mean and a covariance diag(std) (I + V' L V) diag(std): the
encoder errs mostly in a few directions V. With w the standardised syndrome, p = V w, and
u = w - V' (L / (1 + L)) p what those directions leave unexplained:

- spread: mean u^2 over mean p^2 / (1 + L), which tells the group's own scale. Noise, an old answer
  or another query's lands in all directions, the encoder's own error does not. Free of scale:
  groups that are hard for the encoder (alike queries, shifted traffic) err more, in the same shape.
- peak: the largest element of u, each over its own clean tail, relative to their mean square. One
  wrong element of a result. Free of scale as well.
- size: the Mahalanobis distance, mean w' (I + V' L V)^-1 w. Another backbone's results err in the
  encoder's own directions, only more. Input drift moves it most, so it counts from four times
  (twice in amplitude) its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.verification.culprit import Whitening, wrong_element, wrong_result

Floats = NDArray[np.float32]

SPREAD, PEAK, SIZE = range(3)
STATISTICS = ("spread", "peak", "size")
_ALLOWANCE = np.array([0.0, 0.0, math.log(4.0)])
_HUGE = 1e12  # float32 would overflow when values beyond it are standardised and squared
_TINY = 1e-30
_PRIOR = np.float32(10.0)  # directions' worth of belief that a group's errors are of the usual size


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of one group whose n results are in.

    Attributes:
        alarm: a result is wrong; a clean group says so at the check's false-alarm rate.
        slot: which one, where the syndromes tell; always None for r = 1.
        score: -log10 of the estimated probability of such a syndrome in a clean group; infinite
            for one that is not finite.
    """

    alarm: bool
    slot: int | None
    score: float


class Check(Protocol):
    """Tells a group with a wrong result from a clean one."""

    def __call__(self, syndrome: Floats, scale: Any = None, /) -> Verdict:
        """Checks one group.

        Args:
            syndrome: (r, *embedding): f(parity_i) - sum_j c_ij f(x_j) of the n results.
            scale: (r,): |f(parity_i)| + sum_j |c_ij| |f(x_j)|, which is the syndromes' norms over
                the decoder's `residual()`. Only `ExactConsistency` needs it.
        """
        ...


@dataclass(frozen=True)
class Consistency:
    """A check fitted on clean groups by `fit_consistency`; calls are those of `Check`.

    Attributes:
        code: of the groups.
        mean, std: (r, D) for D values per embedding; std is of what the factors do not explain.
        factors: (r, m, D), orthonormal rows V: the standardised directions of the encoder's error.
        variances: (r, m), L: the variance in each of them, beyond 1.
        peak_scale: (r, D): what each element of u is divided by for `peak`.
        tails: (r, 3, 3) float64. For each statistic, of clean groups: the log value where the tail
            begins, the mean excess of log values beyond it, the share of groups beyond it.
        rate: false alarms aimed at, per clean group.

    Raises:
        ValueError: arrays whose shapes do not fit each other, or hold impossible values.
    """

    code: Code
    mean: Floats
    std: Floats
    factors: Floats
    variances: Floats
    peak_scale: Floats
    tails: NDArray[np.float64]
    rate: float = 1e-4

    def __post_init__(self) -> None:
        r, size, rank = self.code.r, self.mean.shape[-1], self.variances.shape[-1]
        expected = {
            "mean": (r, size), "std": (r, size), "peak_scale": (r, size),
            "factors": (r, rank, size), "variances": (r, rank), "tails": (r, len(STATISTICS), 3),
        }  # fmt: skip
        for name, shape in expected.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name}: expected finite values")
        for name in ("std", "peak_scale"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name}: expected values above 0")
        if not (self.variances >= 0).all() or not (self.tails[..., 1:] > 0).all():
            raise ValueError("variances, tails: expected values of 0 and more, and above 0")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: expected 0 < rate < 1, got {self.rate}")

    def __call__(self, syndrome: Floats, scale: Any = None, /) -> Verdict:
        """Checks one group; `scale` is not used. See `Check`.

        Raises:
            ValueError: a syndrome of another shape.
        """
        rows = self._as_rows(syndrome, groups=False)
        each, scores = self._judge(rows)
        score = float(scores[0])
        if not score > -math.log10(self.rate):
            return Verdict(False, None, score)
        return Verdict(True, self._culprit(rows[0], each[0]), score)

    def scores(self, syndromes: Floats) -> NDArray[np.float64]:
        """The verdicts' scores of G groups at once: (G, r, *embedding) -> (G,)."""
        return self._judge(self._as_rows(syndromes, groups=True))[1]

    def _as_rows(self, syndromes: Floats, *, groups: bool) -> Floats:
        array = np.asarray(syndromes, np.float32)
        lead = array.shape[: 1 + groups]
        r, size = self.mean.shape
        if array.ndim < 1 + groups or lead[-1] != r or math.prod(array.shape[len(lead) :]) != size:
            raise ValueError(
                f"syndrome: expected {'(G, r' if groups else '(r'}, *embedding) with r = {r} and "
                f"{size} values per embedding, got {array.shape}"
            )
        return array.reshape(-1, r, size)

    def _judge(self, rows: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(G, r, D) -> -log10 p of each statistic (G, r, 3), and of the whole (G,)."""
        finite: NDArray[np.bool_] = np.all(np.isfinite(rows), axis=(1, 2))
        if not finite.all():
            rows = np.where(finite[:, None, None], rows, np.float32(0))
        logs = self.statistics(rows)
        start, excess, share = np.moveaxis(self.tails, -1, 0)
        each = ((logs - _ALLOWANCE - start) / excess - np.log(share)) / math.log(10)
        # An alarm of any parity's spread or peak is enough: each gets its part of the rate. Size
        # needs none: its allowance lies beyond what clean groups reach.
        whole = each.max(axis=(1, 2)) - math.log10(2 * rows.shape[1])
        return each, np.where(finite, np.maximum(whole, 0.0), np.inf)

    def statistics(self, rows: Floats) -> NDArray[np.float64]:
        """Natural logs of spread, peak and size: finite (G, r, D) -> (G, r, 3)."""
        logs = np.empty((*rows.shape[:2], len(STATISTICS)))
        for i in range(rows.shape[1]):
            w = rows[:, i] - self.mean[i]
            largest = np.abs(w).max(axis=1, keepdims=True)
            unit = np.where(largest > _HUGE, largest, np.float32(1))
            w = w / unit * self._precision[i]
            p: Floats = w @ self.factors[i].T
            head = _group_scale(p * self._head_root[i], unit[:, 0])
            u = w - (p * self._shrink[i]) @ self.factors[i]
            tail = _mean_square(u)
            explained = np.einsum("gm,gm,m->g", p, p, self._shrink[i] * self._head_root[i] ** 2)
            v = np.abs(u) * self._peak[i]
            logs[:, i, SPREAD] = np.log((tail + _TINY) / (head + _TINY))
            logs[:, i, PEAK] = np.log((v.max(axis=1) + _TINY) / np.sqrt(_mean_square(v) + _TINY**2))
            size = np.log(tail + explained / w.shape[1] + _TINY)
            logs[:, i, SIZE] = size + 2 * np.log(unit[:, 0])
        return logs

    @cached_property
    def _precision(self) -> Any:
        return 1 / self.std

    @cached_property
    def _shrink(self) -> Any:
        return self.variances / (1 + self.variances)

    @cached_property
    def _head_root(self) -> Any:
        return 1 / np.sqrt(1 + self.variances)

    @cached_property
    def _peak(self) -> Any:
        return 1 / self.peak_scale

    @cached_property
    def _whitenings(self) -> list[Whitening]:
        return [
            Whitening(*(a.astype(np.float64) for a in row))
            for row in zip(self._precision, self.factors, self._shrink, strict=True)
        ]

    def _culprit(self, rows: Floats, each: NDArray[np.float64]) -> int | None:
        """The slot that explains an alarm: rows (r, D), each (r, 3) the statistics' -log10 p."""
        if self.code.r == 1:
            return None
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            # A data slot's would have reached every parity (that it counts in).
            return self.code.k + int(np.argmin(finite)) if (~finite).sum() == 1 else None
        errors = rows.astype(np.float64) - self.mean
        if each[:, PEAK].max() >= max(each[:, SPREAD].max(), each[:, SIZE].max()):
            return wrong_element(self.code, self._whitenings, errors)
        return wrong_result(self.code, self._whitenings, errors)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Plain arrays, the factors as float16, that `from_arrays` reads."""
        return {
            "mean": self.mean,
            "std": self.std,
            "factors": self.factors.astype(np.float16),
            "variances": self.variances,
            "peak_scale": self.peak_scale,
            "tails": self.tails,
            "rate": np.array([self.rate], np.float64),
        }

    @classmethod
    def from_arrays(cls, code: Code, arrays: Mapping[str, NDArray[Any]]) -> Consistency:
        """What `to_arrays` wrote.

        Raises:
            KeyError: an array is missing.
            ValueError: as the constructor.
        """
        return cls(
            code=code,
            mean=arrays["mean"],
            std=arrays["std"],
            factors=arrays["factors"].astype(np.float32),
            variances=arrays["variances"],
            peak_scale=arrays["peak_scale"],
            tails=arrays["tails"],
            rate=float(arrays["rate"][0]),
        )


def _group_scale(standardised: Floats, unit: Floats) -> Floats:
    """The square of a group's size from its (G, m) standardised explained part: 1 as a rule.

    m squares alone would be a poor witness where m is small.
    """
    weight = np.float32(standardised.shape[1]) + _PRIOR
    total: Floats = np.einsum("gm,gm->g", standardised, standardised)
    prior: Floats = _PRIOR / unit / unit
    return (total + prior) / weight


def _mean_square(x: Floats) -> Floats:
    total: Floats = np.einsum("gd,gd->g", x, x)
    return total / np.float32(x.shape[1])
