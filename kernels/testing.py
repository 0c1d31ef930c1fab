"""What the tests and the benchmarks share, so that both hold a kernel to the same thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import Block, BlockWeights
from .tuning import Stage

# Where tests run kernels: compiled on the GPU, else interpreted on the CPU.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Relative error in float64, by compute dtype.
ERROR_LIMIT = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def _operator_norm(weight: Tensor, height: int, width: int) -> Tensor:
    """By thirty power iterations, in float64."""
    vector = torch.randn(1, weight.shape[1], height, width, dtype=torch.float64)
    padding = weight.shape[-1] // 2
    for _ in range(30):
        image = F.conv2d(vector, weight, padding=padding)
        vector = F.conv_transpose2d(image, weight, padding=padding)
        vector = vector / vector.norm()
    return F.conv2d(vector, weight, padding=padding).norm()


def draw_blocks(stage: Stage, count: int = 1, coefficient: float = 0.9) -> list[Block]:
    """Fresh float64 blocks on the CPU; only the first of several begins without the ELU."""
    return [(_draw_weights(stage, coefficient), index > 0 or count == 1) for index in range(count)]


def draw_images(stage: Stage, batch: int) -> Tensor:
    """[batch, C, H, W] float64, standard normal."""
    shape = (batch, stage.channels, stage.height, stage.width)
    return torch.randn(shape, dtype=torch.float64)


def _draw_weights(stage: Stage, coefficient: float) -> BlockWeights:
    """Each convolution has the operator norm `coefficient`; a shared positive part brings the
    branch closer to its bound, as trained ones are."""
    channels, hidden = stage.channels, stage.hidden
    height, width = stage.height, stage.width
    shapes = ((hidden, channels, 3, 3), (hidden, hidden, 1, 1), (channels, hidden, 3, 3))
    parts: list[Tensor] = []
    for shape in shapes:
        weight = torch.randn(shape, dtype=torch.float64) + 0.3
        weight *= coefficient / _operator_norm(weight, height, width)
        parts += [weight, 0.1 * torch.randn(shape[0], dtype=torch.float64)]
    return parts[0], parts[1], parts[2], parts[3], parts[4], parts[5]


def cast(blocks: Sequence[Block], dtype: torch.dtype, device: torch.device = DEVICE) -> list[Block]:
    """The same blocks on another device and in another dtype."""
    moved: list[Block] = []
    for weights, leading_elu in blocks:
        w1, b1, w2, b2, w3, b3 = (tensor.to(device, dtype) for tensor in weights)
        moved.append(((w1, b1, w2, b2, w3, b3), leading_elu))
    return moved


def relative_error(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference|| in float64; not a number never passes a limit."""
    reference = reference.double().cpu()
    return float((value.double().cpu() - reference).norm() / reference.norm())


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every torch.empty comes filled with NaN, so an element that is not written is seen."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill
