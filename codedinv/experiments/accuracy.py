"""Normal accuracy A_n and degraded accuracy A_d of a model, as docs/numbers.md defines them.

Every image is embedded once. In each random grouping the degraded answers of all groups are made at
once, every set of lost data slots that the code covers in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.degraded import (
    Floats,
    Known,
    degraded_answers,
    in_batches,
    parity_embeddings,
    patterns,
    recover,
)
from codedinv.experiments.groupings import Groups, alike_groups, arrival_groups
from codedinv.experiments.intervals import Estimate, Outcomes, difference, interval
from codedinv.model import CodedModel
from codedinv.model.manifest import ENCODED

__all__ = [
    "Accuracy",
    "Estimate",
    "evaluate",
    "interval",
    "known_of",
    "parity_embeddings",
    "patterns",
    "recover",
]

Progress = Callable[[str], None]
CHOICE = 16  # times k: how many queries there are to choose alike ones from


@dataclass(frozen=True)
class Accuracy:
    """What `evaluate` finds for one task; all numbers are percentages.

    Attributes:
        normal: A_n, right answers among exact ones, over all images.
        degraded: A_d, right answers among degraded ones as a server gives them to groups in order
            of arrival: fused with the light model's where the model has weights for that. One data
            slot lost, every slot in turn.
        served: the way of these answers, "arrival" or "arrival + fused".
        degraded_by_lost: the same with m data slots of a group lost, m = 1..r, over every set of
            m lost slots and every set of m parity results.
        degraded_by_slot: A_d of each data slot.
        degraded_by_way: A_d of each way of grouping ("arrival"; with a light model also "choosing",
            alike ones among 16 k queries, and "alike", among all), and each "+ fused".
        agreement: served degraded answers that equal the exact answer, right or wrong.
        whole_group: right answers among all k of a group, one of them degraded.
        light: right answers of the light model, over all images; None without one.
        worth: A_n minus the light model's accuracy, image by image: what workers are paid for.
        over_light: the same of the degraded answers of each way; empty without a light model.
        images: how many were used.
        groupings: how many random groupings.
        outcomes: of each way: what `degraded_by_way` is the mean of.
    """

    normal: Estimate
    degraded: Estimate
    served: str
    degraded_by_lost: dict[int, Estimate]
    degraded_by_slot: list[float]
    degraded_by_way: dict[str, Estimate]
    agreement: Estimate
    whole_group: Estimate
    light: Estimate | None
    worth: Estimate | None
    over_light: dict[str, Estimate]
    images: int
    groupings: int
    # Arrays, of which the rest are means.
    outcomes: dict[str, Outcomes] = field(compare=False, repr=False)


def evaluate(
    model: CodedModel,
    queries: Floats,
    labels: NDArray[np.int64],
    *,
    task: str | None = None,
    groupings: int = 3,
    seed: int = 0,
    known: Known | None = None,
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
        known: what `known_of` found for the same queries and task; None: found here.
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
    progress(f"exact answers of {len(queries)} images")
    known = known_of(model, queries, task) if known is None else known
    exact = known.exact.argmax(axis=1)
    fused = known.light is not None and model.fusion is not None
    served = "arrival + fused" if fused else "arrival"
    by_way: dict[str, list[Outcomes]] = {}
    by_lost: dict[int, list[Outcomes]] = {lost: [] for lost in range(1, model.code.r + 1)}
    agreement: list[Outcomes] = []
    generator = np.random.default_rng(seed)
    for grouping in range(groupings):
        order = generator.permutation(len(queries))
        for kind, groups in _groups_by_kind(model, known, order):
            progress(f"grouping {grouping + 1} of {groupings}: groups by {kind}")
            first_group = grouping * (len(queries) // k)
            for lost, answers in degraded_answers(model, queries, known, groups, kind, task):
                images = groups[:, lost]
                rows = np.broadcast_to(first_group + np.arange(len(groups))[:, None], images.shape)
                slots = np.broadcast_to(lost, images.shape)
                for way, given in answers.items():
                    right = Outcomes(given == labels[images], images, rows, slots)
                    if way == served:
                        by_lost[len(lost)].append(right)
                    if len(lost) == 1:
                        by_way.setdefault(way, []).append(right)
                if served in answers and len(lost) == 1:
                    agreed = answers[served] == exact[images]
                    agreement.append(Outcomes(agreed, images, rows, slots))
    return _summary(
        known, exact == labels, labels, by_way, by_lost, agreement, served, k, groupings
    )


def known_of(model: CodedModel, queries: Floats, task: str | None = None) -> Known:
    """Embeddings, exact logits and light logits of all queries: what no grouping changes."""
    embeddings = in_batches(model.embed, queries)
    exact = in_batches(lambda z: model.head(z, task), embeddings)
    light = None
    if model.light is not None:
        answer, of = model.light, next(iter(model.heads)) if task is None else task
        light = in_batches(lambda x: answer(x)[of], queries)
    return Known(embeddings, exact, light)


def _groups_by_kind(
    model: CodedModel, known: Known, order: NDArray[np.int64]
) -> Iterator[tuple[str, Groups]]:
    """("arrival" | "choosing" | "alike", groups); the latter two for codes, with a light model."""
    k = model.code.k
    yield "arrival", arrival_groups(order, k)
    if known.light is not None and model.scheme in ENCODED:
        classes = known.light.argmax(axis=1)
        yield "choosing", alike_groups(order, classes, k, among=CHOICE * k)
        yield "alike", alike_groups(order, classes, k)


def _summary(
    known: Known,
    right_exactly: NDArray[np.bool_],
    labels: NDArray[np.int64],
    by_way: Mapping[str, list[Outcomes]],
    by_lost: Mapping[int, list[Outcomes]],
    agreement: list[Outcomes],
    served: str,
    k: int,
    groupings: int,
) -> Accuracy:
    one_lost = Outcomes.concatenated(by_lost[1])
    images = np.arange(len(labels))
    ways = {way: Outcomes.concatenated(outcomes) for way, outcomes in by_way.items()}
    light = worth = None
    over_light = {}
    if known.light is not None:
        lightly = known.light.argmax(axis=1) == labels
        light = interval(lightly, images)
        worth = difference(right_exactly.astype(np.float64) - lightly, images)
        over_light = {way: outcomes.over(lightly) for way, outcomes in ways.items()}
    # Over the k turns an image is answered exactly k - 1 times and degraded once.
    whole: NDArray[Any] = ((k - 1) * right_exactly[one_lost.images] + one_lost.values) / k
    return Accuracy(
        normal=interval(right_exactly, images),
        degraded=one_lost.estimate(),
        served=served,
        degraded_by_lost={
            lost: Outcomes.concatenated(outcomes).estimate() for lost, outcomes in by_lost.items()
        },
        degraded_by_slot=one_lost.by_slot(k),
        degraded_by_way={way: outcomes.estimate() for way, outcomes in ways.items()},
        agreement=Outcomes.concatenated(agreement).estimate(),
        whole_group=interval(whole, one_lost.images, one_lost.groups),
        light=light,
        worth=worth,
        over_light=over_light,
        images=len(labels),
        groupings=groupings,
        outcomes=ways,
    )
