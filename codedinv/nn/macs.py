"""Multiply-accumulate counts, the unit in which encoder cost is compared with backbone cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codedinv.nn.attention import plain_attention


@torch.no_grad()
def macs(module: nn.Module, example: Tensor) -> int:
    """Counts the multiply-accumulates of convolutions, matrix products and attention in one call.

    Args:
        module: any network.
        example: one input, batch of 1.

    Returns:
        MACs of that call; element-wise work, biases and norms are not counted.
    """
    # Here, as it imports Triton, which looks once whether it is to interpret.
    from torch.utils.flop_counter import FlopCounterMode

    training = module.training
    try:
        with plain_attention(), FlopCounterMode(display=False) as counter:
            module.eval()(example)
    finally:
        module.train(training)
    return int(counter.get_total_flops()) // 2
