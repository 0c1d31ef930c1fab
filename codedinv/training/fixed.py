"""A trained classifier as later steps see it: baked, fixed, its answers computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codedinv.training.images import LabelledImages


@dataclass(frozen=True)
class FixedClassifier:
    """Backbone and head that no longer learn.

    Attributes:
        backbone: a baked copy (plain weights: no norm to estimate at each call), eval mode.
        head: a copy, eval mode.
    """

    backbone: nn.Module
    head: nn.Module

    @classmethod
    def of(cls, backbone: nn.Module, head: nn.Module, device: torch.device) -> FixedClassifier:
        """Copies and fixes a trained backbone and its head."""
        bake = getattr(backbone, "bake", None)
        plain = copy.deepcopy(backbone) if bake is None else bake()[0]
        fixed = cls(plain.eval().to(device), copy.deepcopy(head).eval().to(device))
        fixed.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in (fixed.backbone, fixed.head):
            module.requires_grad_(False)
        return fixed

    def embeddings(self, learnt: LabelledImages) -> Tensor:
        """[2, N, *embedding]: of all images, and of their mirrors."""
        return of_both_views(self.backbone, learnt)

    def logits(self, learnt: LabelledImages) -> Tensor:
        """[2, N, outputs]: of all images, and of their mirrors."""
        return of_both_views(lambda x: self.head(self.backbone(x)), learnt)


@torch.no_grad()
def of_both_views(function: Callable[[Tensor], Tensor], learnt: LabelledImages) -> Tensor:
    """[2, N, ...]: what a function of queries [B, 1, H, W] makes of all images and mirrors."""
    mirrored = LabelledImages(learnt.images.flip(2), learnt.labels)
    parts = range(0, len(learnt), 1000)
    return torch.stack(
        [
            torch.cat([function(view.queries(slice(at, at + 1000))) for at in parts])
            for view in (learnt, mirrored)
        ]
    )


def mirrored_where(queries: Tensor, view: Tensor) -> Tensor:
    """Queries [B, C, H, W], those with view [B] = 1 mirrored left-right."""
    return torch.where(view[:, None, None, None] == 1, queries.flip(3), queries)
