"""The shape of a stage, and the sizes that its channels are padded to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows and columns of packed 3x3 weights are padded to a multiple of this, so that any tile up to
# it may be tuned.
LARGEST_TILE = 64

# Relative fixed-point step that each dtype can reach, with a margin of 4 over what was seen to be
# reached (bfloat16 1.2e-4, float32 2.8e-8): asking for less would only run into the cap.
REACHABLE_STEP = {
    torch.float64: 1e-14,
    torch.float32: 1e-7,
    torch.float16: 1e-4,
    torch.bfloat16: 5e-4,
}


def supported_dtype(dtype: torch.dtype, name: str) -> torch.dtype:
    """dtype; ValueError naming the argument unless it is a floating one."""
    if dtype not in REACHABLE_STEP:
        raise ValueError(f"{name}: expected a floating dtype, got {dtype}")
    return dtype


def reachable_tolerance(tol: float, dtype: torch.dtype) -> float:
    """tol, or what `dtype` can reach if that is more; ValueError unless tol is positive."""
    if not tol > 0:
        raise ValueError(f"tol: expected a positive relative step, got {tol}")
    return max(tol, REACHABLE_STEP[dtype])


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


def pixelwise(x: Tensor) -> Tensor:
    """x, copied to NCHW only if its pixels do not follow one another with one stride."""
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if dense else x.contiguous()


def pixel_strides(x: Tensor) -> tuple[int, int, int]:
    """(image, pixel, channel) strides of x [B, C, H, W], whose pixels have one stride. In an
    image one pixel wide that is the stride of rows; torch leaves the other at anything."""
    image, channel, row, pixel = x.stride()
    return image, pixel if x.shape[3] > 1 else row, channel


@dataclass(frozen=True)
class Sizes:
    """All that a kernel of a stage is compiled for, its one constexpr beside switches.

    Attributes:
        C, CP: channels, and as padded in activations. N: hidden channels, padded.
        K1, N3: padded rows of w1, columns of w3. H, W: the image.
        IMAGES: whole images per program. BANDS: programs per image, each a band of rows.
        BLOCK: pixels per tile outside the matrix products.
        BLOCK_M: pixels, BLOCK_K: rows of w1, BLOCK_N: columns of w3 per tile of the products.
        PARTS: numbers that make up an operand. PROMOTE: whether sums of their products begin at
            zero at each BLOCK_K. INTERPRETED: whether Triton's interpreter runs it.
    """

    C: int
    CP: int
    N: int
    K1: int
    N3: int
    H: int
    W: int
    IMAGES: int
    BANDS: int
    BLOCK: int
    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    PARTS: int
    PROMOTE: bool
    INTERPRETED: bool

    @property
    def PIXELS(self) -> int:
        return self.H * self.W

    @property
    def ROWS(self) -> int:
        """Rows of a band; the last band may have fewer."""
        return -(-self.H // self.BANDS)

    @property
    def HALO(self) -> int:
        """Rows of each neighbouring band whose hidden layers a band computes too."""
        return 1 if self.BANDS > 1 else 0

    @property
    def LOCAL(self) -> int:
        """Rows of a band and its halo."""
        return self.ROWS + 2 * self.HALO

    @property
    def STRIDE(self) -> int:
        """Columns of partial products: the pixels of a program, padded to tiles."""
        return -(-self.IMAGES * self.LOCAL * self.W // self.BLOCK_M) * self.BLOCK_M

    @property
    def SIZE(self) -> int:
        """Numbers of a program's images."""
        return self.IMAGES * self.C * self.PIXELS

    @property
    def PLANE(self) -> int:
        """Numbers of one part of a program's activations."""
        return self.IMAGES * self.PIXELS * self.CP

    @property
    def IDS(self) -> int:
        """Entries of a table with one per image."""
        return next_power_of_2(self.IMAGES)
