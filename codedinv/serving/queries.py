"""What callers send: queries and deadlines, checked before the server takes them."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from codedinv.schemes.scheme import Array
from codedinv.serving.arrays import extremes, is_finite

_FLOAT32 = np.dtype(np.float32)
_SLACK = 1e-3  # of the range: rounding in the caller's own scaling is no mistake


class QueryCheck:
    """Turns what a caller sends into queries, or says what is wrong with it.

    Args:
        input_shape: of one query.
        input_range: least and greatest value that the model was made for; None: any finite one. A
            query far outside spoils what is reconstructed of the others in its coding group.
    """

    def __init__(
        self, input_shape: tuple[int, ...], input_range: tuple[float, float] | None
    ) -> None:
        self.input_shape = input_shape
        self._range = input_range
        self._bounds = (0.0, 0.0)
        if input_range is not None:
            low, high = (float(bound) for bound in input_range)
            slack = _SLACK * (high - low)
            self._bounds = (low - slack, high + slack)

    def one(self, x: Any) -> Array:
        """A query (*input) as a copy that nobody else has.

        Raises:
            ValueError: wrong shape or dtype, not finite, or out of the model's range.
        """
        array = x if type(x) is np.ndarray and x.dtype is _FLOAT32 else _as_array(x)
        if array.shape != self.input_shape:
            raise ValueError(f"x: expected shape {self.input_shape}, got {array.shape}")
        query = self.copy(array)
        self._check_values(query)  # of the copy: the caller's own may change meanwhile
        return query

    def copy(self, query: np.ndarray[Any, Any]) -> Array:
        """A checked query as a copy that nobody else has."""
        return np.array(query, _FLOAT32, order="C")

    def batch(self, x: Any) -> np.ndarray[Any, Any]:
        """Queries (B, *input), all checked, not copied.

        Raises:
            ValueError: as `one`.
        """
        array = _as_array(x)
        if array.shape[1:] != self.input_shape or array.ndim == 0:
            raise ValueError(f"x: expected shape (B, *{self.input_shape}), got {array.shape}")
        self._check_values(array)
        return array

    def one_or_batch(self, x: Any) -> tuple[np.ndarray[Any, Any], bool]:
        """Queries (B, *input), and whether it was a single one that came.

        Raises:
            ValueError: as `one`.
        """
        array = _as_array(x)
        shape = self.input_shape
        single = array.shape == shape
        if not single and (array.shape[1:] != shape or array.ndim == 0):
            raise ValueError(f"x: expected shape {shape} or (B, *{shape}), got {array.shape}")
        self._check_values(array)
        return (array[np.newaxis] if single else array), single

    def _check_values(self, array: np.ndarray[Any, Any]) -> None:
        if self._range is None or not array.size:
            if not is_finite(array):
                raise ValueError("x: expected finite values, got NaN or infinity")
            return
        least, greatest = extremes(array)
        low, high = self._bounds
        if not (low <= least and greatest <= high):
            raise ValueError(
                f"x: expected finite values in {list(self._range)}, which this model was made for, "
                f"got {least:g} to {greatest:g}"
            )


def check_deadline(deadline: Any) -> float:
    """Seconds that a query has.

    Raises:
        ValueError: not a positive, finite number.
    """
    if not isinstance(deadline, bool) and isinstance(deadline, numbers.Real):
        try:
            seconds = float(deadline)
        except OverflowError:
            seconds = math.inf
        if 0 < seconds < math.inf:
            return seconds
    raise ValueError(f"deadline: expected a positive number of seconds, got {deadline!r}")


def _as_array(x: Any) -> np.ndarray[Any, Any]:
    """The argument as a floating array that float32 holds exactly."""
    came = type(x).__name__
    try:
        if isinstance(x, list | tuple):
            x = np.asarray(x, np.float32)  # Python's numbers are not meant as float64
        if hasattr(x, "detach"):  # a torch tensor; torch itself need not be imported
            came = f"a tensor of {x.dtype}"
            x = x.detach().cpu()
        array = np.asarray(x)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"x: expected an array of numbers, got {came}: {error}") from error
    if array.dtype not in (np.float32, np.float16):
        raise ValueError(f"x: expected dtype float32 or float16, got {array.dtype}")
    return array
