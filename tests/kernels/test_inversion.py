"""The inversion kernel against the oracle: same answers, same iteration counts, no endless loop."""

from __future__ import annotations

import pytest
import torch

from codedinv.kernels import invert, invert_detailed, reachable_tolerance, reference, tuning
from codedinv.kernels.packing import pack
from codedinv.kernels.testing import (
    DEVICE,
    ERROR_LIMIT,
    cast,
    draw_blocks,
    draw_images,
    relative_error,
)
from codedinv.kernels.tuning import DTYPES, STAGES, Stage

QUICK = [
    (Stage(1, 28, 28, 16), torch.bfloat16, False),
    (Stage(4, 14, 14, 32), torch.float32, False),
    (Stage(16, 7, 7, 64), torch.float32, True),
    (Stage(16, 7, 7, 96), torch.bfloat16, False),
    (Stage(64, 4, 4, 128), torch.bfloat16, True),
    (Stage(48, 8, 8, 128), torch.float16, False),
]
EVERY = [
    pytest.param(stage, dtype, anderson, marks=pytest.mark.slow)
    for stage in STAGES
    for dtype in DTYPES
    for anderson in (False, True)
    if (stage, dtype, anderson) not in QUICK
]


SMALL = Stage(4, 4, 4, 16)
PACKED = Stage(16, 4, 4, 16)  # several images share a tile


def draw(
    stage: Stage,
    batch: int,
    dtype: torch.dtype = torch.float32,
    blocks: int = 1,
    coefficient: float = 0.9,
) -> tuple[torch.Tensor, list[reference.Block]]:
    """Fresh images and blocks on the test device."""
    images = draw_images(stage, batch).to(DEVICE, dtype)
    return images, cast(draw_blocks(stage, blocks, coefficient), dtype)


def exact(blocks: list[reference.Block]) -> list[reference.Block]:
    return cast(blocks, torch.float64)


@pytest.mark.parametrize(("stage", "dtype", "anderson"), [*QUICK, *EVERY], ids=str)
def test_an_inverse_and_its_iterations_are_the_oracles(
    stage: Stage, dtype: torch.dtype, anderson: bool
) -> None:
    y, blocks = draw(stage, 3 if stage.height < 8 else 1, dtype)
    tol = reachable_tolerance(1e-5 if stage.height < 8 else 1e-3, dtype)
    x, iterations, residual = invert(y, blocks, tol=tol, anderson=anderson)
    expected, steps, _ = reference.invert(y.double(), exact(blocks), tol, 100, anderson)
    assert relative_error(x, expected) < max(ERROR_LIMIT[dtype], 3 * tol)
    assert (iterations - steps.amax(dim=1)).abs().max() <= 1
    assert (residual <= tol).all()
    assert iterations.min() >= 2


def test_several_blocks_are_undone_from_the_last() -> None:
    x, blocks = draw(SMALL, 3, blocks=3)
    x = x.double()
    y = reference.residual_blocks(x, exact(blocks)).float()
    found, iterations, residual = invert_detailed(y, blocks, tol=1e-6)
    _, steps, _ = reference.invert(y.double(), exact(blocks), 1e-6, 100)
    assert relative_error(found, x) < 1e-5
    assert iterations.shape == residual.shape == (3, 3)
    assert (iterations - steps).abs().max() <= 1


@pytest.mark.parametrize(
    ("stage", "dtype", "anderson"),
    [
        (Stage(4, 7, 7, 32), torch.float32, True),
        pytest.param(Stage(16, 7, 7, 96), torch.bfloat16, False, marks=pytest.mark.slow),
        pytest.param(Stage(64, 4, 4, 128), torch.float32, True, marks=pytest.mark.slow),
        pytest.param(Stage(48, 8, 8, 128), torch.float32, False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_tiles_of_a_card_give_the_same_answers(
    stage: Stage, dtype: torch.dtype, anderson: bool
) -> None:
    """Tests above interpret with large tiles; these are the ones compiled for a card."""
    from codedinv.kernels.inversion import run_inversion

    batch = 3
    y, blocks = draw(stage, batch, dtype)
    x = torch.empty_like(y)
    iterations = torch.empty(batch, 1, dtype=torch.int32, device=DEVICE)
    residual = torch.empty(batch, 1, device=DEVICE)
    tol = reachable_tolerance(1e-3, dtype)
    chosen = tuning.default_stage_tuning(stage, dtype)
    run_inversion(y, x, iterations, residual, pack(blocks, dtype), tol, 100, anderson, chosen)
    expected, steps, _ = reference.invert(y.double(), exact(blocks), tol, 100, anderson)
    assert relative_error(x, expected) < max(ERROR_LIMIT[dtype], 3 * tol)
    assert (iterations - steps).abs().max() <= 1


@pytest.mark.usefixtures("products_in_fixed_order")
def test_an_image_is_answered_the_same_whoever_shares_its_tile() -> None:
    """Bit for bit: the kernel's order of work for an image knows nothing of its neighbours."""
    y, blocks = draw(PACKED, 3)
    # Neighbours of other sizes need other numbers of iterations.
    y *= torch.tensor([1.0, 1000.0, 0.01], device=DEVICE)[:, None, None, None]
    together, counts, _ = invert(y, blocks, tol=1e-4)
    for index in (0, 2):
        alone, count, _ = invert(y[index : index + 1], blocks, tol=1e-4)
        assert torch.equal(alone[0], together[index])
        assert count[0] == counts[index]
    assert counts.unique().numel() > 1


def test_a_block_that_is_no_contraction_is_flagged_and_not_looped_for_ever() -> None:
    y, blocks = draw(SMALL, 3, coefficient=3.0)
    _, iterations, residual = invert(y, blocks, max_iter=8)
    assert (iterations == 8).all()
    assert (residual > 1e-5).all()
    assert not residual.isnan().any()


def test_an_image_that_diverges_to_infinity_does_not_spoil_its_neighbours() -> None:
    y, blocks = draw(PACKED, 3, blocks=2)
    y[1] = float("inf")
    x, iterations, residual = invert_detailed(y, blocks, max_iter=15)
    good = torch.tensor([0, 2], device=DEVICE)
    expected, _, _ = reference.invert(y[good].double(), exact(blocks), 1e-5, 15)
    assert relative_error(x[good], expected) < 3e-5
    assert residual[1, 1] == float("inf")
    # The failed image is not tried on the block before.
    assert iterations[1].tolist() == [0, 15]
    assert (residual[good] <= 1e-5).all()


def test_anderson_mixing_saves_iterations_on_a_slow_block() -> None:
    y, blocks = draw(SMALL, 2, coefficient=0.97)
    plain_x, plain, _ = invert(y, blocks, tol=1e-6)
    mixed_x, mixed, _ = invert(y, blocks, tol=1e-6, anderson=True)
    assert relative_error(mixed_x, plain_x) < 1e-5
    assert mixed.max() < plain.max()


def test_the_tolerance_is_clamped_to_what_the_dtype_can_reach() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        y, blocks = draw(SMALL, 1, dtype)
        _, iterations, residual = invert(y, blocks, tol=1e-12)
        assert (iterations < 100).all()
        assert (residual <= reachable_tolerance(1e-12, dtype)).all()


def test_bad_limits_are_refused() -> None:
    y, blocks = draw(SMALL, 1)
    with pytest.raises(ValueError, match="tol: expected a positive relative step, got 0"):
        invert(y, blocks, tol=0)
    with pytest.raises(ValueError, match="max_iter: expected at least 1, got 0"):
        invert(y, blocks, max_iter=0)
    with pytest.raises(ValueError, match="blocks: expected at least one block"):
        invert(y, [])
