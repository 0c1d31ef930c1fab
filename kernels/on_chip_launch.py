"""What a kernel of cuda/ is launched with."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from .shapes import pixel_strides

_LARGEST_INT = 2**31 - 1


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_longlong) for name in ("image", "pixel", "channel")]


class Arguments(ctypes.Structure):
    """`Arguments` of cuda/arguments.cuh."""

    _fields_ = [
        ("given", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("iterations", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("leading", ctypes.c_void_p),
        ("given_strides", _Strides),
        ("out_strides", _Strides),
        ("batch", ctypes.c_int),
        ("blocks", ctypes.c_int),
        ("tolerance", ctypes.c_float),
        ("max_iter", ctypes.c_int),
    ]


def arguments_of(
    given: Tensor,
    out: Tensor,
    weights: Tensor,
    leading: Tensor,
    verdicts: Sequence[Tensor] = (),
    tolerance: float = 0.0,
    max_iter: int = 0,
) -> Arguments:
    """Arguments of a launch, valid while the tensors live.

    Args:
        given, out: [B, C, H, W] bfloat16 or float16, with one stride for pixels.
        weights: `pack_on_chip`. leading: [blocks + 1] int32, as in `PackedBlocks`.
        verdicts: iterations [B, blocks] int32 and residual [B, blocks] float32 of an inversion.
        tolerance, max_iter: of an inversion.
    """
    # ctypes would wrap a larger one around, to a number below zero: no iteration, and "converged".
    max_iter = min(max_iter, _LARGEST_INT)
    iterations, residual = (tensor.data_ptr() for tensor in verdicts) if verdicts else (None, None)
    return Arguments(
        given.data_ptr(), out.data_ptr(), iterations, residual, weights.data_ptr(),
        leading.data_ptr(), _Strides(*pixel_strides(given)), _Strides(*pixel_strides(out)),
        given.shape[0], leading.shape[0] - 1, tolerance, max_iter,
    )  # fmt: skip
