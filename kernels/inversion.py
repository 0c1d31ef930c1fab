"""Inversion: all blocks of a stage by fixed point in one launch, converging inside the kernel.

A program owns whole images, so it can tell by itself when they have converged, and the host is
never asked. Each image stops on its own and is frozen from then on, so the answer does not depend
on its neighbours in the tile. Where a batch is too small to fill the card, several programs share
an image, each a band of rows; they meet once per iteration and come to the same verdict, since
all add up the same partial sums in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import allocate, device_of, launch_options, pixel_strides, tile_constants
from .packing import PackedBlocks
from .reference import ANDERSON_REGULARISATION
from .tiles import activate, branch_products, branch_sums, hidden_zero, meet, of_image
from .tuning import StageTuning

# float32 scratch images: y and the last two G(x) = y - F(x) rotate through three; Anderson
# acceleration also keeps x (index 3) and the last two steps G(x) - x (4 and 5).
PLAIN_BUFFERS = 3
ANDERSON_BUFFERS = 6
# Bands tell each other ||y||^2 and up to four sums of an iteration, in turns in two places.
SUMS = 10


@triton.jit
def copy_rows(
    source, source_pixel, source_channel, target, target_pixel, target_channel, first_row, origin,
    C: tl.constexpr, CP: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one image from one layout, given by strides, and dtype to another."""
    c = tl.arange(0, CP)
    for start in range(origin, ROWS * W, BLOCK):
        local = start + tl.arange(0, BLOCK)
        pixel = first_row * W + local
        mask = ((local < ROWS * W) & (pixel < H * W))[:, None] & (c < C)[None, :]
        at = (pixel * source_pixel)[:, None] + c[None, :] * source_channel
        value = tl.load(source + at, mask=mask, other=0.0)
        at = (pixel * target_pixel)[:, None] + c[None, :] * target_channel
        tl.store(target + at, value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def begin_block(
    images, activated, begins_with_elu, ids, count, first_row, origin,
    C: tl.constexpr, CP: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    IMAGES: tl.constexpr, IDS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """activated <- elu(y) or y, in parts; returns ||y||^2 of each image, [IDS]."""
    c = tl.arange(0, CP)
    goal2 = tl.zeros([IDS], dtype=tl.float32)
    for image in range(count):
        total = tl.zeros([BLOCK, CP], dtype=tl.float32)
        for start in range(origin, ROWS * W, BLOCK):
            local = start + tl.arange(0, BLOCK)
            pixel = first_row * W + local
            valid = ((local < ROWS * W) & (pixel < H * W))[:, None]
            at = pixel[:, None] + (image * C + c)[None, :] * (H * W)
            value = tl.load(images + at, mask=valid & (c < C)[None, :], other=0.0)
            total += value * value
            activate(
                value, activated + image * (H * W * CP), pixel, valid, begins_with_elu,
                IMAGES * H * W * CP, CP, PARTS, INTERPRETED,
            )  # fmt: skip
        goal2 = tl.where(ids == image, tl.sum(tl.sum(total, axis=1), axis=0), goal2)
    return goal2


@triton.jit
def anderson_step(
    x, image_of_x, last_image, activated, mix, begins_with_elu, ids, count, first_row, origin,
    C: tl.constexpr, CP: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    PARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """x <- G(x) - mix (G(x) - last G(x)), with one mix per image; activated follows x."""
    c = tl.arange(0, CP)
    for image in range(count):
        share = of_image(mix, image, ids)
        for start in range(origin, ROWS * W, BLOCK):
            local = start + tl.arange(0, BLOCK)
            pixel = first_row * W + local
            valid = ((local < ROWS * W) & (pixel < H * W))[:, None]
            mask = valid & (c < C)[None, :]
            at = pixel[:, None] + (image * C + c)[None, :] * (H * W)
            new = tl.load(image_of_x + at, mask=mask, other=0.0)
            old = tl.load(last_image + at, mask=mask, other=0.0)
            # Not share * (new - old) where share is 0: the difference may be infinite.
            new = tl.where(share == 0.0, new, new - share * (new - old))
            tl.store(x + at, new, mask=mask)
            activate(
                new, activated + image * (H * W * CP), pixel, valid, begins_with_elu,
                IMAGES * H * W * CP, CP, PARTS, INTERPRETED,
            )  # fmt: skip


@triton.jit
def over_bands(value, sums, ids, BANDS: tl.constexpr, IDS: tl.constexpr):
    """[IDS], the sums of all bands, each of which has stored its own in sums [BANDS, IDS]."""
    if BANDS == 1:
        return value
    else:
        total = tl.zeros_like(value)
        for other in tl.static_range(BANDS):
            total += tl.load(sums + other * IDS + ids)
        return total


@triton.jit
def invert_kernel(
    y, out, iterations, residual, images, activated, partial, inner, counters, sums,
    w1, b1, w2, b2, w3, b3, leading, batch, blocks, tolerance, max_iter,
    y_image, y_pixel, y_channel, out_image, out_pixel, out_channel,
    C: tl.constexpr, CP: tl.constexpr, N: tl.constexpr, K1: tl.constexpr, N3: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, IMAGES: tl.constexpr, BANDS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    IDS: tl.constexpr, BUFFERS: tl.constexpr, ANDERSON: tl.constexpr, REGULARISATION: tl.constexpr,
    PARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out <- x with blocks(x) = y; iterations and residual [batch, blocks].

    Scratch: `launch.allocate` says what of which size; sums: [groups, 2, 5, BANDS, IDS]
    float32. IDS: IMAGES rounded up to a power of two.
    """
    PIXELS: tl.constexpr = H * W
    ROWS: tl.constexpr = (H + BANDS - 1) // BANDS
    HALO: tl.constexpr = 1 if BANDS > 1 else 0
    LOCAL: tl.constexpr = ROWS + 2 * HALO
    STRIDE: tl.constexpr = (IMAGES * LOCAL * W + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    SIZE: tl.constexpr = IMAGES * C * PIXELS
    PLANE: tl.constexpr = IMAGES * PIXELS * CP
    c = tl.arange(0, CP)
    ids = tl.arange(0, IDS)
    program = tl.program_id(0).to(tl.int64)
    partial += program * (9 * C * STRIDE)
    inner += program * (PARTS * BLOCK_M * N)
    group = program // BANDS
    images += group * (BUFFERS * SIZE)
    activated += group * (2 * PARTS * PLANE)
    sums += group * (10 * BANDS * IDS)
    band = tl.program_id(0) % BANDS
    first_row = band * ROWS
    arrivals = 0
    for task in range(
        tl.program_id(0) // BANDS, tl.cdiv(batch, IMAGES), tl.num_programs(0) // BANDS
    ):
        first_image = task * IMAGES
        count = tl.minimum(batch - first_image, IMAGES)
        origin = hidden_zero(first_image, batch, STRIDE // BLOCK_M, BLOCK_M * BLOCK)
        failed = (ids >= count).to(tl.int32)
        # Which of the buffers holds the right-hand side; x rotates through the others.
        given = task * 0
        for image in range(count):
            copy_rows(
                y + (first_image + image).to(tl.int64) * y_image, y_pixel, y_channel,
                images + image * (C * PIXELS), 1, PIXELS,
                first_row, origin, C, CP, H, W, ROWS, BLOCK,
            )  # fmt: skip
        tl.debug_barrier()
        for reverse in range(blocks):
            block = blocks - 1 - reverse
            begins_with_elu = tl.load(leading + block) != 0
            # Which half of `activated` and of `sums` is read next; the other is written meanwhile.
            turn = task * 0
            goal2 = begin_block(
                images + given * SIZE, activated, begins_with_elu, ids, count, first_row, origin,
                C, CP, H, W, IMAGES, IDS, ROWS, BLOCK, PARTS, INTERPRETED,
            )  # fmt: skip
            if BANDS > 1:
                tl.store(sums + band * IDS + ids, goal2)
            arrivals += BANDS
            meet(counters + group, arrivals, BANDS)
            goal2 = over_bands(goal2, sums, ids, BANDS, IDS)
            done = failed
            steps = tl.zeros([IDS], dtype=tl.int32)
            last = tl.zeros([IDS], dtype=tl.float32)
            last2 = tl.zeros([IDS], dtype=tl.float32)
            latest = given
            iteration = task * 0
            active = tl.sum(1 - done, axis=0)
            while (iteration < max_iter) & (active > 0):
                origin = hidden_zero(iteration, max_iter, STRIDE // BLOCK_M, BLOCK_M * BLOCK)
                branch_products(
                    activated + turn * (PARTS * PLANE), partial, inner,
                    w1 + block * (PARTS * K1 * N), b1 + block * N, w2 + block * (PARTS * N * N),
                    b2 + block * N, w3 + block * (PARTS * N * N3), count, first_row - HALO, origin,
                    C, CP, N, K1, N3, H, W, IMAGES, LOCAL, BLOCK_M, BLOCK_N, BLOCK_K,
                    PARTS, INTERPRETED,
                )  # fmt: skip
                tl.debug_barrier()
                turn = 1 - turn
                following = (given + 1 + iteration % 2) % 3
                current = latest
                if ANDERSON:
                    current = tl.where(iteration == 0, latest, 3)
                step2 = tl.zeros([IDS], dtype=tl.float32)
                norm2 = tl.zeros([IDS], dtype=tl.float32)
                if ANDERSON:
                    secant = tl.zeros([IDS], dtype=tl.float32)
                    moved2 = tl.zeros([IDS], dtype=tl.float32)
                for image in range(count):
                    frozen = of_image(done, image, ids) != 0
                    step_tile = tl.zeros([BLOCK, CP], dtype=tl.float32)
                    norm_tile = tl.zeros([BLOCK, CP], dtype=tl.float32)
                    if ANDERSON:
                        secant_tile = tl.zeros([BLOCK, CP], dtype=tl.float32)
                        moved_tile = tl.zeros([BLOCK, CP], dtype=tl.float32)
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
                        old = tl.load(images + current * SIZE + at, mask=mask, other=0.0)
                        goal = tl.load(images + given * SIZE + at, mask=mask, other=0.0)
                        new = tl.where(mask, goal - branch, 0.0)
                        step = new - old
                        step_tile += step * step
                        norm_tile += new * new
                        if ANDERSON:
                            old = tl.load(images + latest * SIZE + at, mask=mask, other=0.0)
                            parity = iteration % 2
                            # A tile of iterations: the interpreter has no scalar mask.
                            seen = mask & (at * 0 + iteration > 0)
                            kept = images + (5 - parity) * SIZE
                            moved = step - tl.load(kept + at, mask=seen, other=0.0)
                            tl.store(images + (4 + parity) * SIZE + at, step, mask=mask)
                            secant_tile += step * moved
                            moved_tile += moved * moved
                        new = tl.where(frozen, old, new)
                        # Never where `old` came from: a thread may store before another reads.
                        tl.store(images + following * SIZE + at, new, mask=mask)
                        if not ANDERSON:
                            other = activated + turn * (PARTS * PLANE)
                            activate(
                                new, other + image * (PIXELS * CP), pixel, valid, begins_with_elu,
                                PLANE, CP, PARTS, INTERPRETED,
                            )  # fmt: skip
                    here = ids == image
                    step2 = tl.where(here, tl.sum(tl.sum(step_tile, axis=1), axis=0), step2)
                    norm2 = tl.where(here, tl.sum(tl.sum(norm_tile, axis=1), axis=0), norm2)
                    if ANDERSON:
                        secant = tl.where(here, tl.sum(tl.sum(secant_tile, axis=1), axis=0), secant)
                        moved2 = tl.where(here, tl.sum(tl.sum(moved_tile, axis=1), axis=0), moved2)
                told = sums + turn * (5 * BANDS * IDS)
                if BANDS > 1:
                    mine = told + band * IDS + ids
                    tl.store(mine + 1 * BANDS * IDS, step2)
                    tl.store(mine + 2 * BANDS * IDS, norm2)
                    if ANDERSON:
                        tl.store(mine + 3 * BANDS * IDS, secant)
                        tl.store(mine + 4 * BANDS * IDS, moved2)
                arrivals += BANDS
                meet(counters + group, arrivals, BANDS)
                step2 = over_bands(step2, told + 1 * BANDS * IDS, ids, BANDS, IDS)
                norm2 = over_bands(norm2, told + 2 * BANDS * IDS, ids, BANDS, IDS)
                if ANDERSON:
                    secant = over_bands(secant, told + 3 * BANDS * IDS, ids, BANDS, IDS)
                    moved2 = over_bands(moved2, told + 4 * BANDS * IDS, ids, BANDS, IDS)
                    mix = secant / (moved2 * (1.0 + REGULARISATION) + 1e-30)
                    # Safeguard: where the residual grew, the secant model is no good.
                    mix = tl.where((step2 <= last2) & (iteration > 0), mix, 0.0)
                    last2 = step2
                    anderson_step(
                        images + 3 * SIZE, images + following * SIZE, images + latest * SIZE,
                        activated + turn * (PARTS * PLANE), mix, begins_with_elu, ids, count,
                        first_row, origin, C, CP, H, W, IMAGES, ROWS, BLOCK, PARTS, INTERPRETED,
                    )  # fmt: skip
                    arrivals += BANDS
                    meet(counters + group, arrivals, BANDS)
                relative = tl.sqrt(step2) / (tl.sqrt(tl.maximum(norm2, goal2)) + 1e-12)
                # Not a number counts as infinitely far, so a diverging image is never done.
                relative = tl.where(relative <= 3.0e38, relative, float("inf"))
                iteration += 1
                last = tl.where(done != 0, last, relative)
                steps = tl.where(done != 0, steps, iteration)
                done = tl.where(relative <= tolerance, 1, done)
                active = tl.sum(1 - done, axis=0)
                latest = following
            # Every band has the same verdict and stores the same.
            at = (first_image + ids).to(tl.int64) * blocks + block
            tl.store(iterations + at, steps, mask=ids < count)
            tl.store(residual + at, last, mask=ids < count)
            # An image that failed here is not worth iterating on in the blocks before.
            failed = tl.where(done != 0, failed, 1)
            given = latest
        for image in range(count):
            copy_rows(
                images + given * SIZE + image * (C * PIXELS), 1, PIXELS,
                out + (first_image + image).to(tl.int64) * out_image, out_pixel, out_channel,
                first_row, origin, C, CP, H, W, ROWS, BLOCK,
            )  # fmt: skip
        # The next task overwrites this scratch.
        tl.debug_barrier()


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
    """Writes x with blocks(x) = y into out, and how each image fared in each block.

    Args:
        y, out: [B, C, H, W] with one stride for pixels.
        iterations, residual: [B, blocks], int32 and float32, contiguous.
        packed: the blocks, in forward order.
        tolerance: relative step at which an image is done with a block.
        max_iter: iterations an image may spend on one block.
        anderson: accelerate (depth 1).
        tuning: tile and warps.
    """
    ids = triton.next_power_of_2(tuning.images)
    buffers = ANDERSON_BUFFERS if anderson else PLAIN_BUFFERS
    programs, scratch = allocate(y, packed, tuning, images=buffers, sums=SUMS)
    with device_of(y):
        invert_kernel[(programs,)](
            y, out, iterations, residual, *scratch,
            packed.w1, packed.b1, packed.w2, packed.b2, packed.w3, packed.b3, packed.leading,
            y.shape[0], len(packed), tolerance, max_iter, *pixel_strides(y), *pixel_strides(out),
            **tile_constants(packed.stage(y), y.dtype, tuning),
            IDS=ids, BUFFERS=buffers, ANDERSON=anderson, REGULARISATION=ANDERSON_REGULARISATION,
            **launch_options(y, tuning),
        )  # fmt: skip
