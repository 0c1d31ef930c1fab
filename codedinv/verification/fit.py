"""fit_consistency: a check for the groups of one model, from syndromes of clean groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.verification.consistency import STATISTICS, Consistency, Floats

Array = NDArray[np.float64]

RANK = 192
_ITERATIONS = 12
_LARGEST_FACTORED = 2048  # groups or values: beyond it a sample of groups stands for all
_MOMENT = 8  # of each element's clean tail: high enough that a rare excursion is not its alarm
_TAIL_SHARE = 0.01
_SMALLEST_TAIL = 20  # groups: fewer say nothing of a tail


def fit_consistency(
    code: Code,
    syndromes: Floats,
    *,
    resolution: float = 0.0,
    rank: int = RANK,
    rate: float = 1e-4,
) -> Consistency:
    """Fits a check on syndromes of clean, full groups.

    Two thirds of them give mean, covariance (factor analysis: low rank and diagonal, by principal
    axes) and the elements' scales; the others the clean tails of the statistics, as exponential
    in their logarithms. Whether the rate holds is for groups of another sample to say.

    Args:
        code: of the groups.
        syndromes: (G, r, *embedding), G >= 60, in random order.
        resolution: differences of this size between results mean nothing (rounding), in the
            results' own unit; no element's std is taken for less.
        rank: factors at most; of few groups fewer are fitted, an eighth of their number.
        rate: false alarms per clean group.

    Raises:
        ValueError: too few groups, a wrong shape, or values that are not finite.
    """
    if syndromes.ndim < 3 or syndromes.shape[1] != code.r or len(syndromes) < 3 * _SMALLEST_TAIL:
        raise ValueError(
            f"syndromes: expected (G, {code.r}, *embedding) with G >= {3 * _SMALLEST_TAIL}, "
            f"got {syndromes.shape}"
        )
    rows = np.asarray(syndromes, np.float32).reshape(len(syndromes), code.r, -1)
    if not np.isfinite(rows).all():
        raise ValueError("syndromes: expected finite values")
    fitted, held_out = np.split(rows, [2 * len(rows) // 3])
    rank = min(rank, len(fitted) // 8, rows.shape[2] // 2)
    parts = _fit_rows(fitted, rank, resolution)
    mean, std, factors, variances, peak_scale = (
        np.stack(part).astype(np.float32) for part in zip(*parts, strict=True)
    )
    # As they are stored: what is calibrated is what will be loaded.
    factors = factors.astype(np.float16).astype(np.float32)
    blank = np.ones((code.r, len(STATISTICS), 3))
    check = Consistency(code, mean, std, factors, variances, peak_scale, blank, rate)
    logs = check.statistics(held_out)
    tails = np.stack(
        [[_tail(logs[:, i, j]) for j in range(len(STATISTICS))] for i in range(code.r)]
    )
    return replace(check, tails=tails)


def _fit_rows(x: Floats, rank: int, resolution: float) -> Sequence[tuple[Array, ...]]:
    """(G, r, D) -> what `_fit_row` finds for each parity, with one rank for all.

    Factors that pure noise would show in a sample of this size, or hardly stronger ones, are left
    out: they would take noise for the group's own scale and hide it from `spread`.
    """
    edge = (1 + math.sqrt(x.shape[2] / len(x))) ** 2  # Marchenko and Pastur's
    while True:
        parts = [_fit_row(x[:, i], rank, resolution) for i in range(x.shape[1])]
        strong = max(int((part[3] > 2 * edge - 1).sum()) for part in parts)
        if strong >= rank or rank == 1:
            return parts
        rank = max(strong, 1)


def _fit_row(x: Floats, rank: int, resolution: float) -> tuple[Array, Array, Array, Array, Array]:
    """(G, D) -> mean, std, factors (m, D), variances (m,), peak scale of one parity."""
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean
    root = _square_root(centred)
    total = np.einsum("gd,gd->d", root, root)
    # No element is quieter than a thousandth of the whole: a dead one's first stir is no proof.
    floor = resolution**2 + 1e-6 * float(total.mean()) + np.finfo(np.float32).tiny
    noise = total + floor
    for _ in range(_ITERATIONS):
        std = np.sqrt(noise)
        factors, eigenvalues = _leading(root / std, rank)
        variances = np.maximum(eigenvalues - 1, 0)
        noise = np.maximum(total - noise * (variances @ factors**2), 0) + floor
    std = np.sqrt(noise)
    factors, eigenvalues = _leading(root / std, rank)
    variances = np.maximum(eigenvalues - 1, 0)
    w = centred / std
    shrink = variances / (1 + variances)
    u = w - ((w @ factors.T) * shrink) @ factors
    typical = np.sqrt(np.mean(u**2))
    peak_scale = np.mean((u / typical) ** _MOMENT, axis=0) ** (1 / _MOMENT)
    return mean, std, factors, variances, np.maximum(peak_scale, 1.0)


def _square_root(x: Array) -> Array:
    """R with R' R the covariance of the rows of x, (min(G, D, ...), D)."""
    groups, size = x.shape
    if groups <= min(size, _LARGEST_FACTORED):
        return x / math.sqrt(groups)
    if size <= _LARGEST_FACTORED:
        return np.asarray(np.linalg.qr(x / math.sqrt(groups), mode="r"))
    return x[:_LARGEST_FACTORED] / math.sqrt(_LARGEST_FACTORED)


def _leading(root: Array, rank: int) -> tuple[Array, Array]:
    """The leading eigenvectors (m, D) and eigenvalues (m,) of root' root."""
    values, vectors = np.linalg.eigh(root @ root.T)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    values = np.maximum(values, np.finfo(np.float64).tiny)
    return (vectors / np.sqrt(values)).T @ root, values


def _tail(logs: Array) -> tuple[float, float, float]:
    """Where the tail begins, its mean excess, and its share of the groups."""
    share = max(_TAIL_SHARE, _SMALLEST_TAIL / len(logs))
    start = float(np.quantile(logs, 1 - share))
    beyond = logs[logs > start] - start
    # One standard error more, so that chance makes it too long rather than too short.
    excess = float(beyond.mean()) * (1 + 1 / math.sqrt(len(beyond))) if len(beyond) else 0.0
    return start, max(excess, 1e-3), share
