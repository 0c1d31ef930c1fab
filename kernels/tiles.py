"""Device functions shared by the kernels: one tile of a 3x3 convolution, ELU, per-image sums.

A tile is BLOCK_M pixels of one or several images by all output channels. Its inputs are gathered
from global memory, where they stay in L1 or L2, because a 3x3 convolution needs each pixel nine
times at other places. K runs over (tap, channel): k = tap * C + channel.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def elu(value):
    return tl.where(value > 0, value, tl.exp(tl.minimum(value, 0.0)) - 1.0)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + a @ b in float32. UPCAST: the interpreter cannot multiply bfloat16 operands."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def sum_per_image(value, image, ids):
    """[BLOCK_M] -> [images]: sums of the pixels that belong to each image."""
    return tl.sum(tl.where(image[:, None] == ids[None, :], value[:, None], 0.0), axis=0)


@triton.jit
def of_image(table, image, ids):
    """[images] -> [BLOCK_M]: each pixel's entry of a per-image table."""
    return tl.sum(tl.where(image[:, None] == ids[None, :], table[None, :], 0), axis=1)


@triton.jit
def convolve(
    acc, source, offset, row, col, valid, pixel_stride, channel_stride, weight,
    C: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    BLOCK_K: tl.constexpr, ELU_FIRST: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_M, BLOCK_N] + the 3x3 convolution of C channels at the tile's pixels.

    offset, row, col, valid: [BLOCK_M], the pixels' offsets in `source`, positions, existence.
    weight: the first of BLOCK_N columns of [9 C padded, N], channels fastest within a tap.
    """
    n = tl.arange(0, BLOCK_N)
    if C % BLOCK_K == 0:
        # A chunk of K lies within one tap: the mask is per pixel and rows of loads are contiguous.
        CHUNKS: tl.constexpr = C // BLOCK_K
        for chunk in range(9 * CHUNKS):
            tap = chunk // CHUNKS
            down = tap // 3 - 1
            right = tap % 3 - 1
            channel = (chunk % CHUNKS) * BLOCK_K + tl.arange(0, BLOCK_K)
            inside = (
                valid
                & (row + down >= 0) & (row + down < H)
                & (col + right >= 0) & (col + right < W)
            )  # fmt: skip
            pixel = offset + (down * W + right) * pixel_stride
            a = tl.load(
                source + pixel[:, None] + channel[None, :] * channel_stride,
                mask=inside[:, None],
                other=0.0,
            )
            if ELU_FIRST:
                a = elu(a.to(tl.float32))
            k = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
            b = tl.load(weight + k[:, None] * N + n[None, :])
            acc = multiply(a.to(b.dtype), b, acc, PRECISION, UPCAST)
    else:
        # im2col: tl.dot needs K >= 16, and these stages have 1, 3, 4 or 12 channels.
        for start in range(0, 9 * C, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            tap = k // C
            down = tap // 3 - 1
            right = tap % 3 - 1
            channel = k % C
            below = row[:, None] + down[None, :]
            beside = col[:, None] + right[None, :]
            inside = (
                valid[:, None] & (k < 9 * C)[None, :]
                & (below >= 0) & (below < H) & (beside >= 0) & (beside < W)
            )  # fmt: skip
            shift = (down * W + right) * pixel_stride + channel * channel_stride
            a = tl.load(source + offset[:, None] + shift[None, :], mask=inside, other=0.0)
            if ELU_FIRST:
                a = elu(a.to(tl.float32))
            b = tl.load(weight + k[:, None] * N + n[None, :])
            acc = multiply(a.to(b.dtype), b, acc, PRECISION, UPCAST)
    return acc


@triton.jit
def hidden_pass(
    source, image_stride, pixel_stride, channel_stride, inner, hidden, w1, b1, w2, b2,
    count, first_row,
    C: tl.constexpr, HIDDEN: tl.constexpr, N: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K1: tl.constexpr, BLOCK_K2: tl.constexpr,
    ELU_FIRST: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """hidden <- elu(W2 elu(W1 * source + b1) + b2) for ROWS image rows from first_row on.

    inner, hidden: [IMAGES, ROWS, W, HIDDEN] scratch in the weights' dtype. With BLOCK_N = N the
    first hidden layer stays in registers (the 1x1 convolution needs no neighbours) and `inner` is
    not used; with less it goes through `inner`, which wide float32 stages need: a tile of all
    their columns spills.
    """
    if BLOCK_N == N:
        n = tl.arange(0, N)
        k = tl.arange(0, N)
        for start in range(0, IMAGES * ROWS * W, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            image = m // (ROWS * W)
            row = first_row + (m // W) % ROWS
            col = m % W
            valid = (image < count) & (row >= 0) & (row < H)
            offset = image * image_stride + (row * W + col) * pixel_stride
            acc = tl.zeros([BLOCK_M, N], dtype=tl.float32) + tl.load(b1 + n)[None, :]
            acc = convolve(
                acc, source, offset, row, col, valid, pixel_stride, channel_stride, w1,
                C, N, N, H, W, BLOCK_K1, ELU_FIRST, PRECISION, UPCAST,
            )  # fmt: skip
            mixing = tl.load(w2 + k[:, None] * N + n[None, :])
            first = elu(acc).to(mixing.dtype)
            acc = tl.zeros([BLOCK_M, N], dtype=tl.float32) + tl.load(b2 + n)[None, :]
            acc = multiply(first, mixing, acc, PRECISION, UPCAST)
            tl.store(
                hidden + m[:, None] * HIDDEN + n[None, :],
                elu(acc).to(hidden.dtype.element_ty),
                mask=valid[:, None] & (n < HIDDEN)[None, :],
            )
    else:
        CHUNKS: tl.constexpr = HIDDEN // BLOCK_N
        TILES: tl.constexpr = (IMAGES * ROWS * W + BLOCK_M - 1) // BLOCK_M
        for tile in range(TILES * CHUNKS):
            m = (tile // CHUNKS) * BLOCK_M + tl.arange(0, BLOCK_M)
            n = (tile % CHUNKS) * BLOCK_N + tl.arange(0, BLOCK_N)
            image = m // (ROWS * W)
            row = first_row + (m // W) % ROWS
            col = m % W
            valid = (image < count) & (row >= 0) & (row < H)
            offset = image * image_stride + (row * W + col) * pixel_stride
            acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32) + tl.load(b1 + n)[None, :]
            acc = convolve(
                acc, source, offset, row, col, valid, pixel_stride, channel_stride,
                w1 + (tile % CHUNKS) * BLOCK_N,
                C, N, BLOCK_N, H, W, BLOCK_K1, ELU_FIRST, PRECISION, UPCAST,
            )  # fmt: skip
            tl.store(
                inner + m[:, None] * HIDDEN + n[None, :],
                elu(acc).to(inner.dtype.element_ty),
                mask=valid[:, None],
            )
        # The next loop reads whole rows, of which other threads have stored parts.
        tl.debug_barrier()
        for tile in range(TILES * CHUNKS):
            m = (tile // CHUNKS) * BLOCK_M + tl.arange(0, BLOCK_M)
            n = (tile % CHUNKS) * BLOCK_N + tl.arange(0, BLOCK_N)
            row = first_row + (m // W) % ROWS
            valid = (m // (ROWS * W) < count) & (row >= 0) & (row < H)
            acc = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32) + tl.load(b2 + n)[None, :]
            for begin in range(0, HIDDEN, BLOCK_K2):
                k = begin + tl.arange(0, BLOCK_K2)
                a = tl.load(
                    inner + m[:, None] * HIDDEN + k[None, :], mask=valid[:, None], other=0.0
                )
                b = tl.load(w2 + k[:, None] * N + n[None, :])
                acc = multiply(a, b, acc, PRECISION, UPCAST)
            tl.store(
                hidden + m[:, None] * HIDDEN + n[None, :],
                elu(acc).to(hidden.dtype.element_ty),
                mask=valid[:, None],
            )
