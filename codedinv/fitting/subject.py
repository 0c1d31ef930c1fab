"""The model that is to be coded, checked against its data before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from codedinv.coding import Code
from codedinv.data import Examples
from codedinv.fitting.settings import HELD_OUT, Settings
from codedinv.model import CodedModel
from codedinv.training.fixed import AllHeads, FixedClassifier
from codedinv.training.learnt import LabelledQueries, check_classes, split_off

_ANCHORS = 16
_LARGEST_CACHE = 2**30  # bytes of embeddings that are kept
_MIRROR_MAY_COST = 1.0  # points of accuracy by which f may be worse on mirrored images


@dataclass(frozen=True)
class Subject:
    """A model that is to be coded, and what it is coded with.

    Attributes:
        backbone, heads: torch modules, as they were given.
        plain: the model without any redundancy.
        fixed: f and all of g, as training sees them.
        learnt: examples that light model and encoders learn from.
        held_out: training examples that nothing learns from, for calibration.
        test: examples that everything is measured on.
        views: 2 for images that f takes mirrored as well, else 1.
        device: where training happens.
    """

    backbone: nn.Module
    heads: Mapping[str, nn.Module]
    plain: CodedModel
    fixed: FixedClassifier
    learnt: LabelledQueries
    held_out: LabelledQueries
    train: Examples
    test: Examples
    views: int
    device: torch.device

    @property
    def outputs(self) -> int:
        """Classes of the first task, the one that has labels."""
        return next(iter(self.plain.tasks.values()))

    @property
    def work(self) -> int:
        """F: multiply-accumulates of one backbone call."""
        return int(self.plain.metadata["macs"]["backbone"])

    @classmethod
    def checked(
        cls,
        backbone: Any,
        heads: Any,
        train: Examples,
        test: Examples,
        settings: Settings,
        device: str,
    ) -> Subject:
        """Checks that model and data fit together.

        Raises:
            TypeError: backbone or heads are no torch modules.
            ValueError: they do not fit together, or there are too few examples.
        """
        backbone, heads = as_modules(backbone, heads)
        _check_amounts(train, test, settings)
        target = torch.device(device)
        anchors = anchors_of(train, max(_ANCHORS, max(settings.ks) - 1), settings.seed)
        plain = CodedModel.from_modules(
            name=settings.name,
            code=Code.uniform(settings.ks[0]),
            backbone=backbone,
            heads=heads,
            encoder=None,
            anchors_queries=anchors,
            scheme="uncoded",
        )
        outputs = next(iter(plain.tasks.values()))
        if outputs < 2:
            raise ValueError(
                f"heads: {next(iter(heads))!r} has one output; fit compares accuracies of classes, "
                "so regression has to be coded by hand (CodedModel.from_modules)"
            )
        for part in (train, test):
            part.check_fit(plain.input_shape, outputs)
        learnt, held_out = split_off(train, HELD_OUT, settings.seed, target)
        fixed = FixedClassifier.of(backbone, AllHeads(heads), target)
        views = 2 if _mirrors(fixed, held_out, outputs) else 1
        learnt = _affordable(learnt, int(np.prod(plain.embedding_shape)) * views)
        return cls(
            backbone, heads, plain, fixed, learnt, held_out, train, test, views, target
        )  # fmt: skip


def anchors_of(train: Examples, count: int, seed: int) -> np.ndarray:
    """Queries that fill the free slots of partial groups: drawn from the training examples."""
    picked = np.random.default_rng(seed).choice(len(train), count, replace=len(train) < count)
    return train.queries(picked)


def as_modules(backbone: Any, heads: Any) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Backbone and heads by task, as they were given.

    Raises:
        TypeError: they are no torch modules.
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone: expected a torch module, got {type(backbone).__name__}")
    named = {"label": heads} if isinstance(heads, nn.Module) else dict(heads or {})
    if not named or not all(isinstance(head, nn.Module) for head in named.values()):
        raise TypeError(f'heads: expected torch modules by task, {{"label": g}}, got {heads!r}')
    return backbone, named


def _check_amounts(train: Examples, test: Examples, settings: Settings) -> None:
    check_classes(train)
    needed = max(10 * max(settings.ks), 100)
    for part in (train, test):
        if len(part) < needed:
            raise ValueError(
                f"{part.source}: expected at least {needed} examples for groups of "
                f"{max(settings.ks)}, got {len(part)}; nothing can be said of fewer"
            )
    if train.input_shape != test.input_shape:
        raise ValueError(
            f"{test.source}: expected queries {list(train.input_shape)}, as in {train.source}, "
            f"got {list(test.input_shape)}"
        )


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
    parts = (of.queries(slice(at, at + 500)) for at in range(0, len(of), 500))
    return torch.cat([fixed.head(fixed.backbone(x))[:, :outputs].argmax(1) for x in parts])


def _affordable(learnt: LabelledQueries, numbers: int) -> LabelledQueries:
    """As many as the embeddings of, `numbers` each, fit in the memory set aside for them."""
    most = max(1000, _LARGEST_CACHE // (4 * numbers))
    return LabelledQueries(learnt.inputs[:most], learnt.labels[:most])
