"""Random views of a batch of images, each image its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(x: Tensor, flip: bool = False, shift: int = 0, erase: int = 0) -> Tensor:
    """Flips, shifts and erases as the recipe says.

    Args:
        x: [B, C, H, W].
        flip: mirror left-right with probability 1/2.
        shift: see random_shift.
        erase: see random_erase.
    """
    if flip:
        x = random_flip(x)
    if shift:
        x = random_shift(x, shift)
    if erase:
        x = random_erase(x, erase)
    return x


def random_flip(x: Tensor) -> Tensor:
    """Mirrors each image of [B, C, H, W] left-right with probability 1/2."""
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(mirrored, x.flip(3), x)


def random_shift(x: Tensor, most: int) -> Tensor:
    """Moves each image of [B, C, H, W] by up to `most` pixels along each axis; zeros come in."""
    batch, _, height, width = x.shape
    padded = F.pad(x, (most,) * 4).permute(0, 2, 3, 1)
    moved = torch.randint(0, 2 * most + 1, (2, batch, 1), device=x.device)
    rows = moved[0] + torch.arange(height, device=x.device)
    columns = moved[1] + torch.arange(width, device=x.device)
    sample = torch.arange(batch, device=x.device)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_erase(x: Tensor, side: int) -> Tensor:
    """Blanks a square of `side` pixels, wherever it falls, in half of the images of [B, C, H, W].

    Source: DeVries & Taylor, "Improved regularization of convolutional neural networks with
    cutout", 2017.
    """
    batch, _, height, width = x.shape
    top = torch.randint(1 - side, height, (batch, 1, 1, 1), device=x.device)
    left = torch.randint(1 - side, width, (batch, 1, 1, 1), device=x.device)
    rows = torch.arange(height, device=x.device).reshape(1, 1, -1, 1)
    columns = torch.arange(width, device=x.device).reshape(1, 1, 1, -1)
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    erased = torch.rand(batch, 1, 1, 1, device=x.device) < 0.5
    return x.masked_fill(inside & erased, 0.0)
