"""Well-conditioned MDS codes over the reals: a structured start, improved by a seeded search.

Rows of powers (Vandermonde) or of 1 / (x + y) (Cauchy) are MDS too, but their worst pattern loses
digits fast: condition 168 and 5,684 at (n, k) = (12, 10), against about 30 here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from codedinv.coding.conditioning import Floats, Indices, conditions, patterns

Patterns = tuple[Indices, Indices]

# Sum of |c_ij| over a row. A parity query is an affine mixture; the further it lies outside the
# convex hull of its queries, the worse a network's embedding of it, so conditioning is not bought
# with large coefficients of both signs. Without the bound rows reach 3 to 4.
_LARGEST_ROW_NORM = 2.0
_PATTERNS_PER_SIZE = 5_000
_DRAWS = 30
_STEPS = 400
_WORK = 2_000_000  # sum of m^2 over the patterns decomposed, about 3 us each
# Coefficients are multiples of this, so that they and their sums are exact in float32 too.
_GRAIN = 2.0**-20


def mds_coefficients(k: int, r: int) -> Floats:
    """Parity coefficients C (r, k), rows summing to exactly 1, of a code with n = k + r.

    Draws harmonic frames (columns evenly spaced on a torus) under random rotations, best for k much
    larger than r, and uniform matrices, best for small k; then moves some coefficients of the best
    of each at a time while the worst pattern's condition number falls. The same on every machine,
    up to ties broken by rounding.
    """
    rng = random.Random(f"codedinv mds {k} {r}")
    sets = [patterns(k, r, m, _PATTERNS_PER_SIZE) for m in range(1, min(k, r) + 1)]
    work = sum(missing.size * missing.shape[1] for _, missing in sets)
    draws = max(2, min(_DRAWS, _WORK // (8 * work)))
    steps = min(_STEPS, _WORK // (2 * work))
    climbed = []
    for draw in (_harmonic_frame, _noise):
        starts = [_normalised(draw(k, r, rng)) for _ in range(draws)]
        climbed.append(_climb(min(starts, key=lambda c: _worst(c, sets)), sets, steps, rng))
    return _rounded(min(climbed, key=lambda c: _worst(c, sets)))


def _climb(best: Floats, sets: Sequence[Patterns], steps: int, rng: random.Random) -> Floats:
    """`best` after `steps` random moves of which those that help its worst pattern are kept."""
    r, k = best.shape
    condition, hard = _worst(best, sets), [_hardest(best, sets)]
    step = 1.0 / k
    for _ in range(steps):
        moved = _normalised(best + step * _noise(k, r, rng, share=0.4))
        step = max(0.97 * step, 1e-4)
        # Patterns that were hard before reject most moves for a fraction of the work.
        if any(_worst(moved, some) >= condition for some in hard):
            continue
        hard = [*hard[-3:], _hardest(moved, sets)]
        moved_condition = _worst(moved, sets)
        if moved_condition < condition:
            best, condition, step = moved, moved_condition, 1.5 * step
    return best


def _worst(c: Floats, sets: Sequence[Patterns]) -> float:
    return max(float(conditions(c, *subsets).max()) for subsets in sets)


def _hardest(c: Floats, sets: Sequence[Patterns]) -> list[Patterns]:
    chosen = []
    for parities, missing in sets:
        order = np.argsort(conditions(c, parities, missing))[-32:]
        chosen.append((parities[order], missing[order]))
    return chosen


def _normalised(c: Floats) -> Floats:
    """Rows scaled to sum to 1, then drawn towards their mean as far as their norm must fall."""
    scaled = c / c.sum(axis=1, keepdims=True)
    excess = np.abs(scaled).sum(axis=1, keepdims=True) - 1.0
    mean = 1.0 / c.shape[1]
    # The norm is convex and 1 at the mean, so this much of the way meets the bound.
    share = np.minimum(1.0, (_LARGEST_ROW_NORM - 1.0) / np.maximum(excess, 1e-12))
    return np.asarray(mean + share * (scaled - mean), dtype=np.float64)


def _harmonic_frame(k: int, r: int, rng: random.Random) -> Floats:
    """Cosines and sines at k even angles, (r, k), under a random r x r rotation."""
    turn = 2 * np.pi if r % 2 else np.pi  # odd harmonics repeat, up to sign, after half a turn
    angles = turn * (np.arange(k) + rng.random()) / k
    rows = [np.full(k, np.sqrt(0.5))] if r % 2 else []
    for harmonic in range(1, r // 2 + 1):
        frequency = harmonic if r % 2 else 2 * harmonic - 1
        rows += [np.cos(frequency * angles), np.sin(frequency * angles)]
    rotation, _ = np.linalg.qr(
        np.array([[rng.gauss(0.0, 1.0) for _ in range(r)] for _ in range(r)])
    )
    return np.asarray(rotation @ np.array(rows), dtype=np.float64)


def _noise(k: int, r: int, rng: random.Random, share: float = 1.0) -> Floats:
    """Uniform in [-1, 1], (r, k), with about `share` of the entries not 0."""
    return np.array(
        [[rng.uniform(-1.0, 1.0) * (rng.random() < share) for _ in range(k)] for _ in range(r)]
    )


def _rounded(c: Floats) -> Floats:
    grains = np.round(c / _GRAIN)
    grains[:, -1] = 1.0 / _GRAIN - grains[:, :-1].sum(axis=1)
    return np.asarray(grains * _GRAIN, dtype=np.float64)
