"""float32 on tensor cores that cut off what they accumulate, as no interpreter and no CPU does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from codedinv.kernels import reference, tuning
from codedinv.kernels.packing import pack
from codedinv.kernels.testing import cast, draw_blocks, draw_images, relative_error
from codedinv.kernels.tuning import STAGES, Stage
from tests.kernels.tensor_core import AMPERE_STEP, HOPPER_STEP, truncating_product

# Beside torch's own error against float64.
TIMES_TORCH = 4
WIDE = (Stage(48, 8, 8, 128), Stage(64, 4, 4, 128), Stage(16, 7, 7, 96))
EVERYDAY = WIDE[-1]  # the inverse of the others takes 40 s
SLOW = [pytest.param(stage, marks=pytest.mark.slow) for stage in WIDE[:-1]]
OTHERS = [
    pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES if stage not in WIDE
]  # fmt: skip

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a card has cores of its own")


def use_tensor_core(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes the interpreter's products a tensor core's."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(_: Any, a: Any, b: Any, acc: Any, *_precision: Any) -> Any:
        return TensorHandle(
            truncating_product(a.data, b.data, acc.data, step), acc.dtype.scalar
        )  # fmt: skip

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def tiles_of(stage: Stage) -> tuning.StageTuning:
    """As an H200 runs one image: the interpreter's own tiles would add up along k otherwise."""
    return tuning.default_stage_tuning(stage, torch.float32, 90, few=True)


def branch_errors(stage: Stage, promote: bool = True) -> tuple[float, float]:
    """(the kernel's error of F, torch's), both in float32, against float64."""
    from codedinv.kernels.residual import run_stage

    blocks = cast(draw_blocks(stage), torch.float32)
    # F of a thousand times x, or the rounding of x + F would hide how exact it is.
    blocks[0][0][4].mul_(1024)
    x = draw_images(stage, 1).float()
    exact = x.double()
    expected = reference.residual_blocks(exact, cast(blocks, torch.float64)) - exact
    out = torch.empty_like(x)
    run_stage(x, out, pack(blocks, torch.float32), replace(tiles_of(stage), promote=promote))
    torchs = reference.residual_blocks(x, blocks)
    return (
        relative_error(out.double() - exact, expected),
        relative_error(torchs.double() - exact, expected),
    )


def inverse_errors(stage: Stage) -> tuple[float, float]:
    """(the kernel's error of an inverse, torch's), both in float32, against float64."""
    from codedinv.kernels.inversion import run_inversion

    blocks = cast(draw_blocks(stage, coefficient=0.7), torch.float32)
    y = draw_images(stage, 1).float()
    expected, _, _ = reference.invert(y.double(), cast(blocks, torch.float64), 1e-14, 300)
    torchs, _, _ = reference.invert(y, blocks, 1e-7, 100)
    out = torch.empty_like(y)
    iterations, residual = torch.empty(1, 1, dtype=torch.int32), torch.empty(1, 1)
    run_inversion(
        y, out, iterations, residual, pack(blocks, y.dtype), 1e-7, 100, False, tiles_of(stage)
    )
    assert residual.item() <= 1e-7
    return relative_error(out, expected), relative_error(torchs, expected)


@pytest.mark.parametrize("step", [HOPPER_STEP, AMPERE_STEP])
@pytest.mark.parametrize("stage", [*WIDE, *OTHERS], ids=str)
def test_a_branch_is_as_exact_as_torchs_where_sums_are_cut_off(
    stage: Stage, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tensor_core(monkeypatch, step)
    ours, torchs = branch_errors(stage)
    assert ours < TIMES_TORCH * torchs


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "step", [HOPPER_STEP, pytest.param(AMPERE_STEP, marks=pytest.mark.slow)]
)  # fmt: skip
@pytest.mark.parametrize("stage", [EVERYDAY, *OTHERS, *SLOW], ids=str)
def test_an_inverse_is_as_exact_as_torchs_where_sums_are_cut_off(
    stage: Stage, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tensor_core(monkeypatch, step)
    ours, torchs = inverse_errors(stage)
    assert ours < TIMES_TORCH * torchs


@pytest.mark.parametrize("stage", WIDE, ids=str)
def test_one_accumulator_for_all_products_would_not_be(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tensor_core(monkeypatch, HOPPER_STEP)
    ours, torchs = branch_errors(stage, promote=False)
    assert ours > 2 * TIMES_TORCH * torchs


def test_the_emulated_sum_is_cut_off_and_not_rounded() -> None:
    one, last = np.float32(1), np.float32(2.0**-23)
    a = np.zeros((1, 16), np.float32)
    a[0, :4] = 0.75 * last, 0.75 * last, 0.75 * last, -0.5 * last
    ones = np.ones((16, 1), np.float32)
    acc = np.full((1, 1), one)
    # In a step of its own each is cut off; together they are kept to a quarter of the last place.
    assert truncating_product(a[:, :1], ones[:1], acc).item() == one
    assert truncating_product(a, ones, acc).item() == one + last
    a[0, 4] = 0.24 * last
    assert truncating_product(a, ones, acc).item() == one + last
