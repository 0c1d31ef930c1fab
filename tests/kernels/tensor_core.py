"""A tensor core's arithmetic for the interpreter: exact products, sums that are cut off.

Measured on V100 to H100 (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor
cores", PeerJ CS 2021; Khattak and Mikaitis, "Accurate models of NVIDIA tensor cores", 2025): the
products of one step along k and the accumulator are aligned to the largest of them, cut off two
bits below a float32's last, added exactly, and cut off to a float32. Nothing is rounded, so errors
of successive steps add up instead of averaging out. A Hopper step takes 16 numbers of 16 bits, an
Ampere step 8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

MANTISSA_BITS = 24
EXTRA_BITS = 2
HOPPER_STEP, AMPERE_STEP = 16, 8

Float64 = npt.NDArray[np.float64]


def _unit_of(largest: Float64, bits: int) -> Float64:
    """The last of `bits` binary places of numbers as large as `largest`; 1 for zero."""
    _, exponent = np.frexp(largest)
    return np.ldexp(1.0, np.where(largest == 0, 0, exponent - bits))


def truncating_product(a: Any, b: Any, acc: Any, step: int = HOPPER_STEP) -> Any:
    """acc + a @ b as a tensor core adds it up.

    Args:
        a, b, acc: [M, K] and [K, N] with 16 bits' worth of values, [M, N] float32.
        step: numbers along k that one instruction adds at a time.

    Returns:
        [M, N] float32.
    """
    total = np.asarray(acc, np.float64)
    columns, rows = np.asarray(a, np.float64).T, np.asarray(b, np.float64)
    for start in range(0, columns.shape[0], step):
        terms = columns[start : start + step, :, None] * rows[start : start + step, None, :]
        largest = np.maximum(np.abs(terms).max(axis=0), np.abs(total))
        unit = _unit_of(largest, MANTISSA_BITS + EXTRA_BITS)
        per = 1.0 / unit
        terms *= per
        total = (np.trunc(terms, out=terms).sum(axis=0) + np.trunc(total * per)) * unit
        unit = _unit_of(np.abs(total), MANTISSA_BITS)
        total = np.trunc(total / unit) * unit
    return total.astype(np.float32)
