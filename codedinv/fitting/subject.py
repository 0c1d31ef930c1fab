"""The model that is to be coded, checked against its data before anything is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.data import Examples
from codedinv.fitting.parts import Parts
from codedinv.fitting.settings import HELD_OUT, LIGHT_SHARE, Settings, percent
from codedinv.model import CodedModel
from codedinv.nn.light import least_light
from codedinv.training.fixed import FixedClassifier
from codedinv.training.learnt import LabelledQueries, check_classes, split_off

_ANCHORS = 16
_LARGEST_CACHE = 2**30  # bytes of embeddings that are kept
_MIRROR_MAY_COST = 1.0  # points of accuracy by which f may be worse on mirrored images
_BATCH = 500
_TOO_LIGHT = 0.2  # of the backbone's work at the front end: nobody gives so much for redundancy


@dataclass(frozen=True)
class Subject:
    """A model that is to be coded, and what it is coded with.

    Attributes:
        parts: f and g as they were given.
        plain: the model without any redundancy.
        fixed: f and all of g, as training sees them.
        learnt: examples that light model and encoders learn from.
        held_out: training examples that nothing learns from, for calibration.
        train, test: all examples; everything is measured on the latter.
        views: 2 for images that f takes mirrored as well, else 1.
        device: where training happens.
    """

    parts: Parts
    plain: CodedModel
    fixed: FixedClassifier
    learnt: LabelledQueries
    held_out: LabelledQueries
    train: Examples
    test: Examples
    views: int
    device: torch.device

    @property
    def work(self) -> int:
        """F: multiply-accumulates of one backbone call."""
        return int(self.plain.metadata["macs"]["backbone"])

    @classmethod
    def checked(
        cls, parts: Parts, train: Examples, test: Examples, settings: Settings, device: str
    ) -> Subject:
        """Checks that model and data fit together.

        Raises:
            ValueError: they do not, or there are too few examples.
        """
        target = torch.device(device)
        plain = parts.model(
            name=settings.name,
            code=Code.uniform(settings.ks[0]),
            anchors_queries=anchors_of(train, settings),
            scheme="uncoded",
        )
        outputs = _check_model(plain)
        check_budget(plain, settings)
        for part in (train, test):
            part.check_fit(plain.input_shape, outputs)
        learnt, held_out = split_off(train, HELD_OUT, settings.seed, target)
        fixed = parts.fixed(plain, target)
        views = 2 if _mirrors(fixed, held_out, outputs) else 1
        learnt = _affordable(learnt, int(np.prod(plain.embedding_shape)) * views)
        return cls(parts, plain, fixed, learnt, held_out, train, test, views, target)


def check_amounts(train: Examples, test: Examples, settings: Settings) -> None:
    """Refuses data of which nothing can be said, before anything is done.

    Raises:
        ValueError: too few examples, or test queries of another shape.
    """
    check_classes(train)
    needed = max(10 * max(settings.ks), 50)
    for part in (train, test):
        if len(part) < needed:
            raise ValueError(
                f"{part.source}: expected at least {needed} examples for groups of "
                f"{max(settings.ks)}, got {len(part)}; nothing can be said of fewer"
            )
    test.check_fit(train.input_shape)


def check_budget(plain: CodedModel, settings: Settings) -> None:
    """Refuses a budget that pays for no light model, before anything is trained.

    Raises:
        ValueError: says what the least budget is, or that none would do.
    """
    work = int(plain.metadata["macs"]["backbone"])
    least = least_light(plain.input_shape, sum(plain.tasks.values()))
    if least <= LIGHT_SHARE * settings.budget * work:
        return
    share = math.ceil(1e4 * least / (LIGHT_SHARE * work)) / 1e4
    takes = f"the lightest model takes {least:,} multiply-accumulates, the backbone {work:,}"
    if share > _TOO_LIGHT:
        otherwise = f", or give a budget of {share:.2%} or more" if share < 1 else ""
        raise ValueError(
            f"budget: {takes}: it is too light for anything lighter to stand in for it. Do not "
            f"code: send twice (scheme 'replication'){otherwise}"
        )
    raise ValueError(
        f"budget: expected {share:.2%} or more, got {percent(settings.budget)}: "
        f"{LIGHT_SHARE:.0%} of it is the light model's, and {takes}"
    )


def anchors_of(train: Examples, settings: Settings) -> NDArray[np.float32]:
    """Queries that fill the free slots of partial groups: drawn from the training examples."""
    count = max(_ANCHORS, max(settings.ks) - 1)
    return train.queries(np.random.default_rng(settings.seed).choice(len(train), count))


def _check_model(plain: CodedModel) -> int:
    """Classes of the first task, the one that labels are of.

    Raises:
        ValueError: it has one output, or a backbone without any work.
    """
    task, outputs = next(iter(plain.tasks.items()))
    if outputs < 2:
        raise ValueError(
            f"heads: {task!r} has one output; fit compares accuracies of classes, so a model of "
            "numbers has to be coded by hand (CodedModel.from_modules)"
        )
    if not plain.metadata["macs"]["backbone"]:
        raise ValueError(
            "backbone: it multiplies nothing, so workers would have nothing to do; put the network "
            "into the backbone and the last layer into the head"
        )
    return outputs


@torch.no_grad()
def _mirrors(fixed: FixedClassifier, held_out: LabelledQueries, outputs: int) -> bool:
    """Does f know mirrored images as well as it knows others? Digits and text it does not."""
    if held_out.inputs.ndim != 4:
        return False
    right = [
        float((_classes(fixed, view, outputs) == held_out.labels).float().mean())
        for view in (held_out, held_out.mirrored())
    ]
    return 100 * (right[0] - right[1]) <= _MIRROR_MAY_COST


def _classes(fixed: FixedClassifier, of: LabelledQueries, outputs: int) -> torch.Tensor:
    parts: Any = (of.queries(slice(at, at + _BATCH)) for at in range(0, len(of), _BATCH))
    return torch.cat([fixed.head(fixed.backbone(x))[:, :outputs].argmax(1) for x in parts])


def _affordable(learnt: LabelledQueries, numbers: int) -> LabelledQueries:
    """As many as the embeddings of, `numbers` each, fit in the memory set aside for them."""
    most = max(1000, _LARGEST_CACHE // (4 * numbers))
    return LabelledQueries(learnt.inputs[:most], learnt.labels[:most])
