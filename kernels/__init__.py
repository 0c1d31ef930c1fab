"""Triton kernels of the residual backbone: fused forward, single-launch inversion, power iteration.

Knows torch and Triton only. Without Triton, or for a shape the kernels do not take, the same
functions run in plain torch and say so once in the log.
"""

from .gate import card_of, measured_faster, unsupported
from .ops import invert, invert_detailed, power_iteration, residual_block, residual_blocks
from .prepared import PreparedBlocks, prepare
from .shapes import Stage, reachable_tolerance

__all__ = [
    "PreparedBlocks",
    "Stage",
    "card_of",
    "invert",
    "invert_detailed",
    "measured_faster",
    "power_iteration",
    "prepare",
    "reachable_tolerance",
    "residual_block",
    "residual_blocks",
    "unsupported",
]
