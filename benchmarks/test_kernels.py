"""The kernels by pytest-benchmark, for a quick look on a GPU: `pytest benchmarks/test_kernels.py`.

The published comparisons, checked and with their floors, are made by benchmarks/device.sh.
"""

from __future__ import annotations

import pytest
import torch
from codedinv.kernels import reference, testing
from codedinv.kernels.tuning import Stage
from pytest_benchmark.fixture import BenchmarkFixture

from codedinv import kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

STAGES = (Stage(3, 32, 32, 32), Stage(12, 16, 16, 64), Stage(48, 8, 8, 128))


def _synchronised(function, *arguments):  # type: ignore[no-untyped-def]
    function(*arguments)
    torch.cuda.synchronize()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_forward_of_seven_blocks(
    benchmark: BenchmarkFixture, stage: Stage, batch: int, backend: str
) -> None:
    benchmark.group = f"forward {stage}, batch {batch}, bfloat16"
    blocks = testing.cast(testing.draw_blocks(stage, 7), torch.bfloat16)
    x = testing.draw_images(stage, batch).to(testing.DEVICE, torch.bfloat16)
    run = kernels.residual_blocks if backend == "triton" else reference.residual_blocks
    benchmark.pedantic(_synchronised, (run, x, blocks), rounds=30, warmup_rounds=5)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_inverse_of_seven_blocks(
    benchmark: BenchmarkFixture, stage: Stage, batch: int, backend: str
) -> None:
    benchmark.group = f"inverse {stage}, batch {batch}, float32 to 1e-5"
    blocks = testing.cast(testing.draw_blocks(stage, 7), torch.float32)
    y = testing.draw_images(stage, batch).to(testing.DEVICE, torch.float32)
    run = kernels.invert if backend == "triton" else reference.invert
    benchmark.pedantic(_synchronised, (run, y, blocks, 1e-5, 100), rounds=10, warmup_rounds=2)
