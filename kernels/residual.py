"""Forward: one residual block in one launch, or all blocks of a stage in one launch.

`block_kernel` splits an image into bands of rows, each with its own halo, so that a small batch
still fills the card. `stage_kernel` gives a program whole images and keeps them through all
blocks, which a large batch prefers: one launch, and nothing but the ends leaves L2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of, inner_scratch, interpreting, pixel_strides, programs_on
from .packing import PackedBlocks, padded_width
from .tiles import convolve, elu, hidden_pass
from .tuning import BlockTuning, StageTuning


@triton.jit
def block_kernel(
    x, out, inner, hidden, w1, b1, w2, b2, w3, b3, batch,
    x_image, x_pixel, x_channel, out_image, out_pixel, out_channel,
    C: tl.constexpr, P: tl.constexpr, HIDDEN: tl.constexpr, N: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, IMAGES: tl.constexpr, BANDS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K1: tl.constexpr, BLOCK_K3: tl.constexpr,
    LEADING: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out <- x + F(x). A task is IMAGES whole images (BANDS = 1) or one band of one image."""
    ROWS: tl.constexpr = (H + BANDS - 1) // BANDS
    HALO: tl.constexpr = 1 if BANDS > 1 else 0
    LOCAL: tl.constexpr = ROWS + 2 * HALO
    n = tl.arange(0, P)
    scratch = tl.program_id(0).to(tl.int64) * (IMAGES * LOCAL * W * HIDDEN)
    inner += scratch
    hidden += scratch
    tasks = tl.cdiv(batch, IMAGES) * BANDS
    for task in range(tl.program_id(0), tasks, tl.num_programs(0)):
        first_image = (task // BANDS) * IMAGES
        first_row = (task % BANDS) * ROWS
        count = tl.minimum(batch - first_image, IMAGES)
        source = x + first_image.to(tl.int64) * x_image
        target = out + first_image.to(tl.int64) * out_image
        hidden_pass(
            source, x_image, x_pixel, x_channel, inner, hidden,
            w1, b1, w2, b2, count, first_row - HALO,
            C, HIDDEN, N, H, W, IMAGES, LOCAL, BLOCK_M, BLOCK_N, BLOCK_K1, BLOCK_K3,
            LEADING, PRECISION, UPCAST,
        )  # fmt: skip
        # The next loop reads at shifted places what other threads have just stored.
        tl.debug_barrier()
        for start in range(0, IMAGES * ROWS * W, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            image = m // (ROWS * W)
            local_row = (m // W) % ROWS
            row = first_row + local_row
            col = m % W
            valid = (image < count) & (row < H)
            offset = ((image * LOCAL + local_row + HALO) * W + col) * HIDDEN
            acc = tl.zeros([BLOCK_M, P], dtype=tl.float32) + tl.load(b3 + n)[None, :]
            acc = convolve(
                acc, hidden, offset, row, col, valid, HIDDEN, 1, w3,
                HIDDEN, P, P, H, W, BLOCK_K3, False, PRECISION, UPCAST,
            )  # fmt: skip
            pixel = row * W + col
            mask = valid[:, None] & (n < C)[None, :]
            at = (image * x_image + pixel * x_pixel)[:, None] + n[None, :] * x_channel
            before = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
            at = (image * out_image + pixel * out_pixel)[:, None] + n[None, :] * out_channel
            tl.store(target + at, (before + acc).to(out.dtype.element_ty), mask=mask)
        # The next task overwrites this scratch.
        tl.debug_barrier()


@triton.jit
def stage_kernel(
    x, out, states, activated, inner, hidden, w1, b1, w2, b2, w3, b3, leading, batch, blocks,
    x_image, x_pixel, x_channel, out_image, out_pixel, out_channel,
    C: tl.constexpr, P: tl.constexpr, HIDDEN: tl.constexpr, N: tl.constexpr,
    K1: tl.constexpr, K3: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    IMAGES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K1: tl.constexpr, BLOCK_K3: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out <- all blocks of x. Scratch per program: states [2, IMAGES, H, W, C] float32, activated
    [IMAGES, H, W, C] and hidden [IMAGES, H, W, HIDDEN] in the weights' dtype."""
    PIXELS: tl.constexpr = H * W
    SIZE: tl.constexpr = IMAGES * PIXELS * C
    n = tl.arange(0, P)
    program = tl.program_id(0).to(tl.int64)
    states += program * (2 * SIZE)
    activated += program * SIZE
    inner += program * (IMAGES * PIXELS * HIDDEN)
    hidden += program * (IMAGES * PIXELS * HIDDEN)
    for task in range(tl.program_id(0), tl.cdiv(batch, IMAGES), tl.num_programs(0)):
        first_image = task * IMAGES
        count = tl.minimum(batch - first_image, IMAGES)
        source = x + first_image.to(tl.int64) * x_image
        target = out + first_image.to(tl.int64) * out_image
        begins_with_elu = tl.load(leading) != 0
        for start in range(0, IMAGES * PIXELS, BLOCK_M):
            m = start + tl.arange(0, BLOCK_M)
            image = m // PIXELS
            mask = (image < count)[:, None] & (n < C)[None, :]
            at = (image * x_image + (m % PIXELS) * x_pixel)[:, None] + n[None, :] * x_channel
            value = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
            local = m[:, None] * C + n[None, :]
            tl.store(states + local, value, mask=mask)
            value = tl.where(begins_with_elu, elu(value), value)
            tl.store(activated + local, value.to(activated.dtype.element_ty), mask=mask)
        tl.debug_barrier()
        for block in range(blocks):
            hidden_pass(
                activated, PIXELS * C, C, 1, inner, hidden,
                w1 + block * (K1 * N), b1 + block * N, w2 + block * (N * N), b2 + block * N,
                count, 0,
                C, HIDDEN, N, H, W, IMAGES, H, BLOCK_M, BLOCK_N, BLOCK_K1, BLOCK_K3,
                False, PRECISION, UPCAST,
            )  # fmt: skip
            tl.debug_barrier()
            begins_with_elu = tl.load(leading + block + 1) != 0
            old = states + (block % 2) * SIZE
            new = states + (1 - block % 2) * SIZE
            for start in range(0, IMAGES * PIXELS, BLOCK_M):
                m = start + tl.arange(0, BLOCK_M)
                image = m // PIXELS
                row = (m // W) % H
                col = m % W
                valid = image < count
                bias = tl.load(b3 + block * P + n)
                acc = tl.zeros([BLOCK_M, P], dtype=tl.float32) + bias[None, :]
                acc = convolve(
                    acc, hidden, m * HIDDEN, row, col, valid, HIDDEN, 1, w3 + block * (K3 * P),
                    HIDDEN, P, P, H, W, BLOCK_K3, False, PRECISION, UPCAST,
                )  # fmt: skip
                mask = valid[:, None] & (n < C)[None, :]
                local = m[:, None] * C + n[None, :]
                value = tl.load(old + local, mask=mask, other=0.0) + acc
                if block == blocks - 1:
                    at = image * out_image + (m % PIXELS) * out_pixel
                    at = at[:, None] + n[None, :] * out_channel
                    tl.store(target + at, value.to(out.dtype.element_ty), mask=mask)
                else:
                    # Another buffer than `old`: a thread may store before its neighbour has read.
                    tl.store(new + local, value, mask=mask)
                    value = tl.where(begins_with_elu, elu(value), value)
                    tl.store(activated + local, value.to(activated.dtype.element_ty), mask=mask)
            tl.debug_barrier()


def run_block(
    x: Tensor, out: Tensor, packed: PackedBlocks, index: int, tuning: BlockTuning
) -> None:
    """Writes block `index` of x into out. x, out: [B, C, H, W] with one stride for pixels."""
    batch, channels, height, width = x.shape
    bands = tuning.bands
    rows = -(-height // bands) + (2 if bands > 1 else 0)
    tasks = -(-batch // tuning.images) * bands
    programs = programs_on(x.device, tasks)
    weights = packed.w1.dtype
    hidden = torch.empty(
        programs * tuning.images * rows * width * packed.hidden, dtype=weights, device=x.device
    )
    inner = inner_scratch(hidden, packed, tuning)
    with device_of(x):
        block_kernel[(programs,)](
            x, out, inner, hidden,
            packed.w1[index], packed.b1[index], packed.w2[index], packed.b2[index],
            packed.w3[index], packed.b3[index], batch,
            *pixel_strides(x), *pixel_strides(out),
            C=channels, P=padded_width(channels), HIDDEN=packed.hidden,
            N=padded_width(packed.hidden), H=height, W=width, IMAGES=tuning.images, BANDS=bands,
            BLOCK_M=tuning.block_m, BLOCK_N=tuning.block_n, BLOCK_K1=tuning.block_k1,
            BLOCK_K3=tuning.block_k3,
            LEADING=packed.leading_elu[index], PRECISION=tuning.precision,
            UPCAST=interpreting() and weights == torch.bfloat16,
            num_warps=tuning.num_warps, num_stages=tuning.num_stages,
        )  # fmt: skip


def run_stage(x: Tensor, out: Tensor, packed: PackedBlocks, tuning: StageTuning) -> None:
    """Writes all blocks of x into out. x, out: [B, C, H, W] with one stride for pixels."""
    batch, channels, height, width = x.shape
    programs = programs_on(x.device, -(-batch // tuning.images))
    weights = packed.w1.dtype
    pixels = programs * tuning.images * height * width
    states = torch.empty(2 * pixels * channels, dtype=torch.float32, device=x.device)
    activated = torch.empty(pixels * channels, dtype=weights, device=x.device)
    hidden = torch.empty(pixels * packed.hidden, dtype=weights, device=x.device)
    inner = inner_scratch(hidden, packed, tuning)
    with device_of(x):
        stage_kernel[(programs,)](
            x, out, states, activated, inner, hidden,
            packed.w1, packed.b1, packed.w2, packed.b2, packed.w3, packed.b3, packed.leading,
            batch, len(packed), *pixel_strides(x), *pixel_strides(out),
            C=channels, P=padded_width(channels), HIDDEN=packed.hidden,
            N=padded_width(packed.hidden), K1=packed.w1.shape[1], K3=packed.w3.shape[1],
            H=height, W=width, IMAGES=tuning.images,
            BLOCK_M=tuning.block_m, BLOCK_N=tuning.block_n, BLOCK_K1=tuning.block_k1,
            BLOCK_K3=tuning.block_k3,
            PRECISION=tuning.precision, UPCAST=interpreting() and weights == torch.bfloat16,
            num_warps=tuning.num_warps, num_stages=tuning.num_stages,
        )  # fmt: skip
