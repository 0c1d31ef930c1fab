"""Normal accuracy A_n and degraded accuracy A_d of a model, as docs/numbers.md defines them.

Every image is embedded once. In each random grouping the encoder makes the parity queries of all
groups, and every set of lost data slots that the code covers is decoded, for all groups at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.bundle import CodedModel
from codedinv.coding import Code

Floats = NDArray[np.float32]
Progress = Callable[[str], None]
_BATCH = 250  # embeddings and activations of a batch stay within a few tens of MB
_Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean in percent with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Accuracy:
    """What `evaluate` finds for one task; all numbers are percentages.

    Attributes:
        normal: A_n, right answers among exact ones, over all images.
        degraded: A_d, right answers among reconstructed ones, one data slot lost, every slot in
            turn.
        degraded_by_lost: the same with m data slots of a group lost, m = 1..r, over every set of
            m lost slots and every set of m parity results.
        degraded_by_slot: A_d of each data slot.
        agreement: reconstructed answers that equal the exact answer, right or wrong.
        whole_group: right answers among all k of a group, one of them reconstructed.
        images: how many were used.
        groupings: how many random groupings.
    """

    normal: Estimate
    degraded: Estimate
    degraded_by_lost: dict[int, Estimate]
    degraded_by_slot: list[float]
    agreement: Estimate
    whole_group: Estimate
    images: int
    groupings: int


def evaluate(
    model: CodedModel,
    queries: Floats,
    labels: NDArray[np.int64],
    *,
    task: str | None = None,
    groupings: int = 3,
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> Accuracy:
    """Measures A_n, A_d, agreement and whole-group accuracy.

    Args:
        model: to evaluate; the task's head must be a classifier.
        queries: float32 (N, *input), N >= k. In each grouping the N modulo k images that are left
            over sit out.
        labels: int (N,), the true classes.
        task: None for the model's first.
        groupings: random partitions of the images into groups of k.
        seed: of the groupings.
        progress: is told what is being done.

    Raises:
        ValueError: fewer than k images, labels of another length, or groupings < 1.
    """
    k = model.code.k
    if len(queries) < k or labels.shape != (len(queries),):
        raise ValueError(
            f"queries, labels: expected at least {k} of each and as many labels as queries, "
            f"got {queries.shape} and {labels.shape}"
        )
    if groupings < 1:
        raise ValueError(f"groupings: expected at least 1, got {groupings}")

    def classify(embeddings: Floats) -> NDArray[np.int64]:
        scores = _in_batches(lambda z: model.head(z, task), embeddings)
        return np.asarray(scores.argmax(axis=1), dtype=np.int64)

    progress(f"exact answers of {len(queries)} images")
    embeddings = _in_batches(model.embed, queries)
    exact = classify(embeddings)
    right_exactly = exact == labels
    degraded: dict[int, list[_Outcomes]] = {lost: [] for lost in range(1, model.code.r + 1)}
    agreement: list[_Outcomes] = []
    generator = np.random.default_rng(seed)
    for grouping in range(groupings):
        progress(f"grouping {grouping + 1} of {groupings}: parity queries")
        groups = generator.permutation(len(queries))[: len(queries) // k * k].reshape(-1, k)
        parity = parity_embeddings(model, queries, groups)
        first_group = grouping * len(groups)
        for lost, used in patterns(model.code):
            progress(f"grouping {grouping + 1} of {groupings}: slots {lost} lost")
            recovered = recover(model.code, embeddings[groups], parity, lost, used)
            answers = classify(recovered.reshape(-1, *model.embedding_shape)).reshape(-1, len(lost))
            images = groups[:, lost]
            rows = np.broadcast_to(first_group + np.arange(len(groups))[:, None], images.shape)
            slots = np.broadcast_to(lost, images.shape)
            degraded[len(lost)].append(_Outcomes(answers == labels[images], images, rows, slots))
            if len(lost) == 1:
                agreement.append(_Outcomes(answers == exact[images], images, rows, slots))
    one_lost = _Outcomes.concatenated(degraded[1])
    agreed = _Outcomes.concatenated(agreement)
    images = np.arange(len(queries))
    return Accuracy(
        normal=interval(right_exactly, images),
        degraded=one_lost.estimate(),
        degraded_by_lost={
            lost: _Outcomes.concatenated(outcomes).estimate() for lost, outcomes in degraded.items()
        },
        degraded_by_slot=one_lost.by_slot(k),
        agreement=agreed.estimate(),
        # Over the k turns an image is answered exactly k - 1 times and reconstructed once.
        whole_group=interval(
            ((k - 1) * right_exactly[one_lost.images] + one_lost.values) / k,
            one_lost.images,
            one_lost.groups,
        ),
        images=len(queries),
        groupings=groupings,
    )


def patterns(code: Code) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways in which exactly k results arrive and data is missing.

    Yields:
        (lost data slots, parity rows that arrived in their place), both of one length 1..r.
    """
    for lost_count in range(1, min(code.r, code.k) + 1):
        for lost in combinations(range(code.k), lost_count):
            for used in combinations(range(code.r), lost_count):
                yield lost, used


def parity_embeddings(model: CodedModel, queries: Floats, groups: NDArray[np.int64]) -> Floats:
    """f(encoder(group)): queries (N, *input), groups (G, k) of their rows -> (G, r, *embedding)."""
    size = max(1, _BATCH // model.code.k)
    return _in_batches(lambda rows: _embed_each(model, model.encode(queries[rows])), groups, size)


def recover(
    code: Code, data: Floats, parity: Floats, lost: tuple[int, ...], used: tuple[int, ...]
) -> Floats:
    """Decodes the lost slots of many groups at once; what `StreamingDecoder` does for one.

    Args:
        code: the (n, k) code.
        data: (G, k, *embedding); the lost slots' rows are not looked at.
        parity: (G, r, *embedding).
        lost: m data slots.
        used: m parity rows in 0..r-1.

    Returns:
        (G, m, *embedding) estimates of the lost slots: C[used, lost]^-1 (parity - C data), the
        sum over the slots that arrived.
    """
    arrived = [slot for slot in range(code.k) if slot not in lost]
    coefficients = np.asarray(code.coefficients)[list(used)]
    flat = data.reshape(*data.shape[:2], -1)[:, arrived]
    syndrome = parity.reshape(*parity.shape[:2], -1)[:, list(used)].astype(np.float64)
    syndrome -= np.einsum("rj,gjd->grd", coefficients[:, arrived], flat, optimize=True)
    solved = np.linalg.inv(coefficients[:, list(lost)]) @ syndrome
    return solved.astype(np.float32).reshape(len(data), len(lost), *data.shape[2:])


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
    return Estimate(float(mean), float(max(mean - half, 0)), float(min(mean + half, 100)))


@dataclass(frozen=True)
class _Outcomes:
    """Reconstructed answers of one or more patterns, one entry each."""

    values: NDArray[Any]
    images: NDArray[np.int64]
    groups: NDArray[np.int64]
    slots: NDArray[np.int64]

    @classmethod
    def concatenated(cls, parts: list[_Outcomes]) -> _Outcomes:
        return cls(
            *(
                np.concatenate([getattr(part, name).ravel() for part in parts])
                for name in ("values", "images", "groups", "slots")
            )
        )

    def estimate(self) -> Estimate:
        return interval(self.values, self.images, self.groups)

    def by_slot(self, k: int) -> list[float]:
        return [float(100 * self.values[self.slots == slot].mean()) for slot in range(k)]


def _cluster_variance(deviations: NDArray[np.float64], clusters: NDArray[np.int64]) -> float:
    totals = np.bincount(clusters, weights=deviations)
    return float((totals**2).sum() / len(deviations) ** 2)


def _embed_each(model: CodedModel, parity_queries: Floats) -> Floats:
    flat = parity_queries.reshape(-1, *model.input_shape)
    return model.embed(flat).reshape(*parity_queries.shape[:2], *model.embedding_shape)


def _in_batches(
    function: Callable[[Any], Floats], inputs: NDArray[Any], size: int = _BATCH
) -> Floats:
    return np.concatenate(
        [function(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    )
