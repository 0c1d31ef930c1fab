"""Device functions shared by the kernels: the two passes of a residual branch, and their helpers.

A 3x3 convolution of many channels to few is cheaper the other way round: multiply every pixel by
all nine taps' weights at once (columns tap * C + c), then add up, at each pixel, what its nine
neighbours have for it. So the hidden layers stay in the program's registers, and the only thing
that goes through memory is 9 C partial products a pixel.

Layouts: activations [PARTS, pixels, CP], channels fastest and padded to a power of two, so that a
gather of im2col columns loads vectors; images and partial products [C or 9 C, pixels], pixels
fastest, so that sums over neighbours are coalesced.

Operands of products are 16 bits wide. A float32 operand is the sum of three bfloat16 parts, eight
bits of mantissa each, and its product the six products of parts that matter (the other three are
below 2^-24 of it): as accurate as float32, at the arithmetic cost of three TF32 products.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def elu(value, PARTS: tl.constexpr, INTERPRETED: tl.constexpr):
    """In float32: value above zero, exp(value) - 1 below.

    Near zero that difference would cancel. Where operands are rounded to 16 bits (PARTS = 1), value
    stands for it above -2^-10, which is within 2^-11 of it, half a last place of float16. For
    float32 a Taylor polynomial of degree 6 does above -1/4, which leaves 5e-8 of the value. What is
    computed above zero and not taken may overflow.
    """
    if INTERPRETED:
        value_below = tl.where(value > 0, 0.0, value)  # NumPy would warn of an overflow
        power = tl.exp2(value_below * 1.4426950408889634)
    else:
        # One instruction: the compiler's own guards against denormals, which the subtraction of
        # one drowns anyway.
        value_below = value
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [value * 1.4426950408889634],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    if PARTS == 1:
        return tl.where(value > -0.0009765625, value, power - 1.0)
    tail = 1.0 / 24 + value_below * (1.0 / 120 + value_below * (1.0 / 720))
    series = 1.0 + value_below * (0.5 + value_below * (1.0 / 6 + value_below * tail))
    below = tl.where(value > -0.25, value_below * series, power - 1.0)
    return tl.where(value > 0, value, below)


@triton.jit
def multiply(a, b, acc, INTERPRETED: tl.constexpr):
    """acc + a @ b in float32. The interpreter cannot multiply bfloat16 operands."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def multiply_parts(
    a, a1, a2, b, b1, b2, acc, PROMOTE: tl.constexpr, INTERPRETED: tl.constexpr
):  # fmt: skip
    """acc + (a + a1 + a2) @ (b + b1 + b2), the smallest products first.

    With PROMOTE they are added up from zero, and acc once in float32. A tensor core cuts off each
    sum that it makes: with acc in it six times for every step along k, F of 48@8x8/128 is off by
    3e-6 where this way it is off by 1.7e-7 (emulated, tests/kernels/test_tensor_core.py).
    """
    products = multiply(a2, b, tl.zeros_like(acc) if PROMOTE else acc, INTERPRETED)
    products = multiply(a, b2, products, INTERPRETED)
    products = multiply(a1, b1, products, INTERPRETED)
    products = multiply(a1, b, products, INTERPRETED)
    products = multiply(a, b1, products, INTERPRETED)
    products = multiply(a, b, products, INTERPRETED)
    return acc + products if PROMOTE else products


@triton.jit
def lesser_parts(value, first):
    """The second and third bfloat16 part of a float32 value whose first is given."""
    rest = value - first.to(tl.float32)
    second = rest.to(first.dtype)
    return second, (rest - second.to(tl.float32)).to(first.dtype)


@triton.jit
def multiply_layer(
    layer, weight, acc, PLANE: tl.constexpr, PARTS: tl.constexpr, INTERPRETED: tl.constexpr
):
    """acc + layer @ weight. layer: float32; weight: pointers to its first part, PLANE apart."""
    if PARTS == 1:
        b = tl.load(weight)
        return multiply(layer.to(b.dtype), b, acc, INTERPRETED)
    else:
        # One part of the weights at a time: all three would not fit into registers.
        b2 = tl.load(weight + 2 * PLANE)
        a = layer.to(b2.dtype)
        a1, a2 = lesser_parts(layer, a)
        acc = multiply(a, b2, acc, INTERPRETED)
        b1 = tl.load(weight + PLANE)
        acc = multiply(a1, b1, acc, INTERPRETED)
        acc = multiply(a, b1, acc, INTERPRETED)
        b = tl.load(weight)
        acc = multiply(a2, b, acc, INTERPRETED)
        acc = multiply(a1, b, acc, INTERPRETED)
        return multiply(a, b, acc, INTERPRETED)


@triton.jit
def of_image(table, image, ids):
    """The entry of one image in a per-image table [IDS]."""
    return tl.sum(tl.where(ids == image, table, 0), axis=0)


@triton.jit
def hidden_zero(index, count, S: tl.constexpr):
    """0, since 0 <= index < count, but not to the compiler where a loop has few tiles: it would
    compute their places and masks before the loops around, and spill them."""
    if S.STRIDE // S.BLOCK_M > 4:
        return 0
    else:
        return tl.multiple_of(index // count, S.BLOCK_M * S.BLOCK)


@triton.jit
def meet(counter, arrivals, PROGRAMS: tl.constexpr):
    """Waits for all threads of this program, and of the others where PROGRAMS share an image;
    whatever was stored before is then visible to all. arrivals: of all programs so far, and now.
    """
    tl.debug_barrier()
    if PROGRAMS > 1:
        tl.atomic_add(counter, 1, sem="release")
        while tl.atomic_add(counter, 0, sem="acquire") < arrivals:
            pass
        tl.debug_barrier()


@triton.jit
def leave(counter, arrivals, PROGRAMS: tl.constexpr):
    """The last of PROGRAMS to come here, which all have met for the last time, sets the counter
    back to zero, as the next launch needs it."""
    if PROGRAMS > 1:
        tl.debug_barrier()
        if tl.atomic_add(counter, 1, sem="acq_rel") == arrivals + PROGRAMS - 1:
            tl.store(counter, 0)


@triton.jit
def convolve(acc, source, offset, row, col, valid, weight, S: tl.constexpr):
    """acc [BLOCK_M, N] + the 3x3 convolution of activations [PARTS, pixels, CP] at some pixels.

    offset, row, col, valid: [BLOCK_M], the pixels' offsets in `source`, positions, existence.
    weight: [PARTS, K1, N], K1 = 9 CP padded, channels fastest within a tap.
    """
    n = tl.arange(0, S.N)
    for start in range(0, 9 * S.CP, S.BLOCK_K):
        k = start + tl.arange(0, S.BLOCK_K)
        tap = k // S.CP
        down = tap // 3 - 1
        right = tap % 3 - 1
        below = row[:, None] + down[None, :]
        beside = col[:, None] + right[None, :]
        inside = (
            valid[:, None] & (k < 9 * S.CP)[None, :]
            & (below >= 0) & (below < S.H) & (beside >= 0) & (beside < S.W)
        )  # fmt: skip
        shift = (down * S.W + right) * S.CP + k % S.CP
        at = source + offset[:, None] + shift[None, :]
        a = tl.load(at, mask=inside, other=0.0)
        columns = weight + k[:, None] * S.N + n[None, :]
        b = tl.load(columns)
        if S.PARTS == 3:
            a1 = tl.load(at + S.PLANE, mask=inside, other=0.0)
            a2 = tl.load(at + 2 * S.PLANE, mask=inside, other=0.0)
            b1 = tl.load(columns + S.K1 * S.N)
            b2 = tl.load(columns + 2 * S.K1 * S.N)
            acc = multiply_parts(a, a1, a2, b, b1, b2, acc, S.PROMOTE, S.INTERPRETED)
        else:
            acc = multiply(a, b, acc, S.INTERPRETED)
    return acc


@triton.jit
def multiply_rows(acc, rows, weight, S: tl.constexpr):
    """acc [BLOCK_M, N] + rows @ weight [N, N], both in three parts; rows: pointers [BLOCK_M]."""
    n = tl.arange(0, S.N)
    plane: tl.constexpr = S.BLOCK_M * S.N
    for start in range(0, S.N, S.BLOCK_K):
        k = start + tl.arange(0, S.BLOCK_K)
        at = rows[:, None] + k[None, :]
        a, a1, a2 = tl.load(at), tl.load(at + plane), tl.load(at + 2 * plane)
        columns = weight + k[:, None] * S.N + n[None, :]
        b = tl.load(columns)
        b1, b2 = tl.load(columns + S.N * S.N), tl.load(columns + 2 * S.N * S.N)
        acc = multiply_parts(a, a1, a2, b, b1, b2, acc, S.PROMOTE, S.INTERPRETED)
    return acc


@triton.jit
def branch_products(
    activated, partial, inner, weights, block, count, first_row, origin, S: tl.constexpr
):
    """partial <- W3[tap] elu(W2 elu(W1 * a + b1) + b2) of a block, for every pixel of LOCAL rows
    and every tap.

    activated: [PARTS, IMAGES, H, W, CP]. partial: [9 C, STRIDE] float32; what is stored for pixels
    outside the image is never read. inner: [PARTS, BLOCK_M, N], used for hidden layers in three
    parts, which would not fit into registers beside the next weights. weights: (w1, b1, w2, b2, w3,
    b3) of all blocks. origin: `hidden_zero`.
    """
    w1, b1, w2, b2, w3, _ = weights
    w1 += block * (S.PARTS * S.K1 * S.N)
    w2 += block * (S.PARTS * S.N * S.N)
    w3 += block * (S.PARTS * S.N * S.N3)
    k = tl.arange(0, S.N)
    for start in range(origin, S.IMAGES * S.LOCAL * S.W, S.BLOCK_M):
        m = start + tl.arange(0, S.BLOCK_M)
        image = m // (S.LOCAL * S.W)
        row = first_row - S.HALO + (m // S.W) % S.LOCAL
        col = m % S.W
        valid = (image < count) & (row >= 0) & (row < S.H)
        offset = (image * S.PIXELS + row * S.W + col) * S.CP
        acc = tl.full([S.BLOCK_M, S.N], 0, tl.float32) + tl.load(b1 + block * S.N + k)[None, :]
        acc = convolve(acc, activated, offset, row, col, valid, w1, S)
        layer = elu(acc, S.PARTS, S.INTERPRETED)
        acc = tl.full([S.BLOCK_M, S.N], 0, tl.float32) + tl.load(b2 + block * S.N + k)[None, :]
        if S.PARTS == 3 and S.N > 32:  # narrower ones do fit
            rows = inner + (m - start) * S.N
            places = rows[:, None] + k[None, :]
            first = layer.to(w2.dtype.element_ty)
            second, third = lesser_parts(layer, first)
            tl.store(places, first)
            tl.store(places + S.BLOCK_M * S.N, second)
            tl.store(places + 2 * S.BLOCK_M * S.N, third)
            tl.debug_barrier()
            acc = multiply_rows(acc, rows, w2, S)
            tl.debug_barrier()
        else:
            square = w2 + k[:, None] * S.N + k[None, :]
            acc = multiply_layer(layer, square, acc, S.N * S.N, S.PARTS, S.INTERPRETED)
        layer = elu(acc, S.PARTS, S.INTERPRETED)
        for begin in range(0, 9 * S.C, S.BLOCK_N):
            n = begin + tl.arange(0, S.BLOCK_N)
            weight = w3 + k[:, None] * S.N3 + n[None, :]
            products = tl.full([S.BLOCK_M, S.BLOCK_N], 0, tl.float32)
            products = multiply_layer(
                layer, weight, products, S.N * S.N3, S.PARTS, S.INTERPRETED
            )  # fmt: skip
            at = n[None, :] * S.STRIDE + m[:, None]
            tl.store(partial + at, products, mask=(n < 9 * S.C)[None, :])


@triton.jit
def branch_sums(partial, bias, image, local, row, col, valid, S: tl.constexpr):
    """F(x) at BLOCK pixels, [BLOCK, CP]: what their neighbours hold for them, added up.

    bias: the block's [C]. local, row, col, valid: [BLOCK], the pixels' places in the band,
    positions, existence.
    """
    c = tl.arange(0, S.CP)
    q = (image * S.LOCAL + S.HALO) * S.W + local
    value = tl.load(bias + c, mask=c < S.C, other=0.0)
    acc = tl.full([S.BLOCK, S.CP], 0, tl.float32) + value[None, :]
    for tap in tl.static_range(9):
        down = tap // 3 - 1
        right = tap % 3 - 1
        inside = (
            valid
            & (row + down >= 0) & (row + down < S.H)
            & (col + right >= 0) & (col + right < S.W)
        )  # fmt: skip
        at = (tap * S.C + c)[None, :] * S.STRIDE + (q + (down * S.W + right))[:, None]
        acc += tl.load(partial + at, mask=inside[:, None] & (c < S.C)[None, :], other=0.0)
    return acc


@triton.jit
def activate(value, activated, image, pixel, mask, begins_with_elu, S: tl.constexpr):
    """activated [PARTS, IMAGES, H, W, CP] <- the parts of elu(value), or of value [BLOCK, CP],
    whose padded channels are zero, at some pixels of an image. mask: [BLOCK, 1]."""
    c = tl.arange(0, S.CP)
    value = tl.where(begins_with_elu, elu(value, S.PARTS, S.INTERPRETED), value)
    at = image * (S.PIXELS * S.CP) + (pixel * S.CP)[:, None] + c[None, :]
    first = value.to(activated.dtype.element_ty)
    tl.store(activated + at, first, mask=mask)
    if S.PARTS == 3:
        second, third = lesser_parts(value, first)
        tl.store(activated + S.PLANE + at, second, mask=mask)
        tl.store(activated + 2 * S.PLANE + at, third, mask=mask)


@triton.jit
def band_pixels(first_row, start, S: tl.constexpr):
    """(place in the band, place in the image, existence) of BLOCK pixels from `start`."""
    local = start + tl.arange(0, S.BLOCK)
    pixel = first_row * S.W + local
    return local, pixel, (local < S.ROWS * S.W) & (pixel < S.PIXELS)
