"""The kernels by pytest-benchmark, for a quick look on a GPU: `pytest benchmarks/test_kernels.py`.

The published comparisons, checked and with their floors, are made by benchmarks/device.sh.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from codedinv import kernels
from codedinv.kernels import reference, testing
from codedinv.kernels.tuning import Stage

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

STAGES = (Stage(3, 32, 32, 32), Stage(12, 16, 16, 64), Stage(48, 8, 8, 128))
FUNCTIONS = {
    ("forward", "torch"): reference.residual_blocks,
    ("forward", "triton"): lambda x, handle: handle(x),
    ("inverse", "torch"): reference.invert,
    ("inverse", "triton"): lambda y, handle, *arguments: handle.invert(y, *arguments),
}
# Dtype, and what the function takes beside images and blocks: tolerance and most iterations.
ARGUMENTS = {"forward": (torch.bfloat16, ()), "inverse": (torch.float32, (1e-5, 100))}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("batch", [1, 256])
@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("what", ["forward", "inverse"])
def test_seven_blocks(
    benchmark: BenchmarkFixture, what: str, stage: Stage, batch: int, backend: str
) -> None:
    dtype, arguments = ARGUMENTS[what]
    benchmark.group = f"{what} {stage}, batch {batch}, {dtype}"
    blocks = testing.cast(testing.draw_blocks(stage, 7), dtype)
    images = testing.draw_images(stage, batch).to(testing.DEVICE, dtype)
    stage_of = kernels.prepare(blocks) if backend == "triton" else blocks

    def run() -> None:
        FUNCTIONS[what, backend](images, stage_of, *arguments)
        torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=20, warmup_rounds=3)
