"""The torch.library operators: each one opaque node to torch.compile and export.

`residual_blocks` and `invert` take weights as they are and differentiate; `prepared_forward` and
`prepared_inverse` take them packed, have no gradients, and cost as little as an operator can. All
run the Triton kernels where they apply, else the torch reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import reference, tuning
from .gate import card_of, kernels_apply
from .gradients import forward_gradients, inverse_gradients
from .packing import PackCache
from .reference import Block
from .shapes import Stage, pixelwise

if TYPE_CHECKING:
    from .launch import Plan

packs = PackCache()


def _blocks(flat: Sequence[Tensor], leading: Sequence[bool]) -> list[Block]:
    return [
        (tuple(flat[6 * i : 6 * i + 6]), flag)  # type: ignore[misc]
        for i, flag in enumerate(leading)
    ]


@lru_cache(maxsize=4096)
def plan(
    kernel: str, shape: torch.Size, hidden: int, dtype: torch.dtype, device: torch.device
) -> Plan:
    """How kernel "stage", "inversion" or "anderson" is launched for a batch of that shape."""
    from .launch import plan_of

    batch, channels, height, width = shape
    stage = Stage(channels, height, width, hidden)
    tuned = "stage" if kernel == "stage" else "inversion"
    tiles = tuning.stage_tuning(tuned, stage, dtype, batch, card_of(device))
    return plan_of(kernel, stage, dtype, batch, device, tiles)


@lru_cache(maxsize=1024)
def _verdicts(batch: int, blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Like iterations and residual of an inverse: empty_like costs half of what empty does."""
    shape = batch, blocks
    iterations = torch.empty(shape, dtype=torch.int32, device=device)
    return iterations, torch.empty(shape, dtype=torch.float32, device=device)


@cache
def _launches() -> Any:
    """The modules with kernels, imported when one is launched first: Triton decides there whether
    it compiles or interprets, and may not be installed."""
    from . import inversion, residual

    return SimpleNamespace(residual=residual, inversion=inversion)


def run_forward(x: Tensor, weights: Sequence[Tensor], hidden: int) -> Tensor:
    """All blocks of x by the kernel. weights: `PackedBlocks.tensors`."""
    x = pixelwise(x)
    out = torch.empty_like(x)
    _launches().residual.launch_stage(
        x, out, weights, plan("stage", x.shape, hidden, x.dtype, x.device)
    )
    return out


def run_inverse(
    y: Tensor,
    weights: Sequence[Tensor],
    hidden: int,
    tolerance: float,
    max_iter: int,
    anderson: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x with blocks(x) = y by the kernel, iterations and residual [B, blocks]."""
    y = pixelwise(y)
    out = torch.empty_like(y)
    device = y.device
    iterations, residual = map(
        torch.empty_like, _verdicts(y.shape[0], weights[-1].shape[0] - 1, device)
    )  # fmt: skip
    kernel = "anderson" if anderson else "inversion"
    _launches().inversion.launch_inversion(
        y, out, iterations, residual, weights, tolerance, max_iter, anderson,
        plan(kernel, y.shape, hidden, y.dtype, device),
    )  # fmt: skip
    return out, iterations, residual


def torch_inverse(
    y: Tensor, blocks: Sequence[Block], tolerance: float, max_iter: int, anderson: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`run_inverse` in torch: in float32 at least, as the kernel keeps x, or half precisions could
    not reach their tolerance."""
    exact = torch.promote_types(y.dtype, torch.float32)
    wide: list[Any] = [(tuple(t.to(exact) for t in parts), flag) for parts, flag in blocks]
    x, iterations, residual = reference.invert(y.to(exact), wide, tolerance, max_iter, anderson)
    return torch.empty_like(pixelwise(y)).copy_(x), iterations, residual


# Differentiable operators, with the weights as they are.


@torch.library.custom_op("codedinv::residual_blocks", mutates_args=())
def residual_blocks(x: Tensor, weights: Sequence[Tensor], leading: Sequence[bool]) -> Tensor:
    blocks = _blocks(weights, leading)
    hidden = weights[0].shape[0]
    if not kernels_apply(x, hidden):
        return torch.empty_like(pixelwise(x)).copy_(reference.residual_blocks(x, blocks))
    return run_forward(x, packs.get(blocks, x.dtype).tensors, hidden)


@residual_blocks.register_fake
def _(x: Tensor, weights: Sequence[Tensor], leading: Sequence[bool]) -> Tensor:
    return torch.empty_like(pixelwise(x))


@torch.library.custom_op("codedinv::residual_blocks_backward", mutates_args=())
def residual_blocks_backward(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], leading: Sequence[bool]
) -> list[Tensor]:
    """Gradients by x and by the weights, by recomputing the blocks."""
    grad_x, grads = forward_gradients(grad, x, _blocks(weights, leading))
    return [grad_x, *grads]


@residual_blocks_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weights: Sequence[Tensor], leading: Sequence[bool]
) -> list[Tensor]:  # fmt: skip
    return [torch.empty_like(grad), *(torch.empty_like(tensor) for tensor in weights)]


def _save_blocks(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weights, ctx.leading = inputs
    ctx.save_for_backward(x, *weights)


def _differentiate_blocks(ctx, grad):  # type: ignore[no-untyped-def]
    x, *weights = ctx.saved_tensors
    grads = torch.ops.codedinv.residual_blocks_backward(grad, x, weights, ctx.leading)
    return grads[0], grads[1:], None


residual_blocks.register_autograd(_differentiate_blocks, setup_context=_save_blocks)


@torch.library.custom_op("codedinv::invert", mutates_args=())
def invert(
    y: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
    anderson: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    blocks = _blocks(weights, leading)
    hidden = weights[0].shape[0]
    if not kernels_apply(y, hidden):
        return torch_inverse(y, blocks, tolerance, max_iter, anderson)
    packed = packs.get(blocks, y.dtype).tensors
    return run_inverse(y, packed, hidden, tolerance, max_iter, anderson)


def _like_inverse(y: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(pixelwise(y)),
        y.new_empty((y.shape[0], blocks), dtype=torch.int32),
        y.new_empty((y.shape[0], blocks), dtype=torch.float32),
    )


@invert.register_fake
def _(
    y: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
    anderson: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _like_inverse(y, len(leading))


@torch.library.custom_op("codedinv::invert_backward", mutates_args=())
def invert_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
) -> list[Tensor]:
    """Gradients by y and by the weights. An operator, since its loop depends on data."""
    blocks = _blocks(weights, leading)
    grad_y, grads = inverse_gradients(grad, x, blocks, tolerance, max_iter)
    # An operator's outputs may not be its inputs.
    return [grad_y.clone(), *grads]


@invert_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
) -> list[Tensor]:
    return [torch.empty_like(grad), *(torch.empty_like(tensor) for tensor in weights)]


def _save_inversion(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, weights, ctx.leading, ctx.tolerance, ctx.max_iter, _ = inputs
    x, iterations, residual = output
    ctx.mark_non_differentiable(iterations, residual)
    ctx.save_for_backward(x, *weights)


def _differentiate_inverse(ctx, grad, _iterations, _residual):  # type: ignore[no-untyped-def]
    x, *weights = ctx.saved_tensors
    grad_y, *weight_grads = torch.ops.codedinv.invert_backward(
        grad, x, weights, ctx.leading, ctx.tolerance, ctx.max_iter
    )
    return grad_y, weight_grads, None, None, None, None


invert.register_autograd(_differentiate_inverse, setup_context=_save_inversion)


def _refuse_second_derivative(ctx, *_grads):  # type: ignore[no-untyped-def]
    raise NotImplementedError(
        "codedinv.kernels: second derivatives are not implemented; take "
        "codedinv.kernels.reference (backend='torch') for gradient penalties"
    )


for _backward in (residual_blocks_backward, invert_backward):
    _backward.register_autograd(_refuse_second_derivative)


# Operators of prepared blocks, bare of what custom_op does at each call.

PACKED = (
    "Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor w3, Tensor b3, Tensor leading, int hidden"
)
_library = torch.library.Library("codedinv", "FRAGMENT")
_library.define(f"prepared_forward(Tensor x, {PACKED}) -> Tensor")
_library.define(
    f"prepared_inverse(Tensor y, {PACKED}, float tolerance, int max_iter, bool anderson)"
    " -> (Tensor, Tensor, Tensor)"
)


def _prepared_forward(x, w1, b1, w2, b2, w3, b3, leading, hidden):  # type: ignore[no-untyped-def]
    return run_forward(x, (w1, b1, w2, b2, w3, b3, leading), hidden)


def _prepared_inverse(  # type: ignore[no-untyped-def]
    y, w1, b1, w2, b2, w3, b3, leading, hidden, tolerance, max_iter, anderson
):
    weights = (w1, b1, w2, b2, w3, b3, leading)
    return run_inverse(y, weights, hidden, tolerance, max_iter, anderson)


for _key in ("CPU", "CUDA"):
    _library.impl("prepared_forward", _prepared_forward, _key)
    _library.impl("prepared_inverse", _prepared_inverse, _key)


@torch.library.register_fake("codedinv::prepared_forward", lib=_library)
def _(x, *_packed):  # type: ignore[no-untyped-def]
    return torch.empty_like(pixelwise(x))


@torch.library.register_fake("codedinv::prepared_inverse", lib=_library)
def _(y, *rest):  # type: ignore[no-untyped-def]
    return _like_inverse(y, rest[6].shape[0] - 1)
