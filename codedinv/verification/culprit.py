"""Which slot explains the syndromes of a group with one wrong result; r >= 2.

An error e of data slot j reaches parity i as -c_ij e; an error of parity slot i reaches s_i alone.
Each hypothesis is fitted by generalised least squares, the parities' clean covariances as weights,
and the one that leaves least unexplained is named, if it is ahead by more than chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code

Array = NDArray[np.float64]

# Ahead by this many standard deviations of what clean noise alone would do.
_AHEAD = 4.0
# More than so much of what is left by clean groups: no one slot explains it.
_UNEXPLAINED = 25.0
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Whitening:
    """The inverse covariance P = W (I - V' S V) W of one parity's clean syndromes.

    Attributes:
        precision: (D,), the diagonal of W.
        factors: (m, D), V.
        shrink: (m,), the diagonal of S.
    """

    precision: Array
    factors: Array
    shrink: Array

    def __call__(self, errors: Array) -> Array:
        """P e: (D,) -> (D,)."""
        w = errors * self.precision
        return (w - (self.shrink * (self.factors @ w)) @ self.factors) * self.precision

    def diagonal(self) -> Array:
        """(D,) of P."""
        return (1 - self.shrink @ self.factors**2) * self.precision**2

    def low_rank(self) -> Array:
        """(m, D) B, with P = diag(precision^2) - B' B."""
        return np.sqrt(self.shrink)[:, None] * self.factors * self.precision


def wrong_result(code: Code, whitenings: Sequence[Whitening], errors: Array) -> int | None:
    """The slot whose result is wrong in any number of elements.

    Takes some 10 ms per slot of 784 values: it is asked at an alarm only.

    Args:
        whitenings: of each parity.
        errors: (r, D), syndromes less their clean means.

    Returns:
        The slot, or None if two explain the syndromes about as well, or none does.
    """
    weighted = np.stack([whiten(row) for whiten, row in zip(whitenings, errors, strict=True)])
    energies = np.einsum("rd,rd->r", weighted, errors)
    left = [
        float(energies.sum() - _explained(code.coefficients[:, j], whitenings, weighted))
        for j in range(code.k)
    ]
    left += [float(energies.sum() - energy) for energy in energies]
    # What is left by the right slot is r - 1 parities' clean noise, D values each.
    noise = min(left) / ((code.r - 1) * errors.shape[1])
    if noise > _UNEXPLAINED + _ROUNDING * energies.sum():
        return None
    return _ahead(np.array(left), _AHEAD * noise * np.sqrt(2 * errors.shape[1]))


def wrong_element(code: Code, whitenings: Sequence[Whitening], errors: Array) -> int | None:
    """The slot whose result is wrong in one element: the one that stands out most.

    Args and Returns: as `wrong_result`.
    """
    weighted = np.stack([whiten(row) for whiten, row in zip(whitenings, errors, strict=True)])
    diagonals = np.stack([whiten.diagonal() for whiten in whitenings])
    standardised = weighted**2 / diagonals  # (r, D), mean 1 in clean groups of unit size
    at = int(standardised.max(axis=0).argmax())
    c = code.coefficients  # (r, k)
    data = (c.T @ weighted[:, at]) ** 2 / (c.T**2 @ diagonals[:, at])
    explained = np.concatenate([data, standardised[:, at]])
    noise = float(np.mean(np.delete(standardised, at, axis=1)))
    return _ahead(-explained, _AHEAD**2 * noise)


def _ahead(left: Array, by: float) -> int | None:
    best, second = np.argsort(left, kind="stable")[:2]
    return int(best) if left[second] - left[best] > by else None


def _explained(coefficients: Array, whitenings: Sequence[Whitening], weighted: Array) -> float:
    """max over e of what -c_i e in each parity explains: b' A^-1 b.

    b = sum_i c_i P_i s_i and A = sum_i c_i^2 P_i = diag(a) - B' B, inverted by Woodbury's identity.
    """
    b = coefficients @ weighted
    a = sum(c**2 * whiten.precision**2 for c, whiten in zip(coefficients, whitenings, strict=True))
    low = np.concatenate(
        [abs(c) * whiten.low_rank() for c, whiten in zip(coefficients, whitenings, strict=True)]
    )
    scaled = low / a
    inner = np.eye(len(low)) - scaled @ low.T
    return float(b @ (b / a) + (scaled @ b) @ np.linalg.solve(inner, scaled @ b))
