"""Forward: residual blocks of one shape, all in one launch.

A program owns whole images through all blocks, or, where a batch is too small to fill the card,
a band of rows of one image; the bands of an image meet after each block (`bands` in
docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .launch import Plan, device_of, pixel_strides, plan_of
from .packing import PackedBlocks
from .solver import scratch_of_program
from .tiles import activate, band_pixels, branch_products, branch_sums, hidden_zero, leave, meet
from .tuning import StageTuning
from .workspace import workspace


@triton.jit
def read_images(
    x, x_image, x_pixel, x_channel, images, activated, begins_with_elu, first_image, count,
    first_row, origin, S: tl.constexpr,
):  # fmt: skip
    """images [IMAGES, C, H, W] <- rows of x, in float32; activated <- elu of them, or they."""
    c = tl.arange(0, S.CP)
    for image in range(count):
        source = x + (first_image + image).to(tl.int64) * x_image
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            _, pixel, exists = band_pixels(first_row, start, S)
            mask = exists[:, None] & (c < S.C)[None, :]
            at = (pixel * x_pixel)[:, None] + c[None, :] * x_channel
            value = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            tl.store(images + at, value, mask=mask)
            activate(value, activated, image, pixel, exists[:, None], begins_with_elu, S)


@triton.jit
def add_branch(
    images, following, activated, partial, bias, out, out_image, out_pixel, out_channel, is_last,
    begins_with_elu, first_image, count, first_row, origin, S: tl.constexpr,
):  # fmt: skip
    """images + F(x) into out if this is the last block, else into following and activated."""
    c = tl.arange(0, S.CP)
    for image in range(count):
        target = out + (first_image + image).to(tl.int64) * out_image
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            local, pixel, exists = band_pixels(first_row, start, S)
            branch = branch_sums(
                partial, bias, image, local, pixel // S.W, pixel % S.W, exists, S
            )  # fmt: skip
            mask = exists[:, None] & (c < S.C)[None, :]
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            value = tl.load(images + at, mask=mask, other=0.0) + branch
            if is_last:
                at = (pixel * out_pixel)[:, None] + c[None, :] * out_channel
                tl.store(target + at, value.to(out.dtype.element_ty), mask=mask)
            else:
                # Never where `value` came from: a thread may store before another reads.
                tl.store(following + at, value, mask=mask)
                activate(value, activated, image, pixel, exists[:, None], begins_with_elu, S)


@triton.jit(do_not_specialize=["batch", "blocks"])
def stage_kernel(
    x, out, images, activated, partial, inner, counters, sums, w1, b1, w2, b2, w3, b3, leading,
    batch, blocks, x_image, x_pixel, x_channel, out_image, out_pixel, out_channel, S: tl.constexpr,
):  # fmt: skip
    """out <- all blocks of x. Scratch: `launch.Plan` says what of which size."""
    images, activated, partial, inner, counter, _ = scratch_of_program(
        images, activated, partial, inner, counters, sums, 2, S
    )
    weights = w1, b1, w2, b2, w3, b3
    plane: tl.constexpr = S.PARTS * S.PLANE
    first_row = (tl.program_id(0) % S.BANDS) * S.ROWS
    arrivals = 0
    for task in range(
        tl.program_id(0) // S.BANDS, tl.cdiv(batch, S.IMAGES), tl.num_programs(0) // S.BANDS
    ):
        first_image = task * S.IMAGES
        count = tl.minimum(batch - first_image, S.IMAGES)
        read_images(
            x, x_image, x_pixel, x_channel, images, activated, tl.load(leading) != 0,
            first_image, count, first_row, hidden_zero(first_image, batch, S), S,
        )  # fmt: skip
        arrivals += S.BANDS
        meet(counter, arrivals, S.BANDS)
        for block in range(blocks):
            turn = block % 2
            origin = hidden_zero(block, blocks, S)
            branch_products(
                activated + turn * plane, partial, inner, weights, block, count, first_row,
                origin, S,
            )  # fmt: skip
            tl.debug_barrier()
            add_branch(
                images + turn * S.SIZE, images + (1 - turn) * S.SIZE,
                activated + (1 - turn) * plane, partial, b3 + block * S.C,
                out, out_image, out_pixel, out_channel, block == blocks - 1,
                tl.load(leading + block + 1) != 0, first_image, count, first_row, origin, S,
            )  # fmt: skip
            # Also before the next task, which overwrites this scratch.
            arrivals += S.BANDS
            meet(counter, arrivals, S.BANDS)
    leave(counter, arrivals, S.BANDS)


def launch_stage(x: Tensor, out: Tensor, weights: Sequence[Tensor], plan: Plan) -> None:
    """Writes all blocks of x into out.

    Args:
        x, out: [B, C, H, W] with one stride for pixels.
        weights: `PackedBlocks.tensors`. plan: of kernel "stage" for x.
    """
    with device_of(x):
        stage_kernel[plan.grid](
            x, out, *workspace.get(x.device, plan), *weights, x.shape[0], weights[-1].shape[0] - 1,
            *pixel_strides(x), *pixel_strides(out), plan.sizes, **plan.options,
        )  # fmt: skip


def run_stage(x: Tensor, out: Tensor, packed: PackedBlocks, tuning: StageTuning) -> None:
    """`launch_stage` with given tiles: for tests and for trying tiles."""
    plan = plan_of("stage", packed.stage(x), x.dtype, x.shape[0], x.device, tuning)
    launch_stage(x, out, packed.tensors, plan)
