"""Power iteration for all convolutions of a network, one launch for each group of equal shape.

In training every convolution advances its estimate at each step; in eager torch that is some
seven small launches per convolution and iteration. Here a program owns one convolution and runs
all its iterations. Weights are read as torch stores them, since they change at every step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .launch import device_of, interpreting, most_registers
from .shapes import Stage, padded_width
from .tuning import StageTuning

# float32 operands on tensor cores as three TF32 products (relative error about 1e-6).
PRECISION = "tf32x3"
BLOCK_M = 64
BLOCK_K = 16
LARGEST_BLOCK_N = 32


@triton.jit
def apply_operator(
    source, target, weight, in_stride, out_stride, scale,
    C: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    TAPS: tl.constexpr, SIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """target [N, H, W] <- scale * the convolution (SIGN 1) or its transpose (-1) of source
    [C, H, W]; returns ||target||^2. in_stride, out_stride: of the weight's channels."""
    SIDE: tl.constexpr = 3 if TAPS == 9 else 1
    CHUNKS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    TILES: tl.constexpr = (H * W + BLOCK_M - 1) // BLOCK_M
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    for tile in range(TILES * CHUNKS):
        m = (tile // CHUNKS) * BLOCK_M + tl.arange(0, BLOCK_M)
        n = (tile % CHUNKS) * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
        for start in range(0, TAPS * C, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            tap = k // C
            channel = k % C
            row = (m // W)[:, None] + (SIGN * (tap // SIDE - SIDE // 2))[None, :]
            col = (m % W)[:, None] + (SIGN * (tap % SIDE - SIDE // 2))[None, :]
            inside = (
                (m < H * W)[:, None] & (k < TAPS * C)[None, :]
                & (row >= 0) & (row < H) & (col >= 0) & (col < W)
            )  # fmt: skip
            at = channel[None, :] * (H * W) + row * W + col
            a = tl.load(source + at, mask=inside, other=0.0)
            at = (channel * in_stride + tap)[:, None] + n[None, :] * out_stride
            b = tl.load(weight + at, mask=(k < TAPS * C)[:, None] & (n < N)[None, :], other=0.0)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
        acc *= scale
        mask = (m < H * W)[:, None] & (n < N)[None, :]
        tl.store(target + n[None, :] * (H * W) + m[:, None], acc, mask=mask)
        # Rows and columns outside are zero: their operands were masked.
        total += tl.sum(acc * acc, axis=1)
    return tl.sum(total, axis=0)


@triton.jit
def power_kernel(
    weights, vectors, images, sigma, iterations,
    C: tl.constexpr, OUT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_O: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program g: vectors[g] [C, H, W] advanced in place and normalised; sigma[g]. images: scratch
    [convolutions, OUT, H, W]; weights: [convolutions, OUT, C, side, side]."""
    group = tl.program_id(0).to(tl.int64)
    weight = weights + group * (OUT * C * TAPS)
    vector = vectors + group * (C * H * W)
    image = images + group * (OUT * H * W)
    scale = 1.0
    for _ in range(iterations):
        apply_operator(
            vector, image, weight, TAPS, C * TAPS, scale,
            C, OUT, BLOCK_O, H, W, TAPS, 1, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
        norm2 = apply_operator(
            image, vector, weight, C * TAPS, TAPS, 1.0,
            OUT, C, BLOCK_C, H, W, TAPS, -1, BLOCK_M, BLOCK_K, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
        # Normalised when next read: the operator is linear, so that saves a pass.
        scale = 1.0 / (tl.sqrt(norm2) + 1e-12)
    norm2 = apply_operator(
        vector, image, weight, TAPS, C * TAPS, scale,
        C, OUT, BLOCK_O, H, W, TAPS, 1, BLOCK_M, BLOCK_K, PRECISION,
    )  # fmt: skip
    tl.store(sigma + group, tl.sqrt(norm2))
    tl.debug_barrier()
    for start in range(0, C * H * W, 1024):
        at = start + tl.arange(0, 1024)
        value = tl.load(vector + at, mask=at < C * H * W, other=0.0)
        tl.store(vector + at, value * scale, mask=at < C * H * W)


@torch.no_grad()
def power_iteration(
    weights: Sequence[Tensor], vectors: Sequence[Tensor], iterations: int
) -> tuple[Tensor, list[Tensor]]:
    """Advances the power iteration of W^T W for many convolution operators (stride 1, same pad).

    Args:
        weights: one [O, I, k, k] float32 per convolution, k = 1 or 3.
        vectors: one unit [1, I, H, W] per convolution, at the size it is applied at.
        iterations: steps v <- W^T W v / ||W^T W v||, at least 1.

    Returns:
        sigma [convolutions], the norms ||W v|| after the last step; the advanced vectors.

    Raises:
        ValueError: a shape does not fit, or iterations is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = defaultdict(list)
    for index, (weight, vector) in enumerate(zip(weights, vectors, strict=True)):
        side = weight.shape[-1]
        if weight.ndim != 4 or side not in (1, 3) or vector.shape[:2] != (1, weight.shape[1]):
            raise ValueError(
                f"weights[{index}]: expected [O, I, k, k], k = 1 or 3, and a vector [1, I, H, W], "
                f"got {tuple(weight.shape)} and {tuple(vector.shape)}"
            )
        groups[weight.shape, vector.shape].append(index)
    first = weights[0]
    if first.dtype != torch.float32 or (first.device.type != "cuda" and not interpreting()):
        return reference.power_iteration(weights, vectors, iterations)
    sigma = torch.empty(len(weights), dtype=torch.float32, device=first.device)
    advanced: list[Tensor] = [first] * len(weights)
    for (shape, (_, _, height, width)), members in groups.items():
        stacked = torch.stack([weights[index].detach() for index in members])
        moving = torch.cat([vectors[index] for index in members])
        images = moving.new_empty(len(members), shape[0], height, width)
        sigmas = sigma if len(groups) == 1 else moving.new_empty(len(members))
        with device_of(moving):
            power_kernel[(len(members),)](
                stacked, moving, images, sigmas, iterations,
                **_constants(shape[1], shape[0], height, width, shape[2] * shape[3]),
                num_warps=4, num_stages=2, maxnreg=most_registers(4),
            )  # fmt: skip
        if sigmas is not sigma:
            sigma[members] = sigmas
        for index, vector in zip(members, moving.split(1), strict=True):
            advanced[index] = vector
    return sigma, advanced


def _constants(
    channels: int, outputs: int, height: int, width: int, taps: int
) -> dict[str, object]:
    return {
        "C": channels, "OUT": outputs,
        "BLOCK_C": min(padded_width(channels), LARGEST_BLOCK_N),
        "BLOCK_O": min(padded_width(outputs), LARGEST_BLOCK_N),
        "H": height, "W": width, "TAPS": taps,
        "BLOCK_M": BLOCK_M, "BLOCK_K": BLOCK_K, "PRECISION": PRECISION,
    }  # fmt: skip


def aot_arguments(stage: Stage, _: StageTuning) -> tuple[dict[str, object], dict[str, str]]:
    """(constexprs, pointer types) of the kernel for a stage's first convolution."""
    pointers = dict.fromkeys(("weights", "vectors", "images", "sigma"), "*fp32")
    return _constants(stage.channels, stage.hidden, stage.height, stage.width, 9), pointers


__all__ = ["aot_arguments", "power_iteration", "power_kernel"]
