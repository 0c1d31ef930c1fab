"""Condition numbers of a code's decoding matrices, over all erasure patterns or a sample of them.

A pattern erases m data slots M and leaves m parities P to recover them from. The k generator rows
that are left are singular exactly when C[P, M] is, so an MDS code is one whose every square
submatrix of C is nonsingular.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# Patterns of one erasure take about a second for this many, of m about m^2 times as long each.
_PATTERNS_CHECKED = 100_000


@dataclass(frozen=True)
class Worst:
    """The worst conditioned pattern found."""

    condition: float
    parities: tuple[int, ...]  # P, counted from 0
    missing: tuple[int, ...]  # M


def patterns(k: int, r: int, m: int, limit: int) -> tuple[Indices, Indices]:
    """Parity subsets and data subsets of size m, (patterns, m) each.

    All of them where there are at most `limit`, else that many drawn with a fixed seed.
    """
    if math.comb(r, m) * math.comb(k, m) <= limit:
        pairs = itertools.product(
            itertools.combinations(range(r), m), itertools.combinations(range(k), m)
        )
        flat = np.array([parities + missing for parities, missing in pairs], dtype=np.int64)
    else:
        rng = random.Random(m)
        flat = np.array(
            [
                sorted(rng.sample(range(r), m)) + sorted(rng.sample(range(k), m))
                for _ in range(limit)
            ],
            dtype=np.int64,
        )
    return flat[:, :m], flat[:, m:]


@dataclass(frozen=True)
class Extremes:
    """Largest and smallest singular value of many decoding matrices, with their vectors.

    Left vectors are kept where they meet the parities' rows, (patterns, m); right ones whole, with
    the data slots in their own order, (patterns, k).
    """

    largest: Floats  # (patterns,)
    smallest: Floats
    left_largest: Floats
    left_smallest: Floats
    right_largest: Floats
    right_smallest: Floats

    def log_condition_gradient(self, shape: tuple[int, ...], parities: Indices) -> Floats:
        """d log(largest / smallest) / dC of each pattern, (patterns, r, k)."""
        gradient = np.zeros((len(parities), *shape))
        gradient[np.arange(len(parities))[:, None], parities] = (
            self.left_largest[:, :, None] * (self.right_largest / self.largest[:, None])[:, None, :]
            - self.left_smallest[:, :, None]
            * (self.right_smallest / self.smallest[:, None])[:, None, :]
        )
        return gradient


def conditions(coefficients: Floats, parities: Indices, missing: Indices) -> Floats:
    """2-norm condition number of the decoding matrix of each pattern, (patterns,).

    The decoding matrix is [[I, 0], [B, A]] with A = C[P, M] and B = C[P, rest]. On the complement
    of B's row space it is the identity, so for k >= 2m its other singular values are those of the
    2m x 2m matrix [[I, 0], [sqrt(B B^T), A]]: no k x k matrix is ever decomposed.
    """
    k, m = coefficients.shape[1], parities.shape[1]
    a = coefficients[parities[:, :, None], missing[:, None, :]]
    if k >= 2 * m:
        gram = (coefficients @ coefficients.T)[parities[:, :, None], parities[:, None, :]]
        values, vectors = np.linalg.eigh(gram - a @ a.transpose(0, 2, 1))
        b = (vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]) @ vectors.transpose(0, 2, 1)
    else:
        b = coefficients[parities[:, :, None], _rest(k, missing)[:, None, :]]
    singular = np.linalg.svd(_decoding_matrices(a, b), compute_uv=False)
    with np.errstate(divide="ignore"):
        return singular[:, 0] / singular[:, -1]


def decompose(coefficients: Floats, parities: Indices, missing: Indices) -> Extremes:
    """The extreme singular values and vectors of each pattern's decoding matrix."""
    k, m = coefficients.shape[1], parities.shape[1]
    rest = _rest(k, missing)
    a = coefficients[parities[:, :, None], missing[:, None, :]]
    b = coefficients[parities[:, :, None], rest[:, None, :]]
    basis = None
    if k > 2 * m:  # as in `conditions`, but in a basis of B's row space
        basis, upper = np.linalg.qr(b.transpose(0, 2, 1))
        b = upper.transpose(0, 2, 1)
    left, singular, right = np.linalg.svd(_decoding_matrices(a, b))
    identity = b.shape[2]

    def whole(vector: Floats) -> Floats:
        found = vector[:, :identity]
        if basis is not None:
            found = (basis @ found[:, :, None])[:, :, 0]
        result = np.empty((len(vector), k))
        np.put_along_axis(result, rest, found, axis=1)
        np.put_along_axis(result, missing, vector[:, identity:], axis=1)
        return result

    return Extremes(
        singular[:, 0],
        singular[:, -1],
        left[:, identity:, 0],
        left[:, identity:, -1],
        whole(right[:, 0]),
        whole(right[:, -1]),
    )


def _rest(k: int, missing: Indices) -> Indices:
    """The data slots that are not missing, (patterns, k - m)."""
    present = np.ones((len(missing), k), dtype=bool)
    np.put_along_axis(present, missing, False, axis=1)
    return np.nonzero(present)[1].reshape(len(missing), k - missing.shape[1])


def _decoding_matrices(a: Floats, b: Floats) -> Floats:
    """[[I, 0], [b, a]] of each pattern."""
    identity, m = b.shape[2], a.shape[2]
    matrix = np.zeros((len(a), identity + m, identity + m))
    matrix[:, :identity, :identity] = np.eye(identity)
    matrix[:, identity:, :identity] = b
    matrix[:, identity:, identity:] = a
    return matrix


def worst(coefficients: Floats, limit: int = _PATTERNS_CHECKED) -> Worst:
    """The worst conditioned erasure pattern of C (r, k).

    Exact where, for each number m of erasures, there are at most limit / m^2 patterns; a lower
    bound from a fixed sample of that many otherwise.
    """
    r, k = coefficients.shape
    found = Worst(1.0, (), ())
    for m in range(1, min(k, r) + 1):
        parities, missing = patterns(k, r, m, max(limit // m**2, 1))
        values = conditions(coefficients, parities, missing)
        at = int(np.argmax(values))
        if values[at] > found.condition:
            found = Worst(
                float(values[at]), tuple(parities[at].tolist()), tuple(missing[at].tolist())
            )
    return found
