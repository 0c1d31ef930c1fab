"""calibrate: a model's own check, from queries like those it will serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.schemes import ServedModel
from codedinv.verification.consistency import Consistency, Floats
from codedinv.verification.fit import fit_consistency
from codedinv.verification.same import SAME_TOLERANCE

GROUPS = 30_000
CHECKED = 10_000
_GROUPS_PER_QUERY = 10  # few queries make many groups, but not as many different ones
_BATCH = 500  # queries per call of a network


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        groups: clean groups that the check was fitted on.
        checked: clean groups of other queries that it was tried on.
        false_alarms: of these.
        rate: false alarms per group that were aimed at.
    """

    groups: int
    checked: int
    false_alarms: int
    rate: float

    @property
    def holds(self) -> bool:
        """False: ten times the false alarms aimed at, and more than ten, which is no chance."""
        return self.false_alarms <= 10 * max(1.0, self.rate * self.checked)

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def calibrate(
    model: ServedModel,
    queries: Floats,
    *,
    groups: int = GROUPS,
    rate: float = 1e-4,
    seed: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> tuple[Consistency, Calibration]:
    """Fits a check on random groups of queries and tries it on groups of queries kept aside.

    Args:
        model: whose groups; its backbone must compute as the workers will (TF32 and float32
            leave different rounding).
        queries: float32 (Q, *input), like those that will be served; a tenth is kept aside.
        groups: to fit on, and a third as many to try it on; at most 10 for each query.
        rate: false alarms per clean group to aim at.
        seed: of the groups.
        progress: told what is being done.

    Raises:
        ValueError: too few queries for 60 groups.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(queries))
    aside, used = np.split(order, [len(order) // 10])
    if len(aside) < model.code.k:
        raise ValueError(
            f"queries: expected {10 * model.code.k} or more for k={model.code.k}, "
            f"got {len(queries)}"
        )
    progress(f"results of {len(queries):,} queries")
    batches = np.array_split(queries, max(1, len(queries) // _BATCH))
    embeddings = np.concatenate([np.asarray(model.embed(part)) for part in batches])
    count = min(groups, _GROUPS_PER_QUERY * len(used))
    checked = min(CHECKED, max(1, groups // 3), _GROUPS_PER_QUERY * len(aside))
    progress(f"{count + checked:,} parity queries")
    fitted = _syndromes(model, queries, embeddings, _grouped(used, model.code.k, count, random))
    tried = _syndromes(model, queries, embeddings, _grouped(aside, model.code.k, checked, random))
    progress("fitting")
    size = float(np.sqrt(np.mean(np.square(embeddings, dtype=np.float64))))
    # A tenth of what counts as the same result: machines may differ by it in every element.
    resolution = 0.1 * SAME_TOLERANCE * size
    check = fit_consistency(model.code, fitted, resolution=resolution, rate=rate)
    alarms = int((check.scores(tried) > -np.log10(rate)).sum())
    return check, Calibration(len(fitted), len(tried), alarms, rate)


def syndromes(code: Any, data: Floats, parities: Floats) -> Floats:
    """f(parity_i) - sum_j c_ij f(x_j): (G, k, *embedding), (G, r, *embedding) -> as the latter."""
    coefficients = np.asarray(code.coefficients, np.float32)
    expected = np.einsum("rk,gkd->grd", coefficients, data.reshape(*data.shape[:2], -1))
    difference: Floats = parities - expected.reshape(parities.shape)
    return difference


def _grouped(
    indices: NDArray[np.int64], k: int, count: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """(count, k): groups without repeats within one, from as many passes as it takes."""
    per_pass = len(indices) // k
    passes: Iterator[NDArray[np.int64]] = (
        random.permutation(indices)[: per_pass * k].reshape(per_pass, k)
        for _ in range(-(-count // per_pass))
    )
    return np.concatenate(list(passes))[:count]


def _syndromes(
    model: ServedModel, queries: Floats, embeddings: Floats, groups: NDArray[np.int64]
) -> Floats:
    found = []
    for part in np.array_split(groups, max(1, len(groups) // _BATCH)):
        parity_queries = np.asarray(model.encode(queries[part]))
        flat = parity_queries.reshape(-1, *parity_queries.shape[2:])
        results = np.asarray(model.embed(flat))
        parities = results.reshape(*parity_queries.shape[:2], *results.shape[1:])
        found.append(syndromes(model.code, embeddings[part], parities))
    # The passes follow each other: shuffled, so that fit and tail see all of them alike.
    return np.random.default_rng(0).permutation(np.concatenate(found))
