"""Residual blocks and their inversion, in torch or through the Triton kernels.

`backend="auto"` takes a kernel only where a receipt of this card shows it to be faster for the
stage, dtype and batch at hand (kernels/measured.json, written by benchmarks/device.sh), and never
while gradients or autocast are on; everything else runs in torch. "torch" and "triton" force one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

import codedinv.kernels as kernels
from codedinv.kernels import reference

Backend = Literal["auto", "torch", "triton"]
BlockWeights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Block = tuple[BlockWeights, bool]
Prepared = Callable[[], kernels.PreparedBlocks] | None

# Relative fixed-point step that torch reaches with a margin when x itself is kept in the dtype.
# The kernels keep x in float32 and have limits of their own (kernels.reachable_tolerance).
REACHABLE_STEP = {
    torch.float64: 1e-14,
    torch.float32: 2e-7,
    torch.float16: 2e-3,
    torch.bfloat16: 1e-2,
}


def residual_block(
    x: Tensor, weights: BlockWeights, leading_elu: bool = True, backend: Backend = "auto"
) -> Tensor:
    """y = x + F(x) for one block.

    Args:
        x: [B, C, H, W].
        weights: (w1, b1, w2, b2, w3, b3) of convolutions 3x3, 1x1, 3x3.
        leading_elu: whether F begins with an ELU.
        backend: "torch", "triton" or "auto".

    Returns:
        y, like x.

    Raises:
        ValueError: the backend is unknown, or "triton" cannot take these inputs.
    """
    return residual_blocks(x, [(weights, leading_elu)], backend)


def residual_blocks(
    x: Tensor, blocks: Sequence[Block], backend: Backend = "auto", prepared: Prepared = None
) -> Tensor:
    """`residual_block` for several blocks of one shape, in order; a kernel may fuse them.

    Args:
        x, backend: as in `residual_block`. blocks: (weights, leading_elu) in order.
        prepared: gives `kernels.prepare(blocks)`, asked only where a kernel runs that needs neither
            gradients nor tracing; without it the weights are packed or looked up at each call.
    """
    if chosen_backend("forward", x, blocks, backend) == "triton":
        if prepared is None or _needs_operator(x, blocks):
            fused: Tensor = kernels.residual_blocks(x, blocks)
        else:
            fused = prepared()(x)
        return fused
    plain: Tensor = reference.residual_blocks(x, blocks)
    return plain


def invert(
    y: Tensor,
    blocks: Sequence[Block],
    tol: float,
    max_iter: int,
    backend: Backend = "auto",
    prepared: Prepared = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Finds x with blocks(x) = y, each image by its own fixed point.

    Args:
        y: [B, C, H, W].
        blocks: (weights, leading_elu) of one shape, in forward order.
        tol: relative step at which an image is done with a block; clamped to what the dtype
            reaches.
        max_iter: iterations an image may spend on one block.
        backend: "torch", "triton" or "auto".
        prepared: as in `residual_blocks`.

    Returns:
        x like y; iterations [B] int64, summed over blocks; residual [B] float32, the largest last
        relative step of any block; converged [B] bool.

    Raises:
        ValueError: as `residual_block`.
    """
    if chosen_backend("inversion", y, blocks, backend) == "triton":
        tolerance = kernels.reachable_tolerance(tol, y.dtype)
        if prepared is None or _needs_operator(y, blocks):
            x, iterations, residual = kernels.invert_detailed(y, blocks, tolerance, max_iter)
        else:
            x, iterations, residual = prepared().invert(y, tolerance, max_iter)
    else:
        tolerance = max(tol, REACHABLE_STEP[y.dtype])
        x, iterations, residual = reference.invert(y, blocks, tolerance, max_iter)
    worst = residual.amax(dim=1)
    return x, iterations.sum(dim=1), worst, worst <= tolerance


def chosen_backend(
    kernel: Literal["forward", "inversion"], x: Tensor, blocks: Sequence[Block], backend: Backend
) -> Literal["torch", "triton"]:
    """Which backend a call would run on.

    Raises:
        ValueError: the backend is unknown, or "triton" cannot take these inputs; says why.
    """
    if backend == "torch":
        return "torch"
    if backend not in ("auto", "triton"):
        raise ValueError(f'backend: expected "auto", "torch" or "triton", got {backend!r}')
    weights = blocks[0][0]
    if backend == "auto" and (x.device.type != "cuda" or _needs_torch(x, weights)):
        return "torch"
    reason = kernels.unsupported(x, weights[0].shape[0])
    if backend == "triton":
        if reason is not None:
            raise ValueError(f"backend: triton cannot run this: {reason}")
        return "triton"
    if reason is not None:
        return "torch"
    stage = kernels.Stage(x.shape[1], x.shape[2], x.shape[3], weights[0].shape[0])
    card = kernels.card_of(x.device)
    faster = kernels.measured_faster(kernel, stage, x.dtype, x.shape[0], card)
    return "triton" if faster else "torch"


def _needs_operator(x: Tensor, blocks: Sequence[Block]) -> bool:
    """Whether a call must go by the operator that sees the weights: to be differentiated, traced
    or exported."""
    return torch.compiler.is_compiling() or (
        torch.is_grad_enabled()
        and (x.requires_grad or any(t.requires_grad for weights, _ in blocks for t in weights))
    )


def _needs_torch(x: Tensor, weights: BlockWeights) -> bool:
    """Whether autocast decides the dtypes, or a backward pass is coming, which torch does best."""
    if torch.is_autocast_enabled(x.device.type):
        return True
    return torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
