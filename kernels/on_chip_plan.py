"""Which layout a batch of a stage gets on a card: rules from the compiler's word and from counting,
not from timings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import torch

from .on_chip_shape import LARGEST_CLUSTER, Layout
from .shapes import Stage

DTYPES = (torch.bfloat16, torch.float16)

# Shared memory that one block of threads may have, by compute capability. Others are refused.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10,
                103: 227 << 10, 120: 99 << 10}  # fmt: skip

# Warps of a block of threads: at most as many as leave each thread 128 registers, or 256 where a
# warp holds two tiles of a layer of more than 32 channels; at least what hides the latency of pass
# two.
MOST_WARPS, MOST_WIDE_WARPS, LEAST_WARPS = 16, 8, 4
NARROW = 32
# From this compute capability on the assembler spills 16 to 68 bytes at 128 registers.
SPILLS = 100

# Tiles up to which more warps than tiles share wide layers: one warp would go through all channels
# of a tile alone, with nobody to hide what it waits for.
FEW_TILES = 4

# Images of at most so many pixels are shared by channels: a band of them is hardly a tile, whose
# warp would go through all weights alone while the others wait.
SMALL_IMAGE = 64

# Tiles of 16 pixels from which on a warp takes two at once, where it has all channels and where
# they are split; and up to which a cluster is given more images.
ENOUGH_TILES, ENOUGH_SPLIT_TILES, MOST_TILES = 16, 8, 16


def layout_for(
    stage: Stage, batch: int, multiprocessors: int, capability: int, kernel: str
) -> Layout | str:
    """The layout of kernel "forward" or "inversion" for a batch, or why there is none.

    Args:
        stage, batch: of the call.
        multiprocessors, capability: of the card; 90 for 9.0.
    """
    limit = SHARED_BYTES.get(capability)
    if limit is None:
        return f"compute capability {capability / 10} (one of {sorted(SHARED_BYTES)})"
    fitting = list(_fitting(stage, capability, kernel, limit))
    if not fitting:
        return f"{stage} does not fit {limit >> 10} KiB of shared memory, in any cluster"
    # The largest cluster with which all images run at once.
    at_once = [layout for layout in fitting if layout.cluster * batch <= multiprocessors]
    if at_once:
        return max(at_once, key=lambda layout: layout.cluster)
    several = [_several(layout, batch, multiprocessors, capability, kernel) for layout in fitting]
    if several[0].cluster == 1:
        return several[0]
    # Weights that are shared are read from L2 by every cluster: few of them, with many images.
    return max(several, key=lambda layout: (layout.images, -layout.cluster))


def _fitting(stage: Stage, capability: int, kernel: str, limit: int) -> Iterator[Layout]:
    """Layouts of one image that the card can run."""
    small = stage.height * stage.width <= SMALL_IMAGE
    size = 1
    while size <= (LARGEST_CLUSTER if capability >= 90 else 1):
        layout = Layout(stage, bands=size)
        if small and size > 1:
            layout = Layout(stage, splits=size, shared=True)
        if layout.unfit() is None:
            layout = _warps(layout, capability)
            if layout.shared_bytes(kernel) <= limit:
                yield layout
        size *= 2


def _several(
    layout: Layout, batch: int, multiprocessors: int, capability: int, kernel: str
) -> Layout:
    """The layout with as many images as leave no multiprocessor idle, fit, and are of use."""
    waves = -(-batch * layout.cluster // multiprocessors)
    while 2 * layout.images <= waves and 2 * layout.tiles <= MOST_TILES:
        more = _warps(replace(layout, images=2 * layout.images), capability)
        if more.unfit() is not None or more.shared_bytes(kernel) > SHARED_BYTES[capability]:
            break
        layout = more
    return layout


@cache
def _warps(layout: Layout, capability: int) -> Layout:
    """The layout with as many warps as it has work for, of two tiles each where there are many."""
    tiles = layout.tiles
    if layout.splits > 1:
        tall = 2 if tiles >= ENOUGH_SPLIT_TILES else 1
        return replace(layout, tall=tall, warps=MOST_WIDE_WARPS)
    if tiles <= FEW_TILES and layout.inner > NARROW:
        return replace(layout, shared=True, warps=MOST_WIDE_WARPS)
    tall = 2 if layout.bands == 1 and tiles >= ENOUGH_TILES else 1
    wide = capability >= SPILLS or (tall > 1 and layout.inner > NARROW)
    most = MOST_WIDE_WARPS if wide else MOST_WARPS
    units = -(-tiles // tall)
    rounds = -(-units // most)
    return replace(layout, shared=False, tall=tall, warps=max(LEAST_WARPS, -(-units // rounds)))
