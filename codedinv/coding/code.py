"""Systematic linear codes over the reals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Code:
    """(n, k) systematic linear code over the reals."""

    def __init__(self, coefficients: ArrayLike) -> None:
        c = np.array(coefficients, dtype=np.float64)
        c.setflags(write=False)
        self._c = c

    @classmethod
    def uniform(cls, k: int) -> Code:
        return cls(np.full((1, k), 1.0 / k))

    @property
    def coefficients(self) -> NDArray[np.float64]:
        return self._c

    @property
    def k(self) -> int:
        return int(self._c.shape[1])

    @property
    def r(self) -> int:
        return int(self._c.shape[0])

    @property
    def n(self) -> int:
        return self.k + self.r
