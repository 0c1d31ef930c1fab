"""The kernels of kernels/cuda beside the Triton ones, stage by stage: what `prepare(on_chip=None)`
goes by. A command of its own, for a kernel that crashes takes its process with it."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor

from codedinv import kernels
from codedinv.kernels import reference, testing
from codedinv.kernels.on_chip_plan import DTYPES, layout_for
from codedinv.kernels.tuning import Stage

from .options import Options
from .receipts import Receipt
from .smoke import NOT_HERE
from .timing import Call, Timer, attempt, checked, graphed

BLOCKS = 7
BUDGET_MS = 200


def measure_on_chip(options: Options) -> None:
    """Forward and inverse of seven blocks of every stage, from Python and from a graph."""
    if options.rehearse or options.dtype not in DTYPES:
        print("the kernels on chip run on a card, in bfloat16 and float16")
        sys.exit(NOT_HERE)
    out = Receipt(f"on_chip-{options.name}-{options.dtype_name}", options)
    timer = Timer(options.rehearse, BUDGET_MS)
    for stage, _ in options.network.stages:
        blocks = testing.cast(testing.draw_blocks(stage, BLOCKS), options.dtype)
        for kernel in ("forward", "inversion"):
            for batch in options.batches:
                row: dict[str, Any] = {"kernel": kernel, "stage": str(stage), "batch": batch}
                if out.has(**row):
                    continue
                options.check_time()
                row["layout"] = _layout(stage, batch, kernel)
                x = testing.draw_images(stage, batch).to(testing.DEVICE, options.dtype)
                for name, demanded in (("kernels", False), ("on_chip", True)):
                    measure = partial(_measure, row, name, timer, options.tolerance)
                    attempt(row, name, partial(measure, x, blocks, kernel, demanded))
                out.add(row)


def _layout(stage: Stage, batch: int, kernel: str) -> str:
    card = kernels.card_of(testing.DEVICE)
    return str(layout_for(stage, batch, card.multiprocessors, card.capability, kernel))


@torch.no_grad()
def _measure(
    row: dict[str, Any],
    name: str,
    timer: Timer,
    tolerance: float,
    x: Tensor,
    blocks: list[reference.Block],
    kernel: str,
    demanded: bool,
) -> float:
    """Milliseconds of a call, of the right answer only; also that of a graph, and for an inversion
    how many iterations there were, into the row."""
    handle = kernels.prepare(blocks, on_chip=demanded)
    exact = testing.cast(blocks, torch.float64)
    limit = testing.ERROR_LIMIT[x.dtype]
    run: Call
    if kernel == "forward":
        expected = reference.residual_blocks(x[:8].double(), exact)
        run = partial(handle, x)
        row[f"{name}_error"] = checked(handle(x), expected, limit)
    else:
        expected = reference.invert(x[:8].double(), exact, 1e-12, 300)[0]
        run = partial(handle.invert, x, tolerance)
        found, iterations, residual = handle.invert(x, tolerance)
        if not bool((residual <= tolerance).all()):
            raise RuntimeError(f"residual {float(residual.max()):.2e} after the cap")
        row[f"{name}_error"] = checked(found, expected, max(limit, 30 * tolerance))
        row[f"{name}_iterations"] = iterations.amax(dim=0).tolist()
    attempt(row, f"{name}_graphed", partial(timer, graphed(run)))
    return timer(run)
