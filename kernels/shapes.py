"""The shape of a stage, and the sizes that its channels are padded to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Rows and columns of packed 3x3 weights are padded to a multiple of this, so that any tile up to
# it may be tuned.
LARGEST_TILE = 64


@dataclass(frozen=True, order=True)
class Stage:
    """The shape of a run of residual blocks: C @ H x W with M hidden channels."""

    channels: int
    height: int
    width: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.channels}@{self.height}x{self.width}/{self.hidden}"

    @property
    def branch_macs(self) -> int:
        """Multiply-accumulates of one block's branch for one image."""
        per_pixel = 18 * self.channels * self.hidden + self.hidden * self.hidden
        return per_pixel * self.height * self.width


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not below number."""
    return 1 << (number - 1).bit_length()


def padded_width(channels: int) -> int:
    """Columns that a matrix product gets for `channels`: a power of two, at least 16."""
    return max(16, next_power_of_2(channels))


def padded_channels(channels: int) -> int:
    """Channels of a pixel's activations in scratch: a power of two, so that a gather of im2col
    columns loads vectors."""
    return next_power_of_2(channels)


def padded_taps(channels: int) -> int:
    """Rows or columns of packed 3x3 weights: nine taps of `channels`, and zeros."""
    return -(-9 * channels // LARGEST_TILE) * LARGEST_TILE


def parts_of(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """(dtype, number) of the parts that an operand of `dtype` is multiplied as: float32 as the sum
    of three bfloat16 numbers, half precisions as they are."""
    return (torch.bfloat16, 3) if dtype == torch.float32 else (dtype, 1)
