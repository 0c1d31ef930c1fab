"""Device functions that the two solvers of inversion.py and anderson.py share.

Sums of an image are taken in units of its size, or the squares of large images would overflow and
those of small ones vanish. Bands tell each other theirs through `sums` [2, 6, BANDS, IDS]: what is
written in one half while another band may still be reading the other.

    row   written                            read
    0     begin_block, half 0: ||y||^2       by begin_block, once all have met
    1     begin_block, half 0: unit of 0     "
    2..5  each iteration, in turns: ||step||^2, ||x_new||^2, and for Anderson mixing
          <step, change>, ||change||^2       by over_bands, once all have met
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tiles import activate, band_pixels, meet, of_image

# Beyond this a float32 counts as infinite.
LARGEST = tl.constexpr(3.0e38)
# Units lie in here: both they and one over them are normal numbers.
LEAST_UNIT = tl.constexpr(1.0e-37)
LARGEST_UNIT = tl.constexpr(8.0e37)
# Where sums of x overflow in a unit fit for y, as of small y and biases that are not: one over the
# unit that is taken then. Sums that overflowed are above 1e38 before, above 1e-23 after.
SMALLER = tl.constexpr(2.0**-100)


@triton.jit
def scratch_of_program(
    images, activated, partial, inner, counters, sums, BUFFERS: tl.constexpr, S: tl.constexpr
):
    """This program's part of all scratch memory; see `launch.Plan` for what of which size."""
    program = tl.program_id(0).to(tl.int64)
    group = program // S.BANDS
    return (
        images + group * (BUFFERS * S.SIZE),
        activated + group * (2 * S.PARTS * S.PLANE),
        partial + program * (9 * S.C * S.STRIDE),
        inner + program * (S.PARTS * S.BLOCK_M * S.N),
        counters + group,
        sums + group * (12 * S.BANDS * S.IDS),
    )


@triton.jit
def load_images(y, y_image, y_pixel, y_channel, images, first_image, count, first_row, origin,
                S: tl.constexpr):  # fmt: skip
    """images [IMAGES, C, H, W] <- rows of y, in float32."""
    c = tl.arange(0, S.CP)
    for image in range(count):
        source = y + (first_image + image).to(tl.int64) * y_image
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            _, pixel, exists = band_pixels(first_row, start, S)
            mask = exists[:, None] & (c < S.C)[None, :]
            at = (pixel * y_pixel)[:, None] + c[None, :] * y_channel
            value = tl.load(source + at, mask=mask, other=0.0).to(tl.float32)
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            tl.store(images + at, value, mask=mask)


@triton.jit
def store_images(images, out, out_image, out_pixel, out_channel, first_image, count, first_row,
                 origin, S: tl.constexpr):  # fmt: skip
    """Rows of out <- images [IMAGES, C, H, W]."""
    c = tl.arange(0, S.CP)
    for image in range(count):
        target = out + (first_image + image).to(tl.int64) * out_image
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            _, pixel, exists = band_pixels(first_row, start, S)
            mask = exists[:, None] & (c < S.C)[None, :]
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            value = tl.load(images + at, mask=mask, other=0.0)
            at = (pixel * out_pixel)[:, None] + c[None, :] * out_channel
            tl.store(target + at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def begin_block(
    images, activated, counter, arrivals, sums, begins_with_elu, ids, count, first_row, band,
    origin, S: tl.constexpr,
):  # fmt: skip
    """activated <- elu(y) or y; meets the other bands.

    Returns (per, goal2), [IDS] each: one over the unit of each image's sums, its largest |y|, and
    ||y||^2 in that unit.
    """
    c = tl.arange(0, S.CP)
    largest = tl.full([S.IDS], 0, tl.float32)
    for image in range(count):
        tile = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            _, pixel, exists = band_pixels(first_row, start, S)
            mask = exists[:, None] & (c < S.C)[None, :]
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            value = tl.load(images + at, mask=mask, other=0.0)
            tile = tl.maximum(tile, tl.abs(value))
            activate(value, activated, image, pixel, exists[:, None], begins_with_elu, S)
        largest = tl.where(ids == image, tl.max(tl.max(tile, axis=1), axis=0), largest)
    unit = tl.minimum(tl.maximum(largest, LEAST_UNIT), LARGEST_UNIT)
    goal2 = tl.full([S.IDS], 0, tl.float32)
    for image in range(count):
        per = 1.0 / of_image(unit, image, ids)
        total = tl.full([S.BLOCK, S.CP], 0, tl.float32)
        for start in range(origin, S.ROWS * S.W, S.BLOCK):
            _, pixel, exists = band_pixels(first_row, start, S)
            mask = exists[:, None] & (c < S.C)[None, :]
            at = pixel[:, None] + (image * S.C + c)[None, :] * S.PIXELS
            value = tl.load(images + at, mask=mask, other=0.0) * per
            total += value * value
        goal2 = tl.where(ids == image, tl.sum(tl.sum(total, axis=1), axis=0), goal2)
    mine = sums + band * S.IDS + ids
    if S.BANDS > 1:
        tl.store(mine, goal2)
        tl.store(mine + S.BANDS * S.IDS, unit)
    meet(counter, arrivals, S.BANDS)
    if S.BANDS > 1:
        bands: tl.constexpr = S.BANDS
        for other in tl.static_range(bands):
            unit = tl.maximum(unit, tl.load(sums + (S.BANDS + other) * S.IDS + ids))
        goal2 = tl.full([S.IDS], 0, tl.float32)
        for other in tl.static_range(bands):
            smaller = tl.load(sums + (S.BANDS + other) * S.IDS + ids) / unit
            goal2 += tl.load(sums + other * S.IDS + ids) * smaller * smaller
    return 1.0 / unit, goal2


@triton.jit
def tell_bands(value, told, row, ids, band, S: tl.constexpr):
    """Stores a band's part of a sum [IDS] in a row of told [6, BANDS, IDS]."""
    if S.BANDS > 1:
        tl.store(told + (row * S.BANDS + band) * S.IDS + ids, value)


@triton.jit
def over_bands(value, told, row, ids, S: tl.constexpr):
    """[IDS], the sum over all bands; value: this band's. All add up in the same order."""
    if S.BANDS == 1:
        return value
    else:
        total = tl.zeros_like(value)
        bands: tl.constexpr = S.BANDS
        for other in tl.static_range(bands):
            total += tl.load(told + (row * S.BANDS + other) * S.IDS + ids)
        return total


@triton.jit
def relative_step(step2, norm2, goal2):
    """||step|| / max(||x_new||, ||y||) of each image, [IDS]. Not a number and sums that overflow
    count as infinitely far, so a diverging image is never done."""
    relative = tl.sqrt(step2) / (tl.sqrt(tl.maximum(norm2, goal2)) + 1e-37)
    return tl.where((relative <= LARGEST) & (norm2 <= LARGEST), relative, float("inf"))


@triton.jit
def fitting_unit(per, goal2, norm2):
    """(per, goal2) in a larger unit where ||x_new||^2 overflowed."""
    fits = norm2 <= LARGEST
    return tl.where(fits, per, per * SMALLER), tl.where(fits, goal2, goal2 * SMALLER * SMALLER)


@triton.jit
def judge(step2, norm2, per, goal2, done, steps, last, iteration, tolerance):
    """The verdict of an iteration on each image: (per, goal2, done, steps, last), all [IDS].

    steps, last: how many iterations an image took, and its relative step in the last of them.
    """
    relative = relative_step(step2, norm2, goal2)
    per, goal2 = fitting_unit(per, goal2, norm2)
    last = tl.where(done != 0, last, relative)
    steps = tl.where(done != 0, steps, iteration)
    return per, goal2, tl.where(relative <= tolerance, 1, done), steps, last


@triton.jit
def report(iterations, residual, steps, last, first_image, count, block, blocks, ids):
    """How each image fared in a block into [batch, blocks]. Every band stores the same."""
    at = (first_image + ids).to(tl.int64) * blocks + block
    tl.store(iterations + at, steps, mask=ids < count)
    tl.store(residual + at, last, mask=ids < count)
