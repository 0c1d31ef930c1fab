"""Inversion: all blocks of a stage by fixed point in one launch, converging inside the kernel.

A program owns whole images, so it can tell by itself when they have converged: no grid-wide
synchronisation, and the host is never asked. Each image stops on its own and is frozen from then
on, so the answer does not depend on its neighbours in the tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import device_of, inner_scratch, interpreting, pixel_strides, programs_on
from .packing import PackedBlocks, padded_width
from .reference import ANDERSON_REGULARISATION
from .tiles import convolve, elu, hidden_pass, of_image, sum_per_image
from .tuning import StageTuning

# float32 scratch images per program: y and the last two G(x) = y - F(x) rotate through three;
# Anderson acceleration also keeps x (index 3) and the last two steps G(x) - x (4 and 5).
PLAIN_BUFFERS = 3
ANDERSON_BUFFERS = 6


@triton.jit
def copy_in(
    source, buffer, image_stride, pixel_stride, channel_stride, count,
    C: tl.constexpr, P: tl.constexpr, PIXELS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """buffer [IMAGES, PIXELS, C] float32 <- the images at `source`."""
    n = tl.arange(0, P)
    for start in range(0, IMAGES * PIXELS, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        image = m // PIXELS
        mask = (image < count)[:, None] & (n < C)[None, :]
        at = (image * image_stride + (m % PIXELS) * pixel_stride)[:, None]
        value = tl.load(source + at + n[None, :] * channel_stride, mask=mask, other=0.0)
        tl.store(buffer + m[:, None] * C + n[None, :], value.to(tl.float32), mask=mask)


@triton.jit
def copy_out(
    buffer, target, image_stride, pixel_stride, channel_stride, count,
    C: tl.constexpr, P: tl.constexpr, PIXELS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The images at `target` <- buffer [IMAGES, PIXELS, C] float32."""
    n = tl.arange(0, P)
    for start in range(0, IMAGES * PIXELS, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        image = m // PIXELS
        mask = (image < count)[:, None] & (n < C)[None, :]
        value = tl.load(buffer + m[:, None] * C + n[None, :], mask=mask, other=0.0)
        at = (image * image_stride + (m % PIXELS) * pixel_stride)[:, None]
        at += n[None, :] * channel_stride
        tl.store(target + at, value.to(target.dtype.element_ty), mask=mask)


@triton.jit
def activate(
    buffer, activated, begins_with_elu, count,
    C: tl.constexpr, PIXELS: tl.constexpr, IMAGES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """activated <- elu(buffer) or buffer, in the weights' dtype."""
    for start in range(0, IMAGES * PIXELS * C, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < count * PIXELS * C
        value = tl.load(buffer + at, mask=mask, other=0.0)
        value = tl.where(begins_with_elu, elu(value), value)
        tl.store(activated + at, value.to(activated.dtype.element_ty), mask=mask)


@triton.jit
def anderson_step(
    x, image, last_image, activated, mix, begins_with_elu, ids, count,
    C: tl.constexpr, P: tl.constexpr, PIXELS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """x <- image - mix (image - last_image), with one mix per image; activated follows x."""
    n = tl.arange(0, P)
    for start in range(0, IMAGES * PIXELS, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        mask = (m < count * PIXELS)[:, None] & (n < C)[None, :]
        at = m[:, None] * C + n[None, :]
        new = tl.load(image + at, mask=mask, other=0.0)
        old = tl.load(last_image + at, mask=mask, other=0.0)
        share = of_image(mix, m // PIXELS, ids)[:, None]
        # Not share * (new - old) where share is 0: the difference may be infinite.
        new = tl.where(share == 0.0, new, new - share * (new - old))
        tl.store(x + at, new, mask=mask)
        new = tl.where(begins_with_elu, elu(new), new)
        tl.store(activated + at, new.to(activated.dtype.element_ty), mask=mask)


@triton.jit
def invert_kernel(
    y, out, iterations, residual, buffers, activated, inner, hidden,
    w1, b1, w2, b2, w3, b3, leading, batch, blocks, tolerance, max_iter,
    y_image, y_pixel, y_channel, out_image, out_pixel, out_channel,
    C: tl.constexpr, P: tl.constexpr, HIDDEN: tl.constexpr, N: tl.constexpr,
    K1: tl.constexpr, K3: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    IMAGES: tl.constexpr, IDS: tl.constexpr, BUFFERS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K1: tl.constexpr, BLOCK_K3: tl.constexpr,
    ANDERSON: tl.constexpr, REGULARISATION: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out <- x with blocks(x) = y; iterations and residual [batch, blocks].

    Scratch per program: buffers [BUFFERS, IMAGES, H, W, C] float32, activated and hidden as in
    `stage_kernel`. IDS: IMAGES rounded up to a power of two.
    """
    PIXELS: tl.constexpr = H * W
    SIZE: tl.constexpr = IMAGES * PIXELS * C
    n = tl.arange(0, P)
    ids = tl.arange(0, IDS)
    program = tl.program_id(0).to(tl.int64)
    buffers += program * (BUFFERS * SIZE)
    activated += program * SIZE
    inner += program * (IMAGES * PIXELS * HIDDEN)
    hidden += program * (IMAGES * PIXELS * HIDDEN)
    for task in range(tl.program_id(0), tl.cdiv(batch, IMAGES), tl.num_programs(0)):
        first_image = task * IMAGES
        count = tl.minimum(batch - first_image, IMAGES)
        failed = (ids >= count).to(tl.int32)
        # Which of the buffers holds the right-hand side; x rotates through the others.
        given = task * 0
        copy_in(
            y + first_image.to(tl.int64) * y_image, buffers, y_image, y_pixel, y_channel, count,
            C, P, PIXELS, IMAGES, BLOCK_M,
        )  # fmt: skip
        tl.debug_barrier()
        for reverse in range(blocks):
            block = blocks - 1 - reverse
            begins_with_elu = tl.load(leading + block) != 0
            activate(
                buffers + given * SIZE, activated, begins_with_elu, count,
                C, PIXELS, IMAGES, BLOCK_M * P,
            )  # fmt: skip
            tl.debug_barrier()
            done = failed
            steps = tl.zeros([IDS], dtype=tl.int32)
            last = tl.zeros([IDS], dtype=tl.float32)
            latest = given
            last2 = tl.zeros([IDS], dtype=tl.float32)
            iteration = given * 0
            active = tl.sum(1 - done, axis=0)
            while (iteration < max_iter) & (active > 0):
                hidden_pass(
                    activated, PIXELS * C, C, 1, inner, hidden,
                    w1 + block * (K1 * N), b1 + block * N, w2 + block * (N * N), b2 + block * N,
                    count, 0,
                    C, HIDDEN, N, H, W, IMAGES, H, BLOCK_M, BLOCK_N, BLOCK_K1, BLOCK_K3,
                    False, PRECISION, UPCAST,
                )  # fmt: skip
                tl.debug_barrier()
                following = (given + 1 + iteration % 2) % 3
                current = latest
                if ANDERSON:
                    current = tl.where(iteration == 0, latest, 3)
                step2 = tl.zeros([IDS], dtype=tl.float32)
                norm2 = tl.zeros([IDS], dtype=tl.float32)
                goal2 = tl.zeros([IDS], dtype=tl.float32)
                secant = tl.zeros([IDS], dtype=tl.float32)
                secant2 = tl.zeros([IDS], dtype=tl.float32)
                for start in range(0, IMAGES * PIXELS, BLOCK_M):
                    m = start + tl.arange(0, BLOCK_M)
                    image = m // PIXELS
                    valid = image < count
                    bias = tl.load(b3 + block * P + n)
                    acc = tl.zeros([BLOCK_M, P], dtype=tl.float32) + bias[None, :]
                    acc = convolve(
                        acc, hidden, m * HIDDEN, (m // W) % H, m % W, valid, HIDDEN, 1,
                        w3 + block * (K3 * P),
                        HIDDEN, P, P, H, W, BLOCK_K3, False, PRECISION, UPCAST,
                    )  # fmt: skip
                    mask = valid[:, None] & (n < C)[None, :]
                    at = m[:, None] * C + n[None, :]
                    old = tl.load(buffers + current * SIZE + at, mask=mask, other=0.0)
                    goal = tl.load(buffers + given * SIZE + at, mask=mask, other=0.0)
                    new = tl.where(mask, goal - acc, 0.0)
                    step = new - old
                    step2 += sum_per_image(tl.sum(step * step, axis=1), image, ids)
                    norm2 += sum_per_image(tl.sum(new * new, axis=1), image, ids)
                    goal2 += sum_per_image(tl.sum(goal * goal, axis=1), image, ids)
                    frozen = (of_image(done, image, ids) != 0)[:, None]
                    if ANDERSON:
                        old = tl.load(buffers + latest * SIZE + at, mask=mask, other=0.0)
                        parity = iteration % 2
                        # A tile of iterations: the interpreter has no scalar mask.
                        seen = mask & (at * 0 + iteration > 0)
                        before = tl.load(buffers + (5 - parity) * SIZE + at, mask=seen, other=0.0)
                        tl.store(buffers + (4 + parity) * SIZE + at, step, mask=mask)
                        moved = step - before
                        secant += sum_per_image(tl.sum(step * moved, axis=1), image, ids)
                        secant2 += sum_per_image(tl.sum(moved * moved, axis=1), image, ids)
                    new = tl.where(frozen, old, new)
                    # Another buffer than `old`: a thread may store before its neighbour has read.
                    tl.store(buffers + following * SIZE + at, new, mask=mask)
                    if not ANDERSON:
                        new = tl.where(begins_with_elu, elu(new), new)
                        tl.store(activated + at, new.to(activated.dtype.element_ty), mask=mask)
                tl.debug_barrier()
                if ANDERSON:
                    mix = secant / (secant2 * (1.0 + REGULARISATION) + 1e-30)
                    # Safeguard: where the residual grew, the secant model is no good.
                    mix = tl.where((step2 <= last2) & (iteration > 0), mix, 0.0)
                    last2 = step2
                    anderson_step(
                        buffers + 3 * SIZE, buffers + following * SIZE, buffers + latest * SIZE,
                        activated, mix, begins_with_elu, ids, count,
                        C, P, PIXELS, IMAGES, BLOCK_M,
                    )  # fmt: skip
                    tl.debug_barrier()
                relative = tl.sqrt(step2) / (tl.sqrt(tl.maximum(norm2, goal2)) + 1e-12)
                # Not a number counts as infinitely far, so a diverging image is never done.
                relative = tl.where(relative <= 3.0e38, relative, float("inf"))
                iteration += 1
                last = tl.where(done != 0, last, relative)
                steps = tl.where(done != 0, steps, iteration)
                done = tl.where(relative <= tolerance, 1, done)
                active = tl.sum(1 - done, axis=0)
                latest = following
            at = (first_image + ids).to(tl.int64) * blocks + block
            tl.store(iterations + at, steps, mask=ids < count)
            tl.store(residual + at, last, mask=ids < count)
            # An image that failed here is not worth iterating on in the blocks before.
            failed = tl.where(done != 0, failed, 1)
            given = latest
        copy_out(
            buffers + given * SIZE, out + first_image.to(tl.int64) * out_image,
            out_image, out_pixel, out_channel, count, C, P, PIXELS, IMAGES, BLOCK_M,
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
    batch, channels, height, width = y.shape
    programs = programs_on(y.device, -(-batch // tuning.images))
    weights = packed.w1.dtype
    pixels = programs * tuning.images * height * width
    count = ANDERSON_BUFFERS if anderson else PLAIN_BUFFERS
    buffers = torch.empty(count * pixels * channels, dtype=torch.float32, device=y.device)
    activated = torch.empty(pixels * channels, dtype=weights, device=y.device)
    hidden = torch.empty(pixels * packed.hidden, dtype=weights, device=y.device)
    inner = inner_scratch(hidden, packed, tuning)
    with device_of(y):
        invert_kernel[(programs,)](
            y, out, iterations, residual, buffers, activated, inner, hidden,
            packed.w1, packed.b1, packed.w2, packed.b2, packed.w3, packed.b3, packed.leading,
            batch, len(packed), tolerance, max_iter, *pixel_strides(y), *pixel_strides(out),
            C=channels, P=padded_width(channels), HIDDEN=packed.hidden,
            N=padded_width(packed.hidden), K1=packed.w1.shape[1], K3=packed.w3.shape[1],
            H=height, W=width, IMAGES=tuning.images, IDS=triton.next_power_of_2(tuning.images),
            BUFFERS=count, BLOCK_M=tuning.block_m, BLOCK_N=tuning.block_n, BLOCK_K1=tuning.block_k1,
            BLOCK_K3=tuning.block_k3, ANDERSON=anderson,
            REGULARISATION=ANDERSON_REGULARISATION, PRECISION=tuning.precision,
            UPCAST=interpreting() and weights == torch.bfloat16,
            num_warps=tuning.num_warps, num_stages=tuning.num_stages,
        )  # fmt: skip
