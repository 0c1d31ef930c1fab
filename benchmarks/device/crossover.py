"""From which batch on the kernels beat torch, stage by stage: what backend="auto" goes by."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from codedinv import kernels
from codedinv.kernels import reference, testing
from codedinv.kernels.reference import Block
from codedinv.nn import functional

from .networks import fixed_count_inverse
from .options import Options
from .receipts import Receipt
from .timing import Call, Timer, attempt, graphed

BLOCKS = 2
BUDGET_MS = 200
# The forms of torch that a kernel must beat. An inverse stops when its data say so, which
# torch.compile cannot; its graph is told how often the kernel iterated.
FORMS = {
    "stage": ("eager", "eager_channels_last", "eager_graphed", "compiled"),
    "inversion": ("eager", "eager_channels_last", "eager_graphed"),
}
# Not before all others are measured: it takes minutes.
LAST = "compiled"


def measure_crossover(options: Options) -> None:
    """The kernels and every form of torch on two blocks of every stage at every batch.

    In half precision eager torch keeps x in 16 bits and stops at a larger step than the kernels, as
    it does when "auto" takes it.
    """
    out = Receipt(f"crossover-{options.name}-{options.dtype_name}", options)
    timer = Timer(options.rehearse, BUDGET_MS)
    drawn: dict[str, list[Block]] = {}
    for stage, _ in options.network.stages:
        drawn[str(stage)] = testing.cast(testing.draw_blocks(stage, BLOCKS), options.dtype)
        for kernel in FORMS:
            for batch in options.batches:
                row: dict[str, Any] = {"kernel": kernel, "stage": str(stage), "batch": batch}
                if out.has(**row):
                    continue
                options.check_time()
                x = testing.draw_images(stage, batch).to(testing.DEVICE, options.dtype)
                for name, run in forms(kernel, drawn[str(stage)], x, options.tolerance):
                    if not (options.rehearse and name.endswith("_graphed")):
                        attempt(row, name, partial(timer, run))
                out.add(row)
    for row in () if options.rehearse else out.results:
        if LAST in FORMS[row["kernel"]] and LAST not in row:
            options.check_time()
            blocks = drawn[row["stage"]]
            x = images_like(row, options)
            attempt(row, LAST, partial(timer, compiled(blocks, x)))
            out.write(row)


def images_like(row: dict[str, Any], options: Options) -> Tensor:
    """Fresh images for a row's stage and batch."""
    [stage] = [stage for stage, _ in options.network.stages if str(stage) == row["stage"]]
    return testing.draw_images(stage, row["batch"]).to(testing.DEVICE, options.dtype)


def forms(
    kernel: str, blocks: list[Block], x: Tensor, tolerance: float
) -> Iterator[tuple[str, Call]]:
    """The kernels, and all forms of torch but the compiled one."""
    handle = kernels.prepare(blocks)
    wide = x.contiguous(memory_format=torch.channels_last)
    forms: tuple[tuple[str, Tensor, functional.Backend], ...] = (
        ("kernels", x, "triton"), ("eager", x, "torch"), ("eager_channels_last", wide, "torch"),
    )  # fmt: skip
    for name, images, backend in forms:
        yield name, partial(call, kernel, blocks, handle, tolerance, images, backend)
    yield "eager_graphed", graphed(fixed(kernel, blocks, handle, tolerance, x))


def fixed(
    kernel: str, blocks: list[Block], handle: kernels.PreparedBlocks, tolerance: float, x: Tensor
) -> Call:
    """What a graph can capture of torch."""
    if kernel == "stage":
        return partial(call, kernel, blocks, handle, tolerance, x, "torch")
    counts: list[list[int]] = []

    @torch.no_grad()
    def run() -> Tensor:
        if not counts:
            counts.append(handle.invert(x, tolerance)[1].amax(dim=0).tolist())
        return fixed_count_inverse(x, [blocks], counts)

    return run


def compiled(blocks: list[Block], x: Tensor) -> Call:
    """torch.compile of the blocks' forward, as `device.sh forward` has it."""
    torch.compiler.reset()

    def forward(x: Tensor) -> Tensor:
        return reference.residual_blocks(x, blocks)

    run = torch.compile(forward, mode="max-autotune", dynamic=False)
    return torch.no_grad()(lambda: run(x))


@torch.no_grad()
def call(
    kernel: str,
    blocks: list[Block],
    handle: kernels.PreparedBlocks,
    tolerance: float,
    images: Tensor,
    backend: functional.Backend,
) -> object:
    """What a network calls."""
    if kernel == "stage":
        return functional.residual_blocks(images, blocks, backend, lambda: handle)
    return functional.invert(images, blocks, tolerance, 100, backend, lambda: handle)
