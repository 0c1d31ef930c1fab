"""The kernels of kernels/cuda on a card, where there is one."""

from __future__ import annotations

import pytest
import torch

from codedinv.kernels import on_chip, prepare, reference
from codedinv.kernels.shapes import Stage
from codedinv.kernels.testing import (
    DEVICE,
    ERROR_LIMIT,
    cast,
    draw_blocks,
    draw_images,
    relative_error,
)
from codedinv.kernels.tuning import STAGES

BF16 = torch.bfloat16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]


@pytest.fixture(autouse=True)
def _needs_nvrtc() -> None:
    if reason := on_chip.unsupported_on_chip(torch.device(DEVICE.type, 0), BF16):
        pytest.skip(reason)


@pytest.mark.parametrize("batch", [1, 40, 300])
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_card_answers_as_the_reference_does(stage: Stage, batch: int) -> None:
    blocks = cast(draw_blocks(stage, 3), BF16)
    exact = cast(blocks, torch.float64)
    x = draw_images(stage, batch).to(DEVICE, BF16)
    handle = prepare(blocks, on_chip=True)
    y = handle(x)
    assert relative_error(y, reference.residual_blocks(x.double(), exact)) < ERROR_LIMIT[BF16]
    found, iterations, residual = handle.invert(y, tol=1e-3)
    expected, counts, _ = reference.invert(y.double(), exact, 1e-3, 100)
    assert relative_error(found, expected) < ERROR_LIMIT[BF16]
    assert bool((residual <= 1e-3).all())
    assert int((iterations - counts).abs().max()) <= 1


def test_a_graph_replays_what_was_launched() -> None:
    stage = Stage(48, 8, 8, 128)
    x = draw_images(stage, 3).to(DEVICE, BF16)
    handle = prepare(cast(draw_blocks(stage, 2), BF16), on_chip=True)
    expected = handle(x), *handle.invert(x, tol=1e-3)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = handle(x), *handle.invert(x, tol=1e-3)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, replayed, expected))
