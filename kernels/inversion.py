"""Inversion: all blocks of a stage by fixed point in one launch, converging inside the kernel.

A program owns whole images, so it can tell by itself when they have converged, and the host is
never asked. Each image stops on its own and is frozen from then on, so the answer does not depend
on its neighbours in the tile. Where a batch is too small to fill the card, several programs share
an image, each a band of rows; they meet once per iteration and come to the same verdict, since
all add up the same partial sums in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .anderson import anderson_kernel
from .launch import Plan, device_of, pixel_strides, plan_of
from .packing import PackedBlocks
from .solver import (
    begin_block,
    judge,
    load_images,
    over_bands,
    report,
    scratch_of_program,
    store_images,
    tell_bands,
)
from .tiles import (
    activate,
    band_pixels,
    branch_products,
    branch_sums,
    hidden_zero,
    leave,
    meet,
    of_image,
)
from .tuning import StageTuning
from .workspace import workspace


@triton.jit
def fixed_point_step(
    given, latest, following, activated, partial, bias, begins_with_elu, per, done, ids, count,
    first_row, origin, S: tl.constexpr,
):  # fmt: skip
    """following <- given - F(latest), activated <- elu of it, for images that are not done.

    given, latest, following: images [IMAGES, C, H, W]. Returns ||step||^2 and ||x_new||^2 of this
    band's rows, [IDS], in the images' units.
    """
    c = tl.arange(0, S.CP)
    step2 = tl.full([S.IDS], 0, tl.float32)
    norm2 = tl.full([S.IDS], 0, tl.float32)
    for image in range(count):
        frozen = of_image(done, image, ids) != 0
        scale = of_image(per, image, ids)
        step_tile = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        norm_tile = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            local, pixel, exists = band_pixels(first_row, start, S)
            branch = branch_sums(
                partial, bias, image, local, pixel // S.W, pixel % S.W, exists, S
            )  # fmt: skip
            mask = exists[:, None] & (c < S.C)[None, :]
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            old = tl.load(latest + at, mask=mask, other=0.0)
            new = tl.where(mask, tl.load(given + at, mask=mask, other=0.0) - branch, 0.0)
            step = (new - old) * scale
            step_tile += step * step
            norm = new * scale
            norm_tile += norm * norm
            new = tl.where(frozen, old, new)
            # Never where `old` came from: a thread may store before another reads.
            tl.store(following + at, new, mask=mask)
            activate(new, activated, image, pixel, exists[:, None], begins_with_elu, S)
        here = ids == image
        step2 = tl.where(here, tl.sum(tl.sum(step_tile, axis=1), axis=0), step2)
        norm2 = tl.where(here, tl.sum(tl.sum(norm_tile, axis=1), axis=0), norm2)
    return step2, norm2


@triton.jit
def fixed_point_iteration(
    scratch, weights, block, iteration, given, latest, turn, arrivals, begins_with_elu, per, done,
    ids, count, first_row, band, origin, S: tl.constexpr,
):  # fmt: skip
    """One iteration of a block on all images of a program; meets the other bands.

    given, latest: which buffers hold the right-hand side and x. turn: which half of `activated` and
    of `sums` is written. Returns (the buffer of x_new, ||step||^2, ||x_new||^2 of whole images).
    """
    images, activated, partial, inner, counter, sums = scratch
    branch_products(
        activated + (1 - turn) * (S.PARTS * S.PLANE), partial, inner, weights, block, count,
        first_row, origin, S,
    )  # fmt: skip
    tl.debug_barrier()
    following = (given + 1 + iteration % 2) % 3
    step2, norm2 = fixed_point_step(
        images + given * S.SIZE, images + latest * S.SIZE, images + following * S.SIZE,
        activated + turn * (S.PARTS * S.PLANE), partial, weights[5] + block * S.C,
        begins_with_elu, per, done, ids, count, first_row, origin, S,
    )  # fmt: skip
    told = sums + turn * (6 * S.BANDS * S.IDS)
    tell_bands(step2, told, 2, ids, band, S)
    tell_bands(norm2, told, 3, ids, band, S)
    meet(counter, arrivals, S.BANDS)
    return following, over_bands(step2, told, 2, ids, S), over_bands(norm2, told, 3, ids, S)


@triton.jit
def invert_block(
    scratch, weights, leading, block, given, failed, arrivals, tolerance, max_iter, ids, count,
    first_row, band, origin, S: tl.constexpr,
):  # fmt: skip
    """Iterates until every image is done with a block, or has used up max_iter.

    given: which buffer holds the right-hand side. Returns (the buffer of x, done, steps, last,
    arrivals): of each image whether it converged, its iterations and last relative step.
    """
    images, activated, _, _, counter, sums = scratch
    begins_with_elu = tl.load(leading + block) != 0
    arrivals += S.BANDS
    per, goal2 = begin_block(
        images + given * S.SIZE, activated, counter, arrivals, sums, begins_with_elu, ids, count,
        first_row, band, origin, S,
    )  # fmt: skip
    done = failed
    steps = tl.full([S.IDS], 0, tl.int32)
    last = tl.full([S.IDS], 0, tl.float32)
    latest = given
    # Which half of `activated` and of `sums` is read next; the other is written meanwhile.
    turn = block * 0
    iteration = block * 0
    active = tl.sum(1 - done, axis=0)
    while (iteration < max_iter) & (active > 0):
        origin = hidden_zero(iteration, max_iter, S)
        turn = 1 - turn
        arrivals += S.BANDS
        latest, step2, norm2 = fixed_point_iteration(
            scratch, weights, block, iteration, given, latest, turn, arrivals, begins_with_elu,
            per, done, ids, count, first_row, band, origin, S,
        )  # fmt: skip
        iteration += 1
        per, goal2, done, steps, last = judge(
            step2, norm2, per, goal2, done, steps, last, iteration, tolerance
        )
        active = tl.sum(1 - done, axis=0)
    return latest, done, steps, last, arrivals


@triton.jit(do_not_specialize=["batch", "blocks", "max_iter"])
def invert_kernel(
    y, out, iterations, residual, images, activated, partial, inner, counters, sums,
    w1, b1, w2, b2, w3, b3, leading, batch, blocks, tolerance, max_iter,
    y_image, y_pixel, y_channel, out_image, out_pixel, out_channel, S: tl.constexpr,
):  # fmt: skip
    """out <- x with blocks(x) = y; iterations and residual [batch, blocks].

    Scratch: `launch.Plan` says what of which size. Of its three buffers of images one holds the
    right-hand side of a block; x rotates through the others.
    """
    scratch = scratch_of_program(images, activated, partial, inner, counters, sums, 3, S)
    weights = w1, b1, w2, b2, w3, b3
    ids = tl.arange(0, S.IDS)
    band = tl.program_id(0) % S.BANDS
    first_row = band * S.ROWS
    arrivals = 0
    for task in range(
        tl.program_id(0) // S.BANDS, tl.cdiv(batch, S.IMAGES), tl.num_programs(0) // S.BANDS
    ):
        first_image = task * S.IMAGES
        count = tl.minimum(batch - first_image, S.IMAGES)
        origin = hidden_zero(first_image, batch, S)
        failed = (ids >= count).to(tl.int32)
        given = task * 0
        load_images(
            y, y_image, y_pixel, y_channel, scratch[0], first_image, count, first_row, origin, S
        )  # fmt: skip
        tl.debug_barrier()
        for reverse in range(blocks):
            block = blocks - 1 - reverse
            given, done, steps, last, arrivals = invert_block(
                scratch, weights, leading, block, given, failed, arrivals, tolerance, max_iter,
                ids, count, first_row, band, origin, S,
            )  # fmt: skip
            report(iterations, residual, steps, last, first_image, count, block, blocks, ids)
            # An image that failed here is not worth iterating on in the blocks before.
            failed = tl.where(done != 0, failed, 1)
        store_images(
            scratch[0] + given * S.SIZE, out, out_image, out_pixel, out_channel,
            first_image, count, first_row, origin, S,
        )  # fmt: skip
        # The next task overwrites this scratch.
        tl.debug_barrier()
    leave(scratch[4], arrivals, S.BANDS)


def launch_inversion(
    y: Tensor,
    out: Tensor,
    iterations: Tensor,
    residual: Tensor,
    weights: Sequence[Tensor],
    tolerance: float,
    max_iter: int,
    anderson: bool,
    plan: Plan,
) -> None:
    """Writes x with blocks(x) = y into out, and how each image fared in each block.

    Args:
        y, out: [B, C, H, W] with one stride for pixels.
        iterations, residual: [B, blocks], int32 and float32, contiguous.
        weights: `PackedBlocks.tensors`.
        tolerance: relative step at which an image is done with a block.
        max_iter: iterations an image may spend on one block.
        anderson: accelerate (depth 1).
        plan: of kernel "anderson" or "inversion" for y.
    """
    kernel = anderson_kernel if anderson else invert_kernel
    with device_of(y):
        kernel[plan.grid](
            y, out, iterations, residual, *workspace.get(y.device, plan), *weights,
            y.shape[0], weights[-1].shape[0] - 1, tolerance, max_iter,
            *pixel_strides(y), *pixel_strides(out), plan.sizes, **plan.options,
        )  # fmt: skip


def run_inversion(
    y: Tensor,
    out: Tensor,
    iterations: Tensor,
    residual: Tensor,
    packed: PackedBlocks,
    tolerance: float,
    max_iter: int,
    anderson: bool,
    tuning: StageTuning,
) -> None:
    """`launch_inversion` with given tiles: for tests and for trying tiles."""
    kernel = "anderson" if anderson else "inversion"
    plan = plan_of(kernel, packed.stage(y), y.dtype, y.shape[0], y.device, tuning)
    launch_inversion(
        y, out, iterations, residual, packed.tensors, tolerance, max_iter, anderson, plan
    )  # fmt: skip
