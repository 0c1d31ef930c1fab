"""Prepared blocks: same answers, packed once, checked cheaply, few kernels to compile."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from codedinv.kernels import invert_detailed, operators, prepare, reference, tuning
from codedinv.kernels.reference import Block
from codedinv.kernels.testing import DEVICE, cast, draw_blocks, draw_images, relative_error
from codedinv.kernels.tuning import DTYPES, STAGES, Card, Stage

STAGE = Stage(4, 4, 4, 16)


def draw(batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Block]]:
    return draw_images(STAGE, batch).to(DEVICE, dtype), cast(draw_blocks(STAGE, 2), dtype)


def test_a_handle_answers_as_the_blocks_do_and_keeps_its_weights() -> None:
    x, blocks = draw(3)
    exact = cast(blocks, torch.float64)
    expected = reference.residual_blocks(x.double(), exact)
    handle = prepare(blocks)
    y = handle(x)
    assert relative_error(y, expected) < 1e-5
    blocks[0][0][0].mul_(3)
    again = handle(x[:2].contiguous(memory_format=torch.channels_last))
    assert again.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(again, expected[:2]) < 1e-5
    found, iterations, residual = handle.invert(y, tol=1e-6)
    assert relative_error(found, x) < 1e-5
    assert iterations.shape == residual.shape == (3, 2)


def test_a_handle_is_made_for_another_dtype_than_its_weights() -> None:
    x, blocks = draw(2)
    handle = prepare(blocks, DEVICE, torch.bfloat16)
    assert handle.dtype == torch.bfloat16
    y = handle(x.bfloat16())
    expected = reference.residual_blocks(x.double(), cast(blocks, torch.float64))
    assert relative_error(y, expected) < 1e-2


def test_weights_made_in_inference_mode_are_prepared_too() -> None:
    x, blocks = draw(1)
    with torch.inference_mode():
        frozen = cast(blocks, torch.float32)
        frozen = [(tuple(t.clone() for t in weights), flag) for weights, flag in frozen]  # type: ignore[misc]
        y = prepare(frozen)(x)
    expected = reference.residual_blocks(x.double(), cast(blocks, torch.float64))
    assert relative_error(y, expected) < 1e-5


def test_what_the_kernels_do_not_take_runs_in_torch() -> None:
    stage = Stage(70, 2, 2, 16)
    blocks = cast(draw_blocks(stage), torch.float32)
    x = draw_images(stage, 2).to(DEVICE, torch.float32)
    handle = prepare(blocks)
    y = handle(x)
    assert relative_error(y, reference.residual_blocks(x, blocks)) < 1e-6
    found, iterations, _ = handle.invert(y, tol=1e-6)
    assert relative_error(found, x) < 1e-5
    assert iterations.dtype == torch.int32


def test_a_handle_says_what_it_expected() -> None:
    x, blocks = draw(1)
    handle = prepare(blocks)
    with pytest.raises(ValueError, match=r"x: expected torch.float32 on .*, got torch.bfloat16"):
        handle(x.bfloat16())
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 4, H, W\], got \(1, 3, 4, 4\)"):
        handle(x[:, :3])
    with pytest.raises(ValueError, match="x: expected a tensor without gradients"):
        handle(x.clone().requires_grad_())
    with pytest.raises(ValueError, match="tol: expected a positive relative step, got 0"):
        handle.invert(x, tol=0)
    with pytest.raises(ValueError, match="max_iter: expected at least 1, got 0"):
        handle.invert(x, max_iter=0)
    with pytest.raises(ValueError, match="blocks: expected at least one block"):
        prepare([])
    with pytest.raises(ValueError, match=r"dtype: expected a floating dtype, got torch.int32"):
        prepare(blocks, dtype=torch.int32)
    with torch.no_grad():
        handle(x.clone().requires_grad_())


def test_the_operators_of_a_handle_keep_torchs_contracts() -> None:
    x, blocks = draw(1)
    packed = prepare(blocks)._arguments
    tests = ("test_schema", "test_faketensor")
    forward, inverse = torch.ops.codedinv.prepared_forward, torch.ops.codedinv.prepared_inverse
    torch.library.opcheck(forward.default, (x, *packed), test_utils=tests)
    torch.library.opcheck(inverse.default, (x, *packed, 1e-3, 50, False), test_utils=tests)


def test_scratch_is_one_block_for_all_calls_of_a_stream() -> None:
    from codedinv.kernels.workspace import workspace

    x, blocks = draw(3)
    handle = prepare(blocks)
    handle.invert(x, tol=1e-2)
    [memory] = workspace._memory.values()
    expected = reference.residual_blocks(x.double(), cast(blocks, torch.float64))
    # Whatever an earlier launch left there.
    memory.fill_(255)
    assert relative_error(handle(x), expected) < 1e-5
    assert list(map(id, workspace._memory.values())) == [id(memory)]


class NoLaunch:
    """A kernel that is launched in no time."""

    def __getitem__(self, _: object) -> Callable[..., None]:
        return lambda *_arguments, **_options: None


def test_a_call_costs_little_more_than_an_operator_that_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's share of a call, the launch left out: in one run, call by call, against a bare
    operator with the same arguments, which costs torch 3.3 us where nothing else runs, so that
    12 us are 3.6 of it. Blocks given as weights cost some forty."""
    from codedinv.kernels import inversion, residual

    monkeypatch.setattr(residual, "stage_kernel", NoLaunch())
    monkeypatch.setattr(inversion, "invert_kernel", NoLaunch())
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    x = draw_images(STAGE, 1).to(DEVICE, torch.float32)
    handle = prepare(cast(draw_blocks(STAGE, 7), torch.float32))
    packed = handle._arguments
    with torch.library._scoped_library("codedinv_test", "FRAGMENT") as library:
        library.define(f"bare(Tensor x, {operators.PACKED}) -> Tensor")
        for key in ("CPU", "CUDA"):
            library.impl("bare", lambda x, *_: torch.empty_like(x), key)
        bare = torch.ops.codedinv_test.bare.default
        with torch.no_grad():
            calls = [lambda: bare(x, *packed), lambda: handle(x), lambda: handle.invert(x)]
            times: list[list[int]] = [[], [], []]
            for _ in range(500):
                for call, spent in zip(calls, times, strict=True):
                    begun = time.perf_counter_ns()
                    call()
                    spent.append(time.perf_counter_ns() - begun)
    bare_ns, forward_ns, inverse_ns = map(statistics.median, times)
    print(f"bare {bare_ns} ns, forward {forward_ns} ns, inverse {inverse_ns} ns")
    assert forward_ns < 3 * bare_ns
    assert inverse_ns < 3.6 * bare_ns


@pytest.mark.parametrize("kernel", ["stage", "inversion"])
def test_a_server_meets_few_kernels_whatever_its_batches(kernel: str) -> None:
    from codedinv.kernels.launch import sizes_of

    card = Card("NVIDIA H200", 132, 90)
    for stage in STAGES:
        for dtype in DTYPES:
            compiled = {
                (sizes_of(kernel, stage, dtype, tiles, False), tiles.num_warps, tiles.num_stages)
                for tiles in (
                    tuning.stage_tuning(kernel, stage, dtype, batch, card)
                    for batch in range(1, 1025)
                )
            }
            assert len(compiled) <= 6


def test_warming_up_launches_each_kernel_that_batches_will_meet() -> None:
    _, blocks = draw(1)
    handle = prepare(blocks)
    assert handle.warm_up(4, 4, batches=(1, 2, 3)) == 2
    assert handle.warm_up(4, 4, batches=(1, 2, 3), inverse=False) == 1


def test_invert_detailed_and_a_handle_agree() -> None:
    y, blocks = draw(2)
    ours = prepare(blocks).invert(y, 1e-5, 100, anderson=True)
    given = invert_detailed(y, blocks, 1e-5, 100, anderson=True)
    assert relative_error(ours[0], given[0]) < 1e-6
    assert torch.equal(ours[1], given[1])
