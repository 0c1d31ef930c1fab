"""A trained classifier as later steps see it: baked, fixed, its answers computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from codedinv.training.learnt import LabelledQueries

_PROBES = 16  # queries whose embeddings tell whether a cache is this backbone's and of these
_BATCH = 1000


class AllHeads(nn.Module):
    """The heads of all tasks as one: embedding -> their outputs, one task's after the other."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads.values())

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([head(z) for head in self.heads], dim=1)


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

    def embeddings(
        self, learnt: LabelledQueries, cache: Path | None = None, views: int = 2
    ) -> Tensor:
        """[views, N, *embedding]: of all queries, and, with two views, of their mirrors.

        Args:
            learnt: the queries.
            cache: file to keep them in, for the light model and the encoder of every k. It is made
                anew where it does not hold this backbone's embeddings of these queries.
            views: 1, or 2 for images that may be mirrored.
        """
        kept = self._kept(learnt, cache, views)
        if kept is not None:
            return kept
        found = of_views(self.backbone, learnt, views)
        if cache is not None:
            partial = cache.with_suffix(".partial")
            torch.save(found.cpu(), partial)
            partial.replace(cache)
        return found

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """[views, N, outputs] of embeddings [views, N, *embedding]."""
        parts = torch.split(embeddings.flatten(0, 1), _BATCH)
        return torch.cat([self.head(part) for part in parts]).reshape(*embeddings.shape[:2], -1)

    def _kept(self, learnt: LabelledQueries, cache: Path | None, views: int) -> Tensor | None:
        if cache is None or not cache.is_file():
            return None
        kept: Tensor = torch.load(cache, weights_only=True, map_location=learnt.inputs.device)
        few = LabelledQueries(learnt.inputs[:_PROBES], learnt.labels[:_PROBES])
        fresh = of_views(self.backbone, few, views)
        if len(kept) < views or kept.shape[1:] != (len(learnt), *fresh.shape[2:]):
            return None
        largest = float(fresh.abs().max())
        same = torch.allclose(kept[:views, :_PROBES], fresh, rtol=0, atol=1e-4 * largest)
        return kept[:views] if same else None


@torch.no_grad()
def of_views(
    function: Callable[[Tensor], Tensor], learnt: LabelledQueries, views: int = 2
) -> Tensor:
    """[views, N, ...]: what a function of queries [B, *input] makes of all queries and, with two
    views, of their mirrors."""
    shown = (learnt, learnt.mirrored())[:views] if views > 1 else (learnt,)
    parts = range(0, len(learnt), _BATCH)
    return torch.stack(
        [
            torch.cat([function(view.queries(slice(at, at + _BATCH))) for at in parts])
            for view in shown
        ]
    )


def mirrored_where(queries: Tensor, view: Tensor) -> Tensor:
    """Images [B, C, H, W], those with view [B] = 1 mirrored left-right; others as they are."""
    if queries.ndim != 4:
        return queries
    return torch.where(view[:, None, None, None] == 1, queries.flip(3), queries)
