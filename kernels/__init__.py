"""Triton kernels of the residual backbone: fused forward, single-launch inversion, power iteration.

Knows torch and Triton only. Without Triton, or for a shape the kernels do not take, the same
functions run in plain torch and say so once in the log.
"""

from .ops import (
    card_of,
    invert,
    invert_detailed,
    power_iteration,
    reachable_tolerance,
    residual_block,
    residual_blocks,
    unsupported,
)
from .tuning import Stage, measured_faster

__all__ = [
    "Stage",
    "card_of",
    "invert",
    "invert_detailed",
    "measured_faster",
    "power_iteration",
    "reachable_tolerance",
    "residual_block",
    "residual_blocks",
    "unsupported",
]
