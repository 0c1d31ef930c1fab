"""The search for well-conditioned MDS codes over the reals.

    python -m codedinv.coding.mds_search [--again]

finds the codes of the table mds_codes.json that it lacks (all of them with --again). `search` is
also what `Code.mds` falls back to outside the table, with less effort.

Minimises the worst pattern's condition number by descent: of the patterns that are hardest now,
each pulls the coefficients along the gradient of its own log condition number, the hardest most,
and with ever more weight as the descent goes on. Which patterns are hardest is looked up anew every
few steps.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codedinv.coding.conditioning import Floats, Indices, conditions, decompose, patterns, worst

TABLE = Path(__file__).with_name("mds_codes.json")
# r: the largest k in the table.
SIZES = {2: 24, 3: 20, 4: 20, 5: 12, 6: 10}

Patterns = tuple[Indices, Indices]

# Sum of |c_ij| over a row. A parity query is an affine mixture; the further it lies outside the
# convex hull of its queries, the worse a network's embedding of it, so conditioning is not bought
# with large coefficients of both signs. Without the bound rows reach 3 to 4.
_LARGEST_ROW_NORM = 2.0
# Coefficients are multiples of this, so that they and their sums are exact in float32 too.
GRAIN = 2.0**-20
_LOOK_UP_EVERY = 10  # steps


@dataclass(frozen=True)
class Effort:
    """How long to search."""

    draws: int  # of each kind of start, of which the best `starts` are followed
    starts: int
    steps: int  # of each descent
    refinements: int  # descents at most from the best end, with smaller steps
    hardest: int  # patterns that pull
    patterns_per_size: int


FOR_THE_TABLE = Effort(20, 5, 150, 5, 150, 40_000)


def effort_at_run_time(r: int) -> Effort:
    """Some seconds on one core: a pattern of m erasures takes about 3 us m^2, 30 times over."""
    weight = sum(m**2 for m in range(1, r + 1))
    return Effort(8, 1, 60, 0, 80, min(8_000, 250_000 // weight + 1))


@dataclass(frozen=True)
class _Schedule:
    """Of a descent: from the first to the last step, geometrically."""

    temperature: tuple[float, float]  # of the weights exp(log condition / temperature)
    step: tuple[float, float]  # root mean square move of a coefficient, times k


_DESCENT = _Schedule((0.5, 0.02), (0.05, 0.001))
_REFINEMENT = _Schedule((0.1, 0.005), (0.01, 0.0002))


def search(k: int, r: int, effort: Effort) -> Floats:
    """Parity coefficients C (r, k), rows summing to exactly 1, of a code with n = k + r.

    Starts from harmonic frames (columns evenly spaced on a torus) under random rotations and from
    uniform matrices. The same on every machine, up to ties broken by rounding.
    """
    rng = random.Random(f"codedinv mds {k} {r}")
    sets = [patterns(k, r, m, effort.patterns_per_size) for m in range(1, min(k, r) + 1)]
    ends = []
    for draw in (_harmonic_frame, _noise):
        drawn = [_bounded(draw(k, r, rng)) for _ in range(effort.draws)]
        drawn.sort(key=lambda c: _worst(c, sets))
        starts = drawn[: effort.starts]
        ends += [starts[0], *(_descend(c, sets, effort, _DESCENT)[1] for c in starts)]
    # Where patterns are a sample, a descent may suit these and no others: judged by more of them.
    best = min(ends, key=lambda c: worst(c).condition)
    condition = _worst(best, sets)
    for _ in range(effort.refinements):
        finer, moved = _descend(best, sets, effort, _REFINEMENT)
        if finer > 0.999 * condition:
            break
        condition, best = finer, moved
    return _rounded(best)


def _descend(
    c: Floats, sets: Sequence[Patterns], effort: Effort, schedule: _Schedule
) -> tuple[float, Floats]:
    """The best matrix met on the way, after its condition number."""
    best = (np.inf, c)
    heading, scale = np.zeros_like(c), 0.0
    for done in range(effort.steps):
        if done % _LOOK_UP_EVERY == 0:
            condition, hard = _hardest(c, sets, effort.hardest)
            best = min(best, (condition, c), key=lambda end: end[0])
        temperature, step = (
            first * (last / first) ** (done / effort.steps)
            for first, last in (schedule.temperature, schedule.step)
        )
        pull = _pull(c, hard, temperature)
        heading = 0.8 * heading + 0.2 * pull
        scale = 0.9 * scale + 0.1 * float((pull**2).mean())
        c = _bounded(c - step / c.shape[1] * heading / np.sqrt(scale + 1e-30))
    return min(best, (_worst(c, sets), c), key=lambda end: end[0])


def _pull(c: Floats, hard: Sequence[Patterns], temperature: float) -> Floats:
    """Mean gradient of the hard patterns' log condition numbers, the hardest weighing most."""
    logs, gradients = [], []
    for parities, missing in hard:
        parts = decompose(c, parities, missing)
        logs.append(np.log(parts.largest / parts.smallest))
        gradients.append(parts.log_condition_gradient(c.shape, parities))
    log = np.concatenate(logs)
    weights = np.exp((log - log.max()) / temperature)
    mean = np.tensordot(weights / weights.sum(), np.concatenate(gradients), 1)
    return np.asarray(mean - mean.mean(axis=1, keepdims=True))  # rows keep their sums


def _worst(c: Floats, sets: Sequence[Patterns]) -> float:
    return max(float(conditions(c, *subsets).max()) for subsets in sets)


def _hardest(c: Floats, sets: Sequence[Patterns], count: int) -> tuple[float, list[Patterns]]:
    """The largest condition number, and about `count` patterns of the largest."""
    values = [conditions(c, *subsets) for subsets in sets]
    together = np.sort(np.concatenate(values))
    least = together[-min(count, len(together))]
    chosen = [
        (parities[found >= least], missing[found >= least])
        for (parities, missing), found in zip(sets, values, strict=True)
    ]
    return float(together[-1]), [subset for subset in chosen if len(subset[0])]


def _bounded(c: Floats) -> Floats:
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


def _noise(k: int, r: int, rng: random.Random) -> Floats:
    return np.array([[rng.uniform(-1.0, 1.0) for _ in range(k)] for _ in range(r)])


def _rounded(c: Floats) -> Floats:
    grains = np.round(c / GRAIN)
    grains[:, -1] = 1.0 / GRAIN - grains[:, :-1].sum(axis=1)
    return np.asarray(grains * GRAIN, dtype=np.float64)


def main() -> None:
    """Fills the table, saving after each code."""
    parser = argparse.ArgumentParser(description="Fills the table of MDS codes.")
    parser.add_argument("--again", action="store_true", help="also the codes that are there")
    table = {} if parser.parse_args().again or not TABLE.exists() else json.loads(TABLE.read_text())
    for r, largest in SIZES.items():
        for k in range(2, largest + 1):
            if f"{k},{r}" in table:
                continue
            c = search(k, r, FOR_THE_TABLE)
            found = worst(c)
            table[f"{k},{r}"] = {
                "grains": (c / GRAIN).astype(int).tolist(),
                "worst": [found.condition, found.parities, found.missing],
            }
            lines = [f'"{size}": {json.dumps(code)}' for size, code in table.items()]
            TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            print(f"k = {k}, r = {r}: condition {found.condition:.4g}", flush=True)


if __name__ == "__main__":
    main()
