"""The public functions, and the torch.library operators behind them.

Each operator is one opaque node to torch.compile and export: it has a fake kernel and a backward.
It runs the Triton kernels where they apply, else the torch reference, and says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from . import reference, tuning
from .packing import PackCache, check_blocks
from .reference import Block, BlockWeights
from .tuning import INTERPRETER, Card

logger = logging.getLogger(__name__)

# Relative fixed-point step that each dtype can reach, with a margin of 4 over what was seen to be
# reached (bfloat16 1.2e-4, float32 2.8e-8): asking for less would only run into the cap.
REACHABLE_STEP = {
    torch.float64: 1e-14,
    torch.float32: 1e-7,
    torch.float16: 1e-4,
    torch.bfloat16: 5e-4,
}

_packs = PackCache()


def residual_block(x: Tensor, weights: BlockWeights, leading_elu: bool = True) -> Tensor:
    """y = x + W3 * elu(W2 * elu(W1 * elu(x) + b1) + b2) + b3 in one launch.

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
    if not tol > 0:
        raise ValueError(f"tol: expected a positive relative step, got {tol}")
    if max_iter < 1:
        raise ValueError(f"max_iter: expected at least 1, got {max_iter}")
    flat = [tensor for weights, _ in blocks for tensor in weights]
    leading = [bool(flag) for _, flag in blocks]
    tolerance = reachable_tolerance(tol, y.dtype)
    return torch.ops.codedinv.invert(y, flat, leading, tolerance, max_iter, anderson)


def power_iteration(
    weights: Sequence[Tensor], vectors: Sequence[Tensor], iterations: int
) -> tuple[Tensor, list[Tensor]]:
    """`spectral_norm.power_iteration`, or the torch reference where Triton is not installed."""
    if find_spec("triton") is None:
        _say_once("codedinv.kernels falls back to torch: triton is not installed")
        return reference.power_iteration(weights, vectors, iterations)
    from . import spectral_norm

    return spectral_norm.power_iteration(weights, vectors, iterations)


def reachable_tolerance(tol: float, dtype: torch.dtype) -> float:
    """tol, or what `dtype` can reach if that is more."""
    return max(tol, REACHABLE_STEP[dtype])


def card_of(device: torch.device) -> Card:
    """What tuning needs to know of a device; INTERPRETER for the CPU."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    return Card(properties.name, properties.multi_processor_count, capability)


def unsupported(x: Tensor, hidden: int) -> str | None:
    """Why the kernels cannot take x [B, C, H, W] with `hidden` channels; None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    from .launch import interpreting

    if x.device.type != "cuda" and not interpreting():
        return f"device {x.device.type} (kernels run on cuda)"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < (8, 0):
        return "compute capability below 8.0"
    if x.dtype not in tuning.DTYPES:
        return f"dtype {x.dtype}"
    channels, height, width = x.shape[1:]
    if channels > tuning.LARGEST_CHANNELS or hidden > tuning.LARGEST_HIDDEN:
        return (
            f"{channels} channels with {hidden} hidden (at most {tuning.LARGEST_CHANNELS} and "
            f"{tuning.LARGEST_HIDDEN})"
        )
    if not 0 < height * width <= tuning.LARGEST_PIXELS:
        return f"{height}x{width} pixels (at most {tuning.LARGEST_PIXELS})"
    return None


def _check(x: Tensor, name: str, blocks: Sequence[Block]) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: expected shape [B, C, H, W], got {tuple(x.shape)}")
    if x.dtype not in REACHABLE_STEP:
        raise ValueError(f"{name}: expected a floating dtype, got {x.dtype}")
    check_blocks(x.shape[1], blocks)
    for index, (weights, _) in enumerate(blocks):
        for tensor in weights:
            if tensor.dtype != x.dtype or tensor.device != x.device:
                raise ValueError(
                    f"blocks[{index}]: expected weights of {x.dtype} on {x.device} like {name}, "
                    f"got {tensor.dtype} on {tensor.device}"
                )


@cache
def _say_once(message: str) -> None:
    logger.info(message)


def _kernels_apply(x: Tensor, hidden: int) -> bool:
    reason = unsupported(x, hidden)
    if reason is not None:
        _say_once(f"codedinv.kernels falls back to torch: {reason}")
    return reason is None and x.shape[0] > 0


def _blocks(flat: Sequence[Tensor], leading: Sequence[bool]) -> list[Block]:
    return [
        (tuple(flat[6 * i : 6 * i + 6]), flag)  # type: ignore[misc]
        for i, flag in enumerate(leading)
    ]


def _pixelwise(x: Tensor) -> Tensor:
    """x, copied to NCHW only if its pixels do not follow one another with one stride."""
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if dense else x.contiguous()


@torch.library.custom_op("codedinv::residual_blocks", mutates_args=())
def _residual_blocks(x: Tensor, weights: Sequence[Tensor], leading: Sequence[bool]) -> Tensor:
    x = _pixelwise(x)
    out = torch.empty_like(x)
    blocks = _blocks(weights, leading)
    hidden = weights[0].shape[0]
    if not _kernels_apply(x, hidden):
        return out.copy_(reference.residual_blocks(x, blocks))
    from . import residual

    packed = _packs.get(blocks, x.dtype)
    chosen = tuning.stage_tuning(
        "stage", packed.stage(x), x.dtype, x.shape[0], card_of(x.device)
    )  # fmt: skip
    residual.run_stage(x, out, packed, chosen)
    return out


@_residual_blocks.register_fake
def _(x: Tensor, weights: Sequence[Tensor], leading: Sequence[bool]) -> Tensor:
    return torch.empty_like(_pixelwise(x))


def _save_blocks(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weights, ctx.leading = inputs
    ctx.save_for_backward(x, *weights)


def _residual_blocks_backward(ctx, grad):  # type: ignore[no-untyped-def]
    x, *weights = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
    with torch.enable_grad():
        y = reference.residual_blocks(x, _blocks(weights, ctx.leading))
    grads = torch.autograd.grad(y, [x, *weights], grad)
    return grads[0], list(grads[1:]), None


_residual_blocks.register_autograd(_residual_blocks_backward, setup_context=_save_blocks)


@torch.library.custom_op("codedinv::invert", mutates_args=())
def _invert(
    y: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
    anderson: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = _pixelwise(y)
    out = torch.empty_like(y)
    blocks = _blocks(weights, leading)
    hidden = weights[0].shape[0]
    if not _kernels_apply(y, hidden):
        # In float32 as the kernel keeps x, or half precisions could not reach their tolerance.
        exact = torch.promote_types(y.dtype, torch.float32)
        blocks = [
            (tuple(tensor.to(exact) for tensor in parts), flag)  # type: ignore[misc]
            for parts, flag in blocks
        ]
        x, iterations, residual = reference.invert(
            y.to(exact), blocks, tolerance, max_iter, anderson
        )
        return out.copy_(x), iterations, residual
    from . import inversion

    shape = (y.shape[0], len(blocks))
    iterations = torch.empty(shape, dtype=torch.int32, device=y.device)
    residual = torch.empty(shape, dtype=torch.float32, device=y.device)
    packed = _packs.get(blocks, y.dtype)
    chosen = tuning.stage_tuning(
        "inversion", packed.stage(y), y.dtype, y.shape[0], card_of(y.device)
    )  # fmt: skip
    inversion.run_inversion(
        y, out, iterations, residual, packed, tolerance, max_iter, anderson, chosen
    )
    return out, iterations, residual


@_invert.register_fake
def _(
    y: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
    anderson: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (y.shape[0], len(leading))
    return (
        torch.empty_like(_pixelwise(y)),
        y.new_empty(shape, dtype=torch.int32),
        y.new_empty(shape, dtype=torch.float32),
    )


def _save_inversion(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    _, weights, ctx.leading, ctx.tolerance, ctx.max_iter, _ = inputs
    x, iterations, residual = output
    ctx.mark_non_differentiable(iterations, residual)
    ctx.save_for_backward(x, *weights)


@torch.library.custom_op("codedinv::invert_backward", mutates_args=())
def _solve_backward(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
) -> list[Tensor]:
    """Implicit differentiation: for y = x + F(x), dL/dy = (I + J^T)^-1 dL/dx, block by block.

    The linear system is solved by the fixed point v <- g - J^T v, as contractive as F itself.
    An operator of its own, since its loop depends on data. Returns dL/dy and dL/dweights.
    """
    weight_grads: list[Tensor] = []
    for parts, leading_elu in _blocks(weights, leading):
        branch = reference.Linearised(x, parts, leading_elu)
        solution = grad
        for _ in range(max_iter):
            updated = grad - branch.pull(solution)
            step = (updated - solution).norm() / (updated.norm() + 1e-12)
            solution = updated
            if not step > tolerance:
                break
        weight_grads += [-tensor for tensor in branch.weight_gradients(solution)]
        grad = solution
        x = x + branch.value
    # An operator's outputs may not be its inputs.
    return [grad.clone(), *weight_grads]


@_solve_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    leading: Sequence[bool],
    tolerance: float,
    max_iter: int,
) -> list[Tensor]:
    return [torch.empty_like(grad), *(torch.empty_like(tensor) for tensor in weights)]


def _invert_backward(ctx, grad, _iterations, _residual):  # type: ignore[no-untyped-def]
    x, *weights = ctx.saved_tensors
    grad_y, *weight_grads = torch.ops.codedinv.invert_backward(
        grad, x, weights, ctx.leading, ctx.tolerance, ctx.max_iter
    )
    return grad_y, weight_grads, None, None, None, None


_invert.register_autograd(_invert_backward, setup_context=_save_inversion)
