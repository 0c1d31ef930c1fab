"""From which batch on the kernels beat torch, stage by stage: what backend="auto" goes by."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from codedinv import kernels
from codedinv.kernels import testing
from codedinv.kernels.reference import Block
from codedinv.nn import functional

from .options import Options
from .receipts import Receipt
from .timing import Timer, attempt

BLOCKS = 2
BUDGET_MS = 200


def measure_crossover(options: Options) -> None:
    """Both backends of `codedinv.nn.functional` on two blocks of every stage at every batch.

    In half precision torch keeps x in 16 bits and stops at a larger step than the kernels, as it
    does when "auto" takes it.
    """
    out = Receipt(f"crossover-{options.name}-{options.dtype_name}", options)
    timer = Timer(options.rehearse, BUDGET_MS)
    for stage, _ in options.network.stages:
        blocks = testing.cast(testing.draw_blocks(stage, BLOCKS), options.dtype)
        handle = kernels.prepare(blocks)
        for kernel in ("stage", "inversion"):
            for batch in options.batches:
                row: dict[str, Any] = {"kernel": kernel, "stage": str(stage), "batch": batch}
                if out.has(**row):
                    continue
                options.check_time()
                x = testing.draw_images(stage, batch).to(testing.DEVICE, options.dtype)
                wide = x.contiguous(memory_format=torch.channels_last)
                forms: tuple[tuple[str, Tensor, functional.Backend], ...] = (
                    ("kernels", x, "triton"),
                    ("eager", x, "torch"),
                    ("eager_channels_last", wide, "torch"),
                )
                for name, images, backend in forms:
                    run = partial(call, kernel, blocks, handle, options.tolerance, images, backend)
                    attempt(row, name, partial(timer, run))
                out.add(row)


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
