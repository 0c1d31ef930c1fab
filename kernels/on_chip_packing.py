"""Weights as the kernels of cuda/ read them: fragments of matrix instructions, in order of use.

A lane then loads what it multiplies as one word of eight bytes, no two lanes from one bank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .on_chip_shape import TILE_K, TILE_N, Layout
from .reference import Block


def pack_on_chip(blocks: Sequence[Block], layout: Layout, dtype: torch.dtype) -> Tensor:
    """Packs blocks of the shape of `layout.stage`.

    Args:
        blocks: (weights, leading_elu) in forward order; weights as in `reference`.
        layout: whose `splits` share the channels.
        dtype: bfloat16 or float16, of the products.

    Returns:
        [blocks, splits, layout.weight_bytes] uint8 on the weights' device: for each block of
        threads fragments of the three products, two hidden biases, the last bias.
    """
    stacked = [torch.stack([weights[i].detach() for weights, _ in blocks]) for i in range(6)]
    w1, b1, w2, b2, w3, b3 = stacked
    more = layout.inner - layout.stage.hidden
    first = w1.permute(0, 3, 4, 2, 1)
    first = F.pad(first, (0, more, 0, layout.depth - first.shape[3])).flatten(1, 3)
    first = F.pad(first, (0, 0, 0, layout.first_rows - first.shape[1]))
    second = F.pad(w2[..., 0, 0].mT, (0, more, 0, more))
    parts = []
    for part in range(layout.splits):
        inner = _slice(layout.inner, layout.splits, part)
        own = _slice(layout.stage.channels, layout.splits, part)
        last = w3[:, own].permute(0, 2, 3, 4, 1).flatten(2)
        last = F.pad(last, (0, layout.last_columns - last.shape[2], 0, more))
        products = [_fragments(first[..., inner], dtype), _fragments(second[..., inner], dtype)]
        biases = [F.pad(bias, (0, more))[:, inner].float() for bias in (b1, b2)]
        biases.append(F.pad(b3[:, own].float(), (0, -layout.own % 4)))
        pieces = [*products, _fragments(last, dtype), *biases]
        parts.append(torch.cat([_bytes(piece) for piece in pieces], dim=1))
    return torch.stack(parts, dim=1)


def _slice(channels: int, splits: int, part: int) -> slice:
    return slice(part * (channels // splits), (part + 1) * (channels // splits))


def _bytes(tensor: Tensor) -> Tensor:
    """[blocks, ...] -> [blocks, bytes]."""
    return tensor.flatten(1).contiguous().view(torch.uint8)


def _fragments(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[blocks, K, N] -> [blocks, N tiles, K steps, 32 lanes, 4]: lane 4 g + t holds rows
    2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of column g."""
    blocks, rows, columns = weight.shape
    shape = (blocks, rows // TILE_K, 2, 4, 2, columns // TILE_N, TILE_N)
    return weight.to(dtype).reshape(shape).permute(0, 5, 1, 6, 3, 2, 4)
