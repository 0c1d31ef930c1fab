"""What goes wrong with one result of a group, and what is only unusual traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codedinv import CodedModel
from codedinv.model.manifest import BACKBONE
from codedinv.model.runtimes import OnnxNetwork
from codedinv.verification.calibrate import syndromes

Floats = NDArray[np.float32]
BATCH = 500


@dataclass(frozen=True)
class Results:
    """All n results of G groups.

    Attributes:
        queries: (G, n, *input), parity queries last.
        results: (G, n, D).
        clean: (G, r, D), their syndromes.
    """

    queries: Floats
    results: Floats
    clean: Floats


def embed(model: CodedModel, queries: Floats) -> Floats:
    """(B, *input) -> (B, D), in batches."""
    parts = np.array_split(queries, max(1, len(queries) // BATCH))
    return np.concatenate([model.embed(part).reshape(len(part), -1) for part in parts])


def run_groups(model: CodedModel, groups: Floats) -> Results:
    """Encodes and runs (G, k, *input) groups."""
    parts = np.array_split(groups, max(1, len(groups) // BATCH))
    parities = np.concatenate([model.encode(part) for part in parts])
    queries = np.concatenate([groups, parities], axis=1)
    flat = embed(model, queries.reshape(-1, *model.input_shape))
    results = flat.reshape(len(groups), model.code.n, -1)
    k = model.code.k
    return Results(queries, results, syndromes(model.code, results[:, :k], results[:, k:]))


def random_groups(queries: Floats, k: int, count: int, random: np.random.Generator) -> Floats:
    """`count` groups by regrouping all queries as often as it takes: (count, k, *input)."""
    per_pass = len(queries) // k
    orders = [
        random.permutation(len(queries))[: per_pass * k].reshape(per_pass, k)
        for _ in range(-(-count // per_pass))
    ]
    return queries[np.concatenate(orders)[:count]]


def with_error(model: CodedModel, clean: Floats, slots: NDArray[np.int64], error: Floats) -> Floats:
    """Syndromes (G, r, D) once the results of `slots` (G,) are off by `error` (G, D)."""
    effects = np.concatenate([-model.code.coefficients, np.eye(model.code.r)], axis=1).T[slots]
    return (clean + effects[:, :, None] * error[:, None, :].astype(np.float64)).astype(np.float32)


# A corruption: (true results (G, D), their queries, each group's worker (G,), random) -> results.
Corruption = Callable[[Floats, Floats, NDArray[np.int64], np.random.Generator], Floats]


def noise(times: float) -> Corruption:
    """Gaussian noise of so many times each result's standard deviation, as `Faults.corrupt`."""
    return lambda true, queries, workers, random: (
        true + times * true.std(axis=1, keepdims=True) * random.standard_normal(true.shape)
    ).astype(np.float32)


def stuck(old: Floats) -> Corruption:
    """A worker repeats one old answer for ever."""

    def corrupt(
        true: Floats, queries: Floats, workers: NDArray[np.int64], random: np.random.Generator
    ) -> Floats:
        return old[random.integers(len(old), size=workers.max() + 1)][workers]

    return corrupt


def flip(bit: int) -> Corruption:
    """One bit of one element, the same element in all results of a worker."""

    def corrupt(
        true: Floats, queries: Floats, workers: NDArray[np.int64], random: np.random.Generator
    ) -> Floats:
        at = random.integers(true.shape[1], size=workers.max() + 1)[workers]
        wrong = np.ascontiguousarray(true, np.float32).copy()
        wrong.view(np.uint32)[np.arange(len(true)), at] ^= np.uint32(1 << bit)
        return wrong

    return corrupt


def other_weights(folder: Path) -> Corruption:
    """A backbone whose weights are some way off, as another training's are.

    The bundles share one backbone, so another bundle's would be no other.

    Args:
        folder: of a `drifted_copy`.
    """
    network = OnnxNetwork(folder / BACKBONE, threads=1)
    return lambda true, queries, workers, random: np.concatenate(
        [
            network(part).reshape(len(part), -1)
            for part in np.array_split(queries, 1 + len(queries) // BATCH)
        ]
    )


def corruptions(old: Floats, other: Path) -> dict[str, Corruption]:
    """By name, those of the table."""
    return {
        "noise 0.1x": noise(0.1),
        "noise 0.3x": noise(0.3),
        "noise 1x": noise(1.0),
        "stuck on an old answer": stuck(old),
        "other weights": other_weights(other),
        **{f"exponent bit {bit} flipped": flip(bit) for bit in range(23, 31)},
    }


def unusual_traffic(
    queries: Floats, labels: NDArray[np.int64], k: int, count: int, random: np.random.Generator
) -> dict[str, Floats]:
    """Clean groups (count, k, *input) that the calibration never saw, by name."""
    base = queries[random.integers(len(queries), size=(count, k))]
    by_class = [np.flatnonzero(labels == label) for label in range(10)]
    pairs = base.copy()
    pairs[:, k // 2 :] = pairs[:, :1]
    alike = [queries[random.choice(by_class[i % 10], k, replace=False)] for i in range(count)]
    grain = random.standard_normal(base.shape).astype(np.float32)
    return {
        "half as bright": base * np.float32(0.5),
        "1.2x as bright, clipped": np.clip(base * np.float32(1.2), 0, 1),
        "1.5x as bright, clipped": np.clip(base * np.float32(1.5), 0, 1),
        "all of one class": np.stack(alike),
        "one query k times": np.repeat(base[:, :1], k, axis=1),
        "one query k/2 times": pairs,
        "shifted by 2 pixels": np.roll(base, 2, -1),
        "turned by 90 degrees": np.ascontiguousarray(np.rot90(base, 1, (-2, -1))),
        "grain of 0.05": np.clip(base + np.float32(0.05) * grain, 0, 1),
        "grain of 0.2": np.clip(base + np.float32(0.2) * grain, 0, 1),
        "negatives": 1 - base,
    }
