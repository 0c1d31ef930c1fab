"""Multiply-accumulate counts, the unit in which encoder cost is compared with backbone cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def macs(module: nn.Module, example: Tensor) -> int:
    """Counts the multiply-accumulates of convolutions and linear layers in one call.

    Args:
        module: any network of `nn.Conv1d`, `nn.Conv2d` and `nn.Linear`.
        example: one input, batch of 1.

    Returns:
        MACs of that call; element-wise work, biases and norms are not counted.
    """
    total = 0

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    handles = [
        layer.register_forward_hook(count)
        for layer in module.modules()
        if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Linear))
    ]
    training = module.training
    try:
        module.eval()(example)
    finally:
        module.train(training)
        for handle in handles:
            handle.remove()
    return total
