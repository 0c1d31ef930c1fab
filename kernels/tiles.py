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
def elu(value, INTERPRETED: tl.constexpr):
    """In float32. exp2 as one instruction: the compiler's own guards against denormals, which the
    subtraction of one drowns anyway; above zero it may overflow, and is not taken."""
    if INTERPRETED:
        below = tl.exp(tl.minimum(value, 0.0))
    else:
        below = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [value * 1.4426950408889634],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return tl.where(value > 0, value, below - 1.0)


@triton.jit
def multiply(a, b, acc, INTERPRETED: tl.constexpr):
    """acc + a @ b in float32. The interpreter cannot multiply bfloat16 operands."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc)


@triton.jit
def multiply_parts(a, a1, a2, b, b1, b2, acc, INTERPRETED: tl.constexpr):
    """acc + (a + a1 + a2) @ (b + b1 + b2), the smallest products first."""
    acc = multiply(a2, b, acc, INTERPRETED)
    acc = multiply(a, b2, acc, INTERPRETED)
    acc = multiply(a1, b1, acc, INTERPRETED)
    acc = multiply(a1, b, acc, INTERPRETED)
    acc = multiply(a, b1, acc, INTERPRETED)
    return multiply(a, b, acc, INTERPRETED)


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
def hidden_zero(index, count, TILES: tl.constexpr, UNIT: tl.constexpr):
    """0, since 0 <= index < count, but not to the compiler where a loop has few tiles: it would
    compute their places and masks before the loops around, and spill them."""
    if TILES > 4:
        return 0
    else:
        return tl.multiple_of(index // count, UNIT)


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
def convolve(
    acc, source, offset, row, col, valid, weight, SOURCE_PLANE: tl.constexpr,
    CP: tl.constexpr, N: tl.constexpr, K1: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    BLOCK_K: tl.constexpr, PARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_M, N] + the 3x3 convolution of activations [PARTS, pixels, CP] at some pixels.

    offset, row, col, valid: [BLOCK_M], the pixels' offsets in `source`, positions, existence.
    weight: [PARTS, K1, N], K1 = 9 CP padded, channels fastest within a tap.
    """
    n = tl.arange(0, N)
    for start in range(0, 9 * CP, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        tap = k // CP
        down = tap // 3 - 1
        right = tap % 3 - 1
        below = row[:, None] + down[None, :]
        beside = col[:, None] + right[None, :]
        inside = (
            valid[:, None] & (k < 9 * CP)[None, :]
            & (below >= 0) & (below < H) & (beside >= 0) & (beside < W)
        )  # fmt: skip
        shift = (down * W + right) * CP + k % CP
        at = source + offset[:, None] + shift[None, :]
        a = tl.load(at, mask=inside, other=0.0)
        columns = weight + k[:, None] * N + n[None, :]
        b = tl.load(columns)
        if PARTS == 3:
            a1 = tl.load(at + SOURCE_PLANE, mask=inside, other=0.0)
            a2 = tl.load(at + 2 * SOURCE_PLANE, mask=inside, other=0.0)
            b1 = tl.load(columns + K1 * N)
            b2 = tl.load(columns + 2 * K1 * N)
            acc = multiply_parts(a, a1, a2, b, b1, b2, acc, INTERPRETED)
        else:
            acc = multiply(a, b, acc, INTERPRETED)
    return acc


@triton.jit
def multiply_rows(
    acc, rows, weight, ROWS_PLANE: tl.constexpr,
    N: tl.constexpr, BLOCK_K: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_M, N] + rows @ weight [N, N], both in three parts; rows: pointers [BLOCK_M]."""
    n = tl.arange(0, N)
    for start in range(0, N, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        at = rows[:, None] + k[None, :]
        a, a1, a2 = tl.load(at), tl.load(at + ROWS_PLANE), tl.load(at + 2 * ROWS_PLANE)
        columns = weight + k[:, None] * N + n[None, :]
        b, b1, b2 = tl.load(columns), tl.load(columns + N * N), tl.load(columns + 2 * N * N)
        acc = multiply_parts(a, a1, a2, b, b1, b2, acc, INTERPRETED)
    return acc


@triton.jit
def branch_products(
    activated, partial, inner, w1, b1, w2, b2, w3, count, first_row, origin,
    C: tl.constexpr, CP: tl.constexpr, N: tl.constexpr, K1: tl.constexpr, N3: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """partial <- W3[tap] elu(W2 elu(W1 * a + b1) + b2) for every pixel of ROWS rows and every tap.

    activated: [PARTS, IMAGES, H, W, CP]. partial: [9 C, IMAGES ROWS W padded to BLOCK_M] float32;
    what is stored for pixels outside the image is never read. inner: [PARTS, BLOCK_M, N], used for
    hidden layers in three parts, which would not fit into registers beside the next weights.
    origin: `hidden_zero`. BLOCK_K: rows of the first convolution's weights, BLOCK_N: columns of
    the last one's, that are multiplied at a time.
    """
    TOTAL: tl.constexpr = IMAGES * ROWS * W
    STRIDE: tl.constexpr = (TOTAL + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    k = tl.arange(0, N)
    for start in range(origin, TOTAL, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        image = m // (ROWS * W)
        row = first_row + (m // W) % ROWS
        col = m % W
        valid = (image < count) & (row >= 0) & (row < H)
        offset = (image * (H * W) + row * W + col) * CP
        acc = tl.zeros([BLOCK_M, N], dtype=tl.float32) + tl.load(b1 + k)[None, :]
        acc = convolve(
            acc, activated, offset, row, col, valid, w1, IMAGES * H * W * CP,
            CP, N, K1, H, W, BLOCK_K, PARTS, INTERPRETED,
        )  # fmt: skip
        layer = elu(acc, INTERPRETED)
        acc = tl.zeros([BLOCK_M, N], dtype=tl.float32) + tl.load(b2 + k)[None, :]
        if PARTS == 3 and N > 32:  # narrower ones do fit
            rows = inner + (m - start) * N
            places = rows[:, None] + k[None, :]
            first = layer.to(w2.dtype.element_ty)
            second, third = lesser_parts(layer, first)
            tl.store(places, first)
            tl.store(places + BLOCK_M * N, second)
            tl.store(places + 2 * BLOCK_M * N, third)
            tl.debug_barrier()
            acc = multiply_rows(acc, rows, w2, BLOCK_M * N, N, BLOCK_K, INTERPRETED)
            tl.debug_barrier()
        else:
            square = w2 + k[:, None] * N + k[None, :]
            acc = multiply_layer(layer, square, acc, N * N, PARTS, INTERPRETED)
        layer = elu(acc, INTERPRETED)
        for begin in range(0, 9 * C, BLOCK_N):
            n = begin + tl.arange(0, BLOCK_N)
            weight = w3 + k[:, None] * N3 + n[None, :]
            products = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32)
            products = multiply_layer(layer, weight, products, N * N3, PARTS, INTERPRETED)
            at = n[None, :] * STRIDE + m[:, None]
            tl.store(partial + at, products, mask=(n < 9 * C)[None, :])


@triton.jit
def branch_sums(
    partial, bias, q, row, col, valid,
    C: tl.constexpr, CP: tl.constexpr, H: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """F(x) at BLOCK pixels, [BLOCK, CP]: what their neighbours hold for them, added up.

    q, row, col, valid: [BLOCK], the pixels' columns in partial [9 C, STRIDE], positions, existence.
    """
    c = tl.arange(0, CP)
    value = tl.load(bias + c, mask=c < C, other=0.0)
    acc = tl.zeros([BLOCK, CP], dtype=tl.float32) + value[None, :]
    for tap in tl.static_range(9):
        down = tap // 3 - 1
        right = tap % 3 - 1
        inside = (
            valid
            & (row + down >= 0) & (row + down < H)
            & (col + right >= 0) & (col + right < W)
        )  # fmt: skip
        at = (tap * C + c)[None, :] * STRIDE + (q + (down * W + right))[:, None]
        acc += tl.load(partial + at, mask=inside[:, None] & (c < C)[None, :], other=0.0)
    return acc


@triton.jit
def activate(
    value, activated, pixel, mask, begins_with_elu, PLANE: tl.constexpr,
    CP: tl.constexpr, PARTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """activated [PARTS, pixels, CP], PLANE between parts, <- the parts of elu(value), or of value
    [BLOCK, CP], whose padded channels are zero. mask: [BLOCK, 1]."""
    c = tl.arange(0, CP)
    value = tl.where(begins_with_elu, elu(value, INTERPRETED), value)
    at = (pixel * CP)[:, None] + c[None, :]
    first = value.to(activated.dtype.element_ty)
    tl.store(activated + at, first, mask=mask)
    if PARTS == 3:
        second, third = lesser_parts(value, first)
        tl.store(activated + PLANE + at, second, mask=mask)
        tl.store(activated + 2 * PLANE + at, third, mask=mask)
