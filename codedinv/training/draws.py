"""Which training queries form the coding groups of a step: at random, or alike."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codedinv.training.learnt import LabelledQueries


class GroupDraw:
    """Draws groups of k queries, a share of them of one class each.

    Args:
        classes: int64 [N], the class that decides which queries are alike.
        k: queries per group.
        alike: share of the groups that are alike; the others are drawn from all queries.
    """

    def __init__(self, classes: Tensor, k: int, alike: float) -> None:
        self.classes = classes
        self.k = k
        self.alike = alike
        self._by_class = classes.argsort(stable=True)
        self._counts = classes.bincount()
        self._starts = self._counts.cumsum(0) - self._counts

    def __call__(self, groups: int) -> Tensor:
        """int64 [groups, k] of their numbers, with replacement; the alike groups come first."""
        size, device = len(self.classes), self.classes.device
        alike = round(self.alike * groups)
        mixed = torch.randint(size, (groups - alike, self.k), device=device)
        # The class of a query drawn from all: classes come as often as they do in the traffic.
        of = self.classes[torch.randint(size, (alike, 1), device=device)]
        place = torch.rand(alike, self.k, device=device) * self._counts[of]
        same = self._by_class[self._starts[of] + place.long().minimum(self._counts[of] - 1)]
        return torch.cat([same, mixed])


@torch.no_grad()
def classes_of(
    light: nn.Module, learnt: LabelledQueries, device: torch.device, outputs: int | None = None
) -> Tensor:
    """int64 [N]: the class that the light model gives to each query, by its first `outputs`."""
    light = light.to(device).eval()
    parts = range(0, len(learnt), 1000)
    logits = (light(learnt.queries(slice(at, at + 1000)))[:, :outputs] for at in parts)
    return torch.cat([part.argmax(1) for part in logits])
