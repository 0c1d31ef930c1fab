"""A trained classifier as later steps see it: baked, fixed, its answers computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from codedinv.training.images import LabelledImages

_PROBES = 16  # images whose embeddings tell whether a cache is this backbone's and of these images


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

    def embeddings(self, learnt: LabelledImages, cache: Path | None = None) -> Tensor:
        """[2, N, *embedding]: of all images, and of their mirrors.

        Args:
            learnt: the images.
            cache: file to keep them in, for the light model and the encoder of every k. It is made
                anew where it does not hold this backbone's embeddings of these images.
        """
        kept = self._kept(learnt, cache)
        if kept is not None:
            return kept
        found = of_both_views(self.backbone, learnt)
        if cache is not None:
            torch.save(found.cpu(), cache)
        return found

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """[2, N, outputs] of embeddings [2, N, *embedding]."""
        parts = torch.split(embeddings.flatten(0, 1), 1000)
        return torch.cat([self.head(part) for part in parts]).reshape(*embeddings.shape[:2], -1)

    def _kept(self, learnt: LabelledImages, cache: Path | None) -> Tensor | None:
        if cache is None or not cache.is_file():
            return None
        kept: Tensor = torch.load(cache, weights_only=True, map_location=learnt.images.device)
        few = LabelledImages(learnt.images[:_PROBES], learnt.labels[:_PROBES])
        fresh = of_both_views(self.backbone, few)
        if kept.shape != (2, len(learnt), *fresh.shape[2:]):
            return None
        largest = float(fresh.abs().max())
        same = torch.allclose(kept[:, :_PROBES], fresh, rtol=0, atol=1e-4 * largest)
        return kept if same else None


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
