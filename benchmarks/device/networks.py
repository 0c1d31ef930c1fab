"""The networks that are measured, with random weights, forwards and backwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from codedinv.kernels import reference, testing
from codedinv.kernels.reference import Block
from codedinv.kernels.tuning import Stage

Blocks = list[list[Block]]
# A stage is its blocks, or a handle of them.
RunStage = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class Network:
    """Stages with their number of blocks; between stages the image is squeezed by 2."""

    stages: tuple[tuple[Stage, int], ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the forward of one image."""
        return sum(stage.branch_macs * count for stage, count in self.stages)


def _paper(channels: int, side: int, count: int) -> Network:
    """Three stages of `count` blocks; the first has `channels` at side x side."""
    shapes = ((channels * 4**i, side // 2**i, 32 * 2**i) for i in range(3))
    return Network(tuple((Stage(c, edge, edge, hidden), count) for c, edge, hidden in shapes))


NETWORKS = {
    "cifar": _paper(3, 32, 7),
    "mnist-full": _paper(4, 16, 7),
    "fashion-mnist-full": _paper(4, 16, 9),
    "fashion-mnist": Network(((Stage(4, 14, 14, 32), 2), (Stage(16, 7, 7, 96), 8))),
}
REHEARSAL = Network(((Stage(4, 4, 4, 16), 1), (Stage(16, 2, 2, 16), 1)))


def draw(network: Network, dtype: torch.dtype) -> tuple[Blocks, Blocks]:
    """(blocks in dtype, the same values in float64), one list per stage, on the device."""
    drawn = []
    for index, (stage, count) in enumerate(network.stages):
        blocks = testing.draw_blocks(stage, count + (index > 0))
        drawn.append(blocks[index > 0 :])
    low = [testing.cast(blocks, dtype) for blocks in drawn]
    return low, [testing.cast(blocks, torch.float64) for blocks in low]


def draw_images(network: Network, batch: int, dtype: torch.dtype) -> Tensor:
    """[batch, C, H, W] inputs of a network, on the device."""
    return testing.draw_images(network.stages[0][0], batch).to(testing.DEVICE, dtype)


def forward(x: Tensor, blocks: Sequence[Any], run: RunStage) -> Tensor:
    """All stages, each by `run`."""
    for index, stage in enumerate(blocks):
        x = run(F.pixel_unshuffle(x, 2) if index else x, stage)
    return x


def inverse(z: Tensor, blocks: Sequence[Any], run: RunStage) -> Tensor:
    """All stages from the last, each by `run`."""
    for index in reversed(range(len(blocks))):
        z = run(z, blocks[index])
        z = F.pixel_shuffle(z, 2) if index else z
    return z


def fixed_count_inverse(z: Tensor, blocks: Blocks, counts: list[list[int]]) -> Tensor:
    """The inverse with a given number of iterations of each block, as a graph needs it."""
    remaining = list(counts)

    def run(x: Tensor, stage: list[Block]) -> Tensor:
        of_blocks = reversed(remaining.pop())
        for (weights, flag), count in zip(reversed(stage), of_blocks, strict=True):
            goal = x
            for _ in range(count):
                x = goal - reference.residual_branch(x, weights, flag)
        return x

    return inverse(z, blocks, run)
