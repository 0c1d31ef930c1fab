"""Inversion with Anderson acceleration of depth 1, beside the plain fixed point of inversion.py.

x_next = G(x) - mix (G(x) - last G(x)), G(x) = y - F(x), with the mix of each image that makes the
linearised residual least. The mix needs sums over the whole image, so x_next takes a pass of its
own, and bands meet twice an iteration.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .reference import ANDERSON_REGULARISATION
from .solver import (
    LARGEST,
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

REGULARISATION = tl.constexpr(1.0 + ANDERSON_REGULARISATION)


@triton.jit
def image_of_x(
    given, current, latest, following, last_step, this_step, partial, bias, iteration, per, done,
    ids, count, first_row, origin, S: tl.constexpr,
):  # fmt: skip
    """following <- G(current) for images that are not done, else latest; this_step <- the step.

    All but partial and bias: images [IMAGES, C, H, W]. Returns ||step||^2, ||G(x)||^2,
    <step, change> and ||change||^2 of this band's rows, [IDS], in the images' units; change: of the
    step from the last one.
    """
    c = tl.arange(0, S.CP)
    step2 = tl.full([S.IDS], 0, tl.float32)
    norm2 = tl.full([S.IDS], 0, tl.float32)
    secant = tl.full([S.IDS], 0, tl.float32)
    change2 = tl.full([S.IDS], 0, tl.float32)
    for image in range(count):
        frozen = of_image(done, image, ids) != 0
        scale = of_image(per, image, ids)
        step_tile = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        norm_tile = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        secant_tile = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        change_tile = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            local, pixel, exists = band_pixels(first_row, start, S)
            branch = branch_sums(
                partial, bias, image, local, pixel // S.W, pixel % S.W, exists, S
            )  # fmt: skip
            mask = exists[:, None] & (c < S.C)[None, :]
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            new = tl.where(mask, tl.load(given + at, mask=mask, other=0.0) - branch, 0.0)
            step = new - tl.load(current + at, mask=mask, other=0.0)
            # A tile of iterations: the interpreter has no scalar mask.
            seen = mask & (at * 0 + iteration > 0)
            change = (step - tl.load(last_step + at, mask=seen, other=0.0)) * scale
            tl.store(this_step + at, step, mask=mask)
            step *= scale
            norm = new * scale
            step_tile += step * step
            norm_tile += norm * norm
            secant_tile += step * change
            change_tile += change * change
            new = tl.where(frozen, tl.load(latest + at, mask=mask, other=0.0), new)
            tl.store(following + at, new, mask=mask)
        here = ids == image
        step2 = tl.where(here, tl.sum(tl.sum(step_tile, axis=1), axis=0), step2)
        norm2 = tl.where(here, tl.sum(tl.sum(norm_tile, axis=1), axis=0), norm2)
        secant = tl.where(here, tl.sum(tl.sum(secant_tile, axis=1), axis=0), secant)
        change2 = tl.where(here, tl.sum(tl.sum(change_tile, axis=1), axis=0), change2)
    return step2, norm2, secant, change2


@triton.jit
def mix_images(
    x, image_of_x, last_image, activated, mix, begins_with_elu, ids, count, first_row, origin,
    S: tl.constexpr,
):  # fmt: skip
    """x <- G(x) - mix (G(x) - last G(x)), with one mix per image; activated follows x."""
    c = tl.arange(0, S.CP)
    for image in range(count):
        share = of_image(mix, image, ids)
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            _, pixel, exists = band_pixels(first_row, start, S)
            mask = exists[:, None] & (c < S.C)[None, :]
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            new = tl.load(image_of_x + at, mask=mask, other=0.0)
            old = tl.load(last_image + at, mask=mask, other=0.0)
            # Not share * (new - old) where share is 0: the difference may be infinite.
            new = tl.where(share == 0.0, new, new - share * (new - old))
            tl.store(x + at, new, mask=mask)
            activate(new, activated, image, pixel, exists[:, None], begins_with_elu, S)


@triton.jit
def safe_mix(step2, last2, secant, change2, iteration):
    """The mix of each image, [IDS]: 0, a plain step, where the secant model is no good."""
    mix = secant / (change2 * REGULARISATION + 1e-30)
    # The residual grew, or sums overflowed.
    usable = (step2 <= last2) & (step2 <= LARGEST) & (change2 <= LARGEST)
    return tl.where(usable & (iteration > 0), mix, 0.0)


@triton.jit
def mixing_iteration(
    scratch, weights, block, iteration, given, latest, last2, turn, arrivals, begins_with_elu, per,
    done, ids, count, first_row, band, origin, S: tl.constexpr,
):  # fmt: skip
    """One iteration of a block on all images of a program; meets the other bands twice.

    given, latest: which buffers hold the right-hand side and G(x). last2: ||step||^2 of the
    iteration before. turn: which half of `activated` and of `sums` is written. Returns (the buffer
    of the new G(x), ||step||^2, ||G(x)||^2 of whole images).
    """
    images, activated, partial, inner, counter, sums = scratch
    branch_products(
        activated + (1 - turn) * (S.PARTS * S.PLANE), partial, inner, weights, block, count,
        first_row, origin, S,
    )  # fmt: skip
    tl.debug_barrier()
    following = (given + 1 + iteration % 2) % 3
    current = tl.where(iteration == 0, latest, 3)
    parity = iteration % 2
    step2, norm2, secant, change2 = image_of_x(
        images + given * S.SIZE, images + current * S.SIZE, images + latest * S.SIZE,
        images + following * S.SIZE, images + (5 - parity) * S.SIZE, images + (4 + parity) * S.SIZE,
        partial, weights[5] + block * S.C, iteration, per, done, ids, count, first_row, origin, S,
    )  # fmt: skip
    told = sums + turn * (6 * S.BANDS * S.IDS)
    tell_bands(step2, told, 2, ids, band, S)
    tell_bands(norm2, told, 3, ids, band, S)
    tell_bands(secant, told, 4, ids, band, S)
    tell_bands(change2, told, 5, ids, band, S)
    meet(counter, arrivals, S.BANDS)
    step2 = over_bands(step2, told, 2, ids, S)
    norm2 = over_bands(norm2, told, 3, ids, S)
    secant = over_bands(secant, told, 4, ids, S)
    change2 = over_bands(change2, told, 5, ids, S)
    mix_images(
        images + 3 * S.SIZE, images + following * S.SIZE, images + latest * S.SIZE,
        activated + turn * (S.PARTS * S.PLANE), safe_mix(step2, last2, secant, change2, iteration),
        begins_with_elu, ids, count, first_row, origin, S,
    )  # fmt: skip
    meet(counter, arrivals + S.BANDS, S.BANDS)
    return following, step2, norm2


@triton.jit
def invert_block_mixing(
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
    last2 = tl.full([S.IDS], 0, tl.float32)
    latest = given
    # Which half of `activated` and of `sums` is read next; the other is written meanwhile.
    turn = block * 0
    iteration = block * 0
    active = tl.sum(1 - done, axis=0)
    while (iteration < max_iter) & (active > 0):
        origin = hidden_zero(iteration, max_iter, S)
        turn = 1 - turn
        latest, step2, norm2 = mixing_iteration(
            scratch, weights, block, iteration, given, latest, last2, turn, arrivals + S.BANDS,
            begins_with_elu, per, done, ids, count, first_row, band, origin, S,
        )  # fmt: skip
        arrivals += 2 * S.BANDS
        last2 = tl.where(norm2 <= LARGEST, step2, float("inf"))
        iteration += 1
        per, goal2, done, steps, last = judge(
            step2, norm2, per, goal2, done, steps, last, iteration, tolerance
        )
        active = tl.sum(1 - done, axis=0)
    return latest, done, steps, last, arrivals


@triton.jit(do_not_specialize=["batch", "blocks", "max_iter"])
def anderson_kernel(
    y, out, iterations, residual, images, activated, partial, inner, counters, sums,
    w1, b1, w2, b2, w3, b3, leading, batch, blocks, tolerance, max_iter,
    y_image, y_pixel, y_channel, out_image, out_pixel, out_channel, S: tl.constexpr,
):  # fmt: skip
    """out <- x with blocks(x) = y; iterations and residual [batch, blocks].

    Scratch: `launch.Plan` says what of which size. Of the first three buffers of images one holds
    the right-hand side of a block; G(x) rotates through the others. The fourth holds x, the last
    two the steps.
    """
    scratch = scratch_of_program(images, activated, partial, inner, counters, sums, 6, S)
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
            given, done, steps, last, arrivals = invert_block_mixing(
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
