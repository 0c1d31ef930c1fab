"""Answers at scales where float32 overflows, vanishes or cancels if one is careless."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codedinv.kernels import invert_detailed, reference, residual_blocks
from codedinv.kernels.reference import Block
from codedinv.kernels.testing import (
    DEVICE,
    ERROR_LIMIT,
    cast,
    draw_blocks,
    draw_images,
    relative_error,
)
from codedinv.kernels.tuning import STAGES, Stage

SMALL = Stage(4, 7, 7, 32)
TINY = Stage(4, 4, 4, 16)
SCALES = (1e-30, 1e-15, 1e-8, 1e-5, 1e-3, 1e-2, 1.0, 1e4, 1e18)
CASES = [
    *((SMALL, scale) for scale in SCALES),
    (Stage(64, 4, 4, 128), 1e-4),
    (Stage(1, 28, 28, 16), 1e-6),
]
INVERSES = [(TINY, scale) for scale in (1e-30, 1e-8, 1e-3, 1e18)]
EVERY = [
    pytest.param(stage, scale, marks=pytest.mark.slow)
    for stage in STAGES
    for scale in SCALES
    if (stage, scale) not in CASES
]
# Beside torch's own error, since two ways of rounding differ by chance.
TIMES_TORCH = 4


def without_biases(blocks: list[Block]) -> list[Block]:
    """Blocks for which a small input stays small."""
    return [
        (tuple(t * 0 if t.ndim == 1 else t for t in weights), leading)  # type: ignore[misc]
        for weights, leading in blocks
    ]


def draw(stage: Stage, scale: float, dtype: torch.dtype) -> tuple[Tensor, list[Block], list[Block]]:
    """(images, blocks, the same blocks in float64)."""
    blocks = cast(without_biases(draw_blocks(stage)), dtype)
    images = (scale * draw_images(stage, 1)).to(DEVICE, dtype)
    return images, blocks, cast(blocks, torch.float64)


@pytest.mark.parametrize(("stage", "scale"), [*CASES, *EVERY], ids=str)
def test_a_branch_in_float32_is_as_exact_as_torchs_at_every_scale(
    stage: Stage, scale: float
) -> None:
    x, blocks, _ = draw(stage, scale, torch.float32)
    # F of a thousand times x, or the rounding of x + F would hide how exact it is.
    blocks[0][0][4].mul_(1024)
    exact = cast(blocks, torch.float64)
    expected = reference.residual_blocks(x.double(), exact) - x.double()
    ours = residual_blocks(x, blocks).double() - x.double()
    torchs = reference.residual_blocks(x, blocks).double() - x.double()
    limit = TIMES_TORCH * relative_error(torchs, expected)
    assert relative_error(ours, expected) < limit < 1e-5


@pytest.mark.parametrize(("stage", "scale"), [*INVERSES, *EVERY], ids=str)
def test_an_inverse_in_float32_is_as_exact_as_torchs_at_every_scale(
    stage: Stage, scale: float
) -> None:
    y, blocks, exact = draw(stage, scale, torch.float32)
    expected, _, _ = reference.invert(y.double(), exact, 1e-14, 300)
    ours, steps, residual = invert_detailed(y, blocks, tol=1e-7)
    torchs, torch_steps, _ = reference.invert(y, blocks, 1e-7, 100)
    assert (residual <= 1e-7).all()
    assert (steps - torch_steps).abs().max() <= 2
    limit = TIMES_TORCH * relative_error(torchs, expected)
    assert relative_error(ours, expected) < limit < 1e-5


@pytest.mark.parametrize("anderson", [False, True])
@pytest.mark.parametrize("scale", [3e18, 1e37, 1e-30])
def test_an_image_is_not_called_inverted_because_its_norm_overflows_or_vanishes(
    scale: float, anderson: bool
) -> None:
    y, blocks, exact = draw(TINY, scale, torch.float32)
    expected, _, _ = reference.invert(y.double(), exact, 1e-14, 300)
    for run in (reference.invert, invert_detailed):
        x, _, residual = run(y, blocks, 1e-5, 100, anderson)
        assert (residual <= 1e-5).all()
        assert relative_error(x, expected) < 3e-5


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_the_biases_of_a_block_may_be_larger_than_its_image(scale: float) -> None:
    blocks = cast(draw_blocks(TINY), torch.float32)
    y = (scale * draw_images(TINY, 1)).to(DEVICE, torch.float32)
    expected, steps, _ = reference.invert(y.double(), cast(blocks, torch.float64), 1e-5, 100)
    for anderson in (False, True):
        x, iterations, residual = invert_detailed(y, blocks, 1e-5, anderson=anderson)
        assert (residual <= 1e-5).all()
        assert anderson or (iterations - steps).abs().max() <= 1
        assert relative_error(x, expected) < 3e-5


def test_nothing_is_the_inverse_of_nothing() -> None:
    y, blocks, _ = draw(TINY, 0.0, torch.float32)
    for run in (invert_detailed, reference.invert):
        x, iterations, residual = run(y, blocks, 1e-5, 100)
        assert not x.any()
        assert iterations.item() == 1
        assert residual.item() == 0


@pytest.mark.parametrize("scale", [1e-30, 1e-8])
def test_a_branch_in_bfloat16_keeps_small_inputs(scale: float) -> None:
    """Seen through the inverse's first step, since x + F(x) is rounded to bfloat16."""
    y, blocks, exact = draw(TINY, scale, torch.bfloat16)
    x, _, _ = invert_detailed(y, blocks, tol=5e-4)
    expected, _, _ = reference.invert(y.double(), exact, 1e-12, 300)
    change = expected - y.double()
    assert relative_error(x.double() - y.double(), change) < 10 * ERROR_LIMIT[torch.bfloat16]
