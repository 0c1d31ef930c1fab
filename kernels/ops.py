"""The public functions on blocks given as weights: checked, differentiable, packed as needed.

What serves calls the same blocks many times and prepares them once: see prepared.py. The operators
behind both are in operators.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from . import (
    operators,  # noqa: F401 (registers torch.ops.codedinv)
    reference,
)
from .gate import say_once, unsupported_card
from .packing import check_blocks
from .reference import Block, BlockWeights
from .shapes import reachable_tolerance, supported_dtype


def residual_block(x: Tensor, weights: BlockWeights, leading_elu: bool = True) -> Tensor:
    """y = x + W3 * elu(W2 * elu(W1 * elu(x) + b1) + b2) + b3 in one launch.

    Differentiable once; second derivatives raise NotImplementedError.

    Args:
        x: [B, C, H, W] float32, bfloat16 or float16; any strides (NCHW and NHWC without a copy).
        weights: baked (w1 [M, C, 3, 3], b1 [M], w2 [M, M, 1, 1], b2 [M], w3 [C, M, 3, 3], b3 [C]).
        leading_elu: False for the first block of a network, whose branch begins without the ELU.

    Returns:
        y, like x. Products are accumulated in float32; those of float32 inputs are made of three
        bfloat16 parts each and as accurate as float32 ones.

    Raises:
        ValueError: x or a weight has another shape, dtype or device.
    """
    return residual_blocks(x, [(weights, leading_elu)])


def residual_blocks(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Applies residual blocks of one shape in order, in one launch.

    Args:
        x: as in `residual_block`.
        blocks: (weights, leading_elu), all of one shape.

    Returns:
        y, like x.

    Raises:
        ValueError: as `residual_block`.
    """
    _check(x, "x", blocks)
    flat = [tensor for weights, _ in blocks for tensor in weights]
    return torch.ops.codedinv.residual_blocks(x, flat, [bool(leading) for _, leading in blocks])


def invert(
    y: Tensor,
    blocks: Sequence[Block],
    tol: float = 1e-5,
    max_iter: int = 100,
    anderson: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Finds x with blocks(x) = y by fixed point, every block in one launch, each image on its own.

    Does not ask the device whether it converged: an image did if its residual is at most
    `reachable_tolerance(tol, y.dtype)`; the caller turns others into an error.

    Args:
        y: [B, C, H, W].
        blocks: (weights, leading_elu) in forward order, all of one shape.
        tol: relative step ||x_new - x|| / max(||x_new||, ||y||) at which an image is done with a
            block; clamped to what the dtype can reach.
        max_iter: iterations an image may spend on one block.
        anderson: accelerate by mixing the last two iterates.

    Returns:
        x like y; iterations [B] int32, the most any block took; residual [B] float32, the largest
        last relative step of any block (infinite where it was not a number).

    Raises:
        ValueError: a shape, dtype, tol or max_iter is wrong.
    """
    x, iterations, residual = invert_detailed(y, blocks, tol, max_iter, anderson)
    return x, iterations.amax(dim=1), residual.amax(dim=1)


def invert_detailed(
    y: Tensor,
    blocks: Sequence[Block],
    tol: float = 1e-5,
    max_iter: int = 100,
    anderson: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`invert`, with iterations and residual of every block: [B, blocks] each.

    A column 0 in both means that the image had failed in a later block.
    """
    _check(y, "y", blocks)
    tolerance = reachable_tolerance(tol, y.dtype)
    if max_iter < 1:
        raise ValueError(f"max_iter: expected at least 1, got {max_iter}")
    flat = [tensor for weights, _ in blocks for tensor in weights]
    leading = [bool(flag) for _, flag in blocks]
    return torch.ops.codedinv.invert(y, flat, leading, tolerance, max_iter, anderson)


def power_iteration(
    weights: Sequence[Tensor], vectors: Sequence[Tensor], iterations: int
) -> tuple[Tensor, list[Tensor]]:
    """`spectral_norm.power_iteration`, or the torch reference where kernels cannot run."""
    reason = "triton is not installed" if find_spec("triton") is None else None
    if reason is None and weights and weights[0].device.type == "cuda":
        reason = unsupported_card(weights[0].device)
    if reason is not None:
        say_once(f"codedinv.kernels falls back to torch: {reason}")
        return reference.power_iteration(weights, vectors, iterations)
    from . import spectral_norm

    return spectral_norm.power_iteration(weights, vectors, iterations)


def _check(x: Tensor, name: str, blocks: Sequence[Block]) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: expected shape [B, C, H, W], got {tuple(x.shape)}")
    supported_dtype(x.dtype, name)
    check_blocks(x.shape[1], blocks)
    for index, (weights, _) in enumerate(blocks):
        for tensor in weights:
            if tensor.dtype != x.dtype or tensor.device != x.device:
                raise ValueError(
                    f"blocks[{index}]: expected weights of {x.dtype} on {x.device} like {name}, "
                    f"got {tensor.dtype} on {tensor.device}"
                )
