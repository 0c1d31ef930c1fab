"""Outputs of several tasks side by side: classes, and numbers where a task has one output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def targets_of(outputs: Tensor, tasks: Sequence[int]) -> Tensor:
    """What a pupil is to give: probabilities for classes, a number for a number.

    Args:
        outputs: [..., all outputs] of a teacher.
        tasks: outputs of each task, in order.
    """
    parts = torch.split(outputs, list(tasks), -1)
    return torch.cat([part.softmax(-1) if part.shape[-1] > 1 else part for part in parts], -1)


def loss_of(outputs: Tensor, targets: Tensor, tasks: Sequence[int], scale: Tensor) -> Tensor:
    """Sum over the tasks of what outputs [B, all] miss of their targets.

    Classes: cross entropy. Numbers: squared error over the variance that they have.

    Args:
        outputs: [B, all outputs].
        targets: as `targets_of` made them.
        tasks: outputs of each task.
        scale: [all outputs], see `scale_of`.
    """
    parts = zip(*(torch.split(x, list(tasks), -1) for x in (outputs, targets, scale)), strict=True)
    losses = [
        F.cross_entropy(own, wanted)
        if own.shape[1] > 1
        else ((own - wanted) / spread).square().mean()
        for own, wanted, spread in parts
    ]
    return torch.stack(losses).sum()


def entropy_of(targets: Tensor, tasks: Sequence[int]) -> Tensor:
    """The least that `loss_of` can be: the entropy of the classes' probabilities, mean over B."""
    parts = (part for part in torch.split(targets, list(tasks), -1) if part.shape[1] > 1)
    entropies = [-torch.xlogy(part, part).sum(1).mean() for part in parts]
    return torch.stack([targets.new_zeros(()), *entropies]).sum()


def scale_of(targets: Tensor) -> Tensor:
    """[all outputs]: the standard deviation of each output over [..., all outputs], never 0."""
    return targets.flatten(0, -2).std(0).clamp_min(1e-6)
