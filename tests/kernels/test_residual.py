"""The forward kernels against the oracle in float64."""

from __future__ import annotations

import pytest
import torch

from codedinv.kernels import reference, residual_block, residual_blocks, tuning
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
    (Stage(1, 28, 28, 16), torch.float32),
    (Stage(4, 14, 14, 32), torch.bfloat16),
    (Stage(16, 7, 7, 64), torch.float32),
    (Stage(16, 7, 7, 96), torch.bfloat16),
    (Stage(16, 8, 8, 64), torch.float16),
    (Stage(64, 4, 4, 128), torch.bfloat16),
    (Stage(48, 8, 8, 128), torch.float32),
    (Stage(12, 16, 16, 64), torch.bfloat16),
    (Stage(5, 6, 9, 20), torch.float32),  # of no recipe, and no power of two anywhere
]
EVERY = [
    pytest.param(stage, dtype, marks=pytest.mark.slow)
    for stage in STAGES
    for dtype in DTYPES
    if (stage, dtype) not in QUICK
]


SMALL = Stage(4, 7, 7, 32)


def draw(
    stage: Stage, batch: int, dtype: torch.dtype = torch.float32, blocks: int = 1
) -> tuple[torch.Tensor, list[reference.Block]]:
    """Fresh images and blocks on the test device."""
    return draw_images(stage, batch).to(DEVICE, dtype), cast(draw_blocks(stage, blocks), dtype)


def oracle(x: torch.Tensor, blocks: list[reference.Block]) -> torch.Tensor:
    return reference.residual_blocks(x.double(), cast(blocks, torch.float64))


@pytest.mark.parametrize(("stage", "dtype"), [*QUICK, *EVERY], ids=str)
def test_a_block_is_what_the_oracle_says(stage: Stage, dtype: torch.dtype) -> None:
    x, blocks = draw(stage, 3 if stage.height < 8 else 1, dtype)
    y = residual_block(x, *blocks[0])
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert relative_error(y, oracle(x, blocks)) < ERROR_LIMIT[dtype]


def test_the_first_block_begins_without_elu() -> None:
    x, blocks = draw(SMALL, 2)
    weights = blocks[0][0]
    y = residual_block(x, weights, leading_elu=False)
    assert relative_error(y, oracle(x, [(weights, False)])) < 1e-5


@pytest.mark.parametrize(
    ("stage", "dtype", "batch"),
    [
        (Stage(64, 4, 4, 128), torch.bfloat16, 5),
        (Stage(16, 7, 7, 64), torch.float32, 3),
        (Stage(4, 14, 14, 32), torch.bfloat16, 1),
    ],
    ids=str,
)
def test_the_tiles_of_a_card_give_the_same_answers(
    stage: Stage, dtype: torch.dtype, batch: int
) -> None:
    from codedinv.kernels.residual import run_stage

    x, blocks = draw(stage, batch, dtype, blocks=2)
    out = torch.empty_like(x)
    run_stage(x, out, pack(blocks, dtype), tuning.default_stage_tuning(stage, dtype))
    assert relative_error(out, oracle(x, blocks)) < ERROR_LIMIT[dtype]


def test_channels_last_input_gives_channels_last_output() -> None:
    x, blocks = draw(SMALL, 2)
    x = x.to(memory_format=torch.channels_last)
    y = residual_block(x, *blocks[0])
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, oracle(x, blocks)) < 1e-5


def test_an_input_with_gaps_between_pixels_is_read_right() -> None:
    _, blocks = draw(SMALL, 1)
    x = torch.randn(2, 4, 7, 14, device=DEVICE)[..., ::2]
    assert relative_error(residual_block(x, *blocks[0]), oracle(x, blocks)) < 1e-5


def test_an_image_one_pixel_wide_is_read_right_whatever_the_stride_of_its_column() -> None:
    _, blocks = draw(Stage(4, 7, 1, 32), 1, blocks=2)
    dense = torch.randn(3, 4, 7, 1, device=DEVICE)
    views = (
        dense.reshape(3, 4, 1, 7).transpose(2, 3),
        dense.as_strided((3, 4, 7, 1), (28, 7, 1, 999)),
        dense.reshape(3, 7, 1, 4).permute(0, 3, 1, 2),
        dense.to(memory_format=torch.channels_last),
        dense.expand(3, 4, 7, 2)[..., :1],
    )
    for x in views:
        assert relative_error(residual_blocks(x, blocks), oracle(x, blocks)) < 1e-5, x.stride()


def test_several_blocks_run_in_order_whatever_the_batch() -> None:
    for batch in (1, 2):
        x, blocks = draw(SMALL, batch, blocks=3)
        assert relative_error(residual_blocks(x, blocks), oracle(x, blocks)) < 1e-5


def test_an_empty_batch_is_an_empty_answer() -> None:
    x, blocks = draw(SMALL, 0)
    assert residual_block(x, *blocks[0]).shape == (0, 4, 7, 7)


def test_wide_dense_stages_fall_to_torch_and_say_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x, blocks = draw(Stage(784, 1, 1, 16), 2)
    with caplog.at_level("INFO", logger="codedinv.kernels"):
        first, second = residual_block(x, *blocks[0]), residual_block(x, *blocks[0])
    assert relative_error(first, oracle(x, blocks)) < 1e-5
    assert relative_error(second, oracle(x, blocks)) < 1e-5
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "784 channels" in caplog.text


def test_wrong_shapes_name_what_was_expected() -> None:
    _, [(weights, _)] = draw(SMALL, 1)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, C, H, W\], got \(4, 7, 7\)"):
        residual_block(torch.zeros(4, 7, 7, device=DEVICE), weights)
    with pytest.raises(ValueError, match=r"blocks\[0\]: expected shapes"):
        residual_block(torch.zeros(1, 3, 7, 7, device=DEVICE), weights)
    with pytest.raises(ValueError, match=r"blocks\[0\]: expected weights of torch.bfloat16"):
        residual_block(torch.zeros(1, 4, 7, 7, device=DEVICE, dtype=torch.bfloat16), weights)
