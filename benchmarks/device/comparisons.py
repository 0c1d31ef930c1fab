"""Whole networks, forward and inverse: the kernels beside every form of torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from codedinv import kernels
from codedinv.kernels import reference, testing

from .networks import Blocks, draw, draw_images, fixed_count_inverse, forward, inverse
from .options import Options
from .receipts import Receipt
from .roofline import floor_ms
from .timing import Call, Timer, attempt, checked, graphed, with_tf32

Prepare = Callable[[Options, int, Blocks, Blocks], tuple[dict[str, Any], dict[str, Call]]]


def measure_forward(options: Options) -> None:
    """A network's forward: kernels against eager, a graph of eager, and max-autotune."""
    _measure(f"forward-{options.name}-{options.dtype_name}", options, _forward_forms)


def measure_inverse(options: Options) -> None:
    """A network's inverse to the tolerance: kernels against eager and its graph."""
    _measure(f"inverse-{options.name}-{options.dtype_name}", options, _inverse_forms)


def _measure(what: str, options: Options, prepare: Prepare) -> None:
    """Times every form at every batch; torch.compile, which takes minutes, after all others."""
    out, timer = Receipt(what, options), Timer(options.rehearse)
    low, exact = draw(options.network, options.dtype)
    with torch.no_grad():
        for batch in options.batches:
            if out.has(batch=batch):
                continue
            options.check_time()
            row, forms = prepare(options, batch, low, exact)
            for name, call in forms.items():
                if not (options.rehearse and name.endswith("_graphed")):
                    attempt(row, name, partial(timer, call))
            out.add(row)
        if prepare is _forward_forms and not options.rehearse:
            for row in out.results:
                if "compiled" not in row:
                    options.check_time()
                    x = draw_images(options.network, row["batch"], options.dtype)
                    attempt(row, "compiled", partial(timer, _compiled(x, low)))
                    out.write(row)


def _compiled(x: Tensor, blocks: Blocks) -> Call:
    torch.compiler.reset()

    def run(x: Tensor) -> Tensor:
        return forward(x, blocks, reference.residual_blocks)

    compiled = torch.compile(run, mode="max-autotune", dynamic=False)
    return lambda: compiled(x)


def _forward_forms(
    options: Options, batch: int, low: Blocks, exact: Blocks
) -> tuple[dict[str, Any], dict[str, Call]]:
    x = draw_images(options.network, batch, options.dtype)
    wide = x.contiguous(memory_format=torch.channels_last)

    def eager(x: Tensor = x) -> Tensor:
        return forward(x, low, reference.residual_blocks)

    # As a server does: packed once, and each stage one bare operator.
    handles = [kernels.prepare(stage) for stage in low]

    def ours() -> Tensor:
        return forward(x, handles, lambda x, handle: handle(x))

    expected = forward(x[:8].double(), exact, reference.residual_blocks)
    row = {
        "batch": batch,
        "error": checked(ours(), expected, testing.ERROR_LIMIT[options.dtype]),
        "floor": floor_ms(options, batch, passes=1),
    }
    forms: dict[str, Call] = {
        "kernels": ours,
        "kernels_graphed": graphed(ours),
        "eager": eager,
        "eager_graphed": graphed(eager),
        "eager_channels_last": lambda: eager(wide),
    }
    if options.dtype == torch.float32:
        forms["eager_tf32"] = with_tf32(eager)
    return row, forms


def _inverse_forms(
    options: Options, batch: int, low: Blocks, exact: Blocks
) -> tuple[dict[str, Any], dict[str, Call]]:
    tolerance = options.tolerance
    x = draw_images(options.network, batch, torch.float64)
    z = forward(x, exact, reference.residual_blocks).to(options.dtype)
    wide = z.contiguous(memory_format=torch.channels_last)
    counts: list[list[int]] = []

    handles = [kernels.prepare(stage) for stage in low]

    def counted(y: Tensor, handle: kernels.PreparedBlocks) -> Tensor:
        solution, iterations, residual = handle.invert(y, tolerance)
        if not bool((residual <= tolerance).all()):
            raise RuntimeError(f"residual {float(residual.max()):.2e} after the cap")
        counts.insert(0, iterations.amax(dim=0).tolist())
        return solution

    def ours(anderson: bool = False) -> Tensor:
        return inverse(
            z, handles, lambda y, handle: handle.invert(y, tolerance, anderson=anderson)[0]
        )

    def fixed() -> Tensor:
        return fixed_count_inverse(z, low, counts)

    expected = inverse(
        z[:8].double(), exact, lambda y, stage: reference.invert(y, stage, 1e-12, 300)[0]
    )
    limit = max(testing.ERROR_LIMIT[options.dtype], 30 * tolerance)
    row = {
        "batch": batch,
        "tolerance": tolerance,
        "error": checked(inverse(z, handles, counted), expected, limit),
        "iterations": counts,
    }
    row["floor"] = floor_ms(options, batch, sum(map(sum, counts)) / sum(map(len, counts)))
    forms: dict[str, Call] = {
        "kernels": ours,
        "kernels_graphed": graphed(ours),
        "eager_fixed": fixed,
        "eager_graphed": graphed(fixed),
        "eager_fixed_channels_last": lambda: fixed_count_inverse(wide, low, counts),
        "kernels_anderson": lambda: ours(anderson=True),
    }
    if options.dtype == torch.float32:
        # In half precision torch keeps x itself in 16 bits and cannot reach the tolerance.
        forms["eager"] = lambda: inverse(
            z, low, lambda y, stage: reference.invert(y, stage, tolerance, 100)[0]
        )
    return row, forms
