"""Forward: residual blocks of one shape, all in one launch.

A program owns whole images through all blocks, or, where a batch is too small to fill the card,
a band of rows of one image; the bands of an image meet after each block.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import allocate, device_of, launch_options, pixel_strides, tile_constants
from .packing import PackedBlocks
from .tiles import activate, branch_products, branch_sums, hidden_zero, meet
from .tuning import StageTuning


@triton.jit
def stage_kernel(
    x, out, images, activated, partial, inner, counters, sums, w1, b1, w2, b2, w3, b3, leading,
    batch, blocks, x_image, x_pixel, x_channel, out_image, out_pixel, out_channel,
    C: tl.constexpr, CP: tl.constexpr, N: tl.constexpr, K1: tl.constexpr, N3: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, IMAGES: tl.constexpr, BANDS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out <- all blocks of x. Scratch: `launch.allocate` says what of which size."""
    PIXELS: tl.constexpr = H * W
    ROWS: tl.constexpr = (H + BANDS - 1) // BANDS
    HALO: tl.constexpr = 1 if BANDS > 1 else 0
    LOCAL: tl.constexpr = ROWS + 2 * HALO
    STRIDE: tl.constexpr = (IMAGES * LOCAL * W + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    SIZE: tl.constexpr = IMAGES * C * PIXELS
    PLANE: tl.constexpr = IMAGES * PIXELS * CP
    c = tl.arange(0, CP)
    program = tl.program_id(0).to(tl.int64)
    partial += program * (9 * C * STRIDE)
    inner += program * (PARTS * BLOCK_M * N)
    group = program // BANDS
    images += group * (2 * SIZE)
    activated += group * (2 * PARTS * PLANE)
    first_row = (tl.program_id(0) % BANDS) * ROWS
    arrivals = 0
    for task in range(
        tl.program_id(0) // BANDS, tl.cdiv(batch, IMAGES), tl.num_programs(0) // BANDS
    ):
        first_image = task * IMAGES
        count = tl.minimum(batch - first_image, IMAGES)
        origin = hidden_zero(first_image, batch, STRIDE // BLOCK_M, BLOCK_M * BLOCK)
        begins_with_elu = tl.load(leading) != 0
        for image in range(count):
            source = x + (first_image + image).to(tl.int64) * x_image
            for start in range(origin, ROWS * W, BLOCK):
                local = start + tl.arange(0, BLOCK)
                pixel = first_row * W + local
                valid = ((local < ROWS * W) & (pixel < PIXELS))[:, None]
                mask = valid & (c < C)[None, :]
                at = (pixel * x_pixel)[:, None] + c[None, :] * x_channel
                value = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
                at = pixel[:, None] + (image * C + c)[None, :] * PIXELS
                tl.store(images + at, value, mask=mask)
                activate(
                    value, activated + image * (PIXELS * CP), pixel, valid, begins_with_elu,
                    PLANE, CP, PARTS, INTERPRETED,
                )  # fmt: skip
        arrivals += BANDS
        meet(counters + group, arrivals, BANDS)
        for block in range(blocks):
            turn = block % 2
            origin = hidden_zero(block, blocks, STRIDE // BLOCK_M, BLOCK_M * BLOCK)
            branch_products(
                activated + turn * (PARTS * PLANE), partial, inner,
                w1 + block * (PARTS * K1 * N), b1 + block * N, w2 + block * (PARTS * N * N),
                b2 + block * N, w3 + block * (PARTS * N * N3), count, first_row - HALO, origin,
                C, CP, N, K1, N3, H, W, IMAGES, LOCAL, BLOCK_M, BLOCK_N, BLOCK_K,
                PARTS, INTERPRETED,
            )  # fmt: skip
            tl.debug_barrier()
            begins_with_elu = tl.load(leading + block + 1) != 0
            for image in range(count):
                target = out + (first_image + image).to(tl.int64) * out_image
                for start in range(origin, ROWS * W, BLOCK):
                    local = start + tl.arange(0, BLOCK)
                    pixel = first_row * W + local
                    exists = (local < ROWS * W) & (pixel < PIXELS)
                    branch = branch_sums(
                        partial, b3 + block * C, (image * LOCAL + HALO) * W + local,
                        pixel // W, pixel % W, exists, C, CP, H, W, STRIDE, BLOCK,
                    )  # fmt: skip
                    valid = exists[:, None]
                    mask = valid & (c < C)[None, :]
                    at = pixel[:, None] + (image * C + c)[None, :] * PIXELS
                    value = tl.load(images + turn * SIZE + at, mask=mask, other=0.0) + branch
                    if block == blocks - 1:
                        at = (pixel * out_pixel)[:, None] + c[None, :] * out_channel
                        tl.store(target + at, value.to(out.dtype.element_ty), mask=mask)
                    else:
                        # Never where `value` came from: a thread may store before another reads.
                        tl.store(images + (1 - turn) * SIZE + at, value, mask=mask)
                        other = activated + (1 - turn) * (PARTS * PLANE)
                        activate(
                            value, other + image * (PIXELS * CP), pixel, valid, begins_with_elu,
                            PLANE, CP, PARTS, INTERPRETED,
                        )  # fmt: skip
            # Also before the next task, which overwrites this scratch.
            arrivals += BANDS
            meet(counters + group, arrivals, BANDS)


def run_stage(x: Tensor, out: Tensor, packed: PackedBlocks, tuning: StageTuning) -> None:
    """Writes all blocks of x into out. x, out: [B, C, H, W] with one stride for pixels."""
    programs, scratch = allocate(x, packed, tuning, images=2)
    with device_of(x):
        stage_kernel[(programs,)](
            x, out, *scratch,
            packed.w1, packed.b1, packed.w2, packed.b2, packed.w3, packed.b3, packed.leading,
            x.shape[0], len(packed), *pixel_strides(x), *pixel_strides(out),
            **tile_constants(packed.stage(x), x.dtype, tuning), **launch_options(x, tuning),
        )  # fmt: skip
