"""The kernels of kernels/cuda on a card, where there is one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

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


def test_a_thread_of_its_own_gets_the_same_bits() -> None:
    """Its first call of CUDA is the launch: what it allocates is in torch's cache."""
    stage = Stage(12, 16, 16, 64)
    x = draw_images(stage, 3).to(DEVICE, BF16)
    handle = prepare(cast(draw_blocks(stage, 2), BF16), on_chip=True)
    expected = handle(x).clone()
    handle(x)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(handle, x).result(), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device is here")
def test_a_card_that_is_not_the_current_one_gets_the_same_bits() -> None:
    stage = Stage(12, 16, 16, 64)
    x, blocks = draw_images(stage, 3).to(BF16), cast(draw_blocks(stage, 2), BF16)
    first, second = (
        prepare(blocks, f"cuda:{index}", on_chip=True)(x.to(f"cuda:{index}")) for index in (0, 1)
    )
    assert torch.equal(first.cpu(), second.cpu())


def test_images_are_read_as_they_lie() -> None:
    stage = Stage(12, 16, 16, 64)
    x = draw_images(stage, 5).to(DEVICE, BF16)
    handle = prepare(cast(draw_blocks(stage, 2), BF16), on_chip=True)
    expected = handle(x)
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        x.repeat(1, 1, 1, 2)[..., :16],
        torch.cat([x[:1], x])[1:],
    ):
        assert torch.equal(handle(other), expected)
    one = handle(x[:1].expand(5, -1, -1, -1))
    assert torch.equal(one, expected[:1].expand(5, -1, -1, -1))


def test_not_a_number_fails_its_own_image_only_and_ends() -> None:
    stage = Stage(16, 8, 8, 64)
    y = draw_images(stage, 4).to(DEVICE, BF16)
    handle = prepare(cast(draw_blocks(stage, 2), BF16), on_chip=True)
    clean = handle.invert(y, 1e-3, 7)
    y[1, 0, 0, 0] = float("nan")
    found = handle.invert(y, 1e-3, 7)
    for ours, before in zip(found, clean, strict=True):
        assert torch.equal(ours[[0, 2, 3]], before[[0, 2, 3]])
    assert found[1][1].tolist() == [0, 7]
