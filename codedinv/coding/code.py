"""Systematic linear codes over the reals."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from codedinv.coding.conditioning import Worst, worst
from codedinv.coding.mds import mds_code

# Beyond this condition number float64 recovery keeps fewer than four digits.
_SINGULAR = 1e12


def _positive(name: str, value: int) -> int:
    size = operator.index(value)
    if size < 1:
        raise ValueError(f"{name}: expected 1 or more, got {size}")
    return size


@lru_cache(maxsize=64)
def _mds(k: int, r: int) -> Code:
    coefficients, found = mds_code(k, r)
    return Code(coefficients) if found is None else Code._known(coefficients, found)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Code:
    """An (n, k) systematic linear code over the reals, n = k + r, generator [I; C].

    Slots 0..k-1 of a coding group carry data z_j, slot k + i carries parity_i = sum_j c_ij z_j. Any
    k of the n slots determine all others.

    Two codes are equal if their coefficients are. `code.coefficients.tolist()` is its JSON form,
    and `Code` of that list the same code again.

    Args:
        coefficients: parity coefficients C, (r, k).

    Raises:
        ValueError: if C is not a finite matrix with r, k >= 1, or some k rows of the generator are
            singular; the message names them. Every pattern is checked where there are at most
            100,000 / m^2 of m erasures, a fixed sample of that many otherwise.
    """

    coefficients: NDArray[np.float64]
    """Parity coefficients C, (r, k), read-only."""

    def __init__(self, coefficients: ArrayLike) -> None:
        c = np.array(coefficients, dtype=np.float64)
        if c.ndim != 2 or 0 in c.shape:
            raise ValueError(f"coefficients: expected shape (r, k), r, k >= 1, got {c.shape}")
        if not np.isfinite(c).all():
            raise ValueError("coefficients: expected finite values, got a NaN or an infinity")
        self._set(c)
        if not self._worst.condition < _SINGULAR:
            erased = set(self._worst.missing)
            slots = [j for j in range(self.k) if j not in erased]
            slots += [self.k + i for i in self._worst.parities]
            raise ValueError(
                f"coefficients: expected any {self.k} rows of the generator to be nonsingular, got "
                f"condition number {self._worst.condition:.2g} for slots {tuple(slots)}"
            )

    def _set(self, coefficients: NDArray[np.float64]) -> None:
        coefficients.setflags(write=False)
        object.__setattr__(self, "coefficients", coefficients)

    @classmethod
    def _known(cls, coefficients: NDArray[np.float64], found: Worst) -> Code:
        """A code whose worst pattern is known, without looking at all patterns again."""
        code = object.__new__(cls)
        code._set(coefficients)
        code.__dict__["_worst"] = found  # where cached_property looks
        return code

    @classmethod
    def uniform(cls, k: int) -> Code:
        """The (k + 1, k) code whose one parity is the mean of the data, c_1j = 1/k."""
        return cls(np.full((1, _positive("k", k)), 1.0 / k))

    @classmethod
    def mds(cls, k: int, r: int) -> Code:
        """A well-conditioned (k + r, k) code whose rows of C sum to 1; the uniform one for r = 1.

        For r > 1 coefficients of both signs, row norms sum_j |c_ij| at most 2. Taken from a table
        for k up to 24 (r = 2), 20 (r = 3, 4), 12 (r = 5) or 10 (r = 6), so the same everywhere;
        else found by a seeded search that takes seconds, once a process. A condition number grows
        with k and steeply with r: 27 at (12, 10), 231 at (14, 10), 6,600 at (24, 20).
        """
        if _positive("r", r) == 1:
            return cls.uniform(k)
        return _mds(_positive("k", k), operator.index(r))

    @property
    def k(self) -> int:
        """Number of data slots."""
        return int(self.coefficients.shape[1])

    @property
    def r(self) -> int:
        """Number of parity slots, and of erasures that can be recovered."""
        return int(self.coefficients.shape[0])

    @property
    def n(self) -> int:
        """Number of slots."""
        return self.k + self.r

    @cached_property
    def generator(self) -> NDArray[np.float64]:
        """Generator [I; C], (n, k), read-only: slot results = generator @ data."""
        generator = np.concatenate([np.eye(self.k), self.coefficients])
        generator.setflags(write=False)
        return generator

    def condition_number(self) -> float:
        """Largest 2-norm condition number of any k rows of the generator.

        A lower bound, from a fixed sample, where there are more patterns than the constructor
        checks.
        """
        return self._worst.condition

    @cached_property
    def _worst(self) -> Worst:
        return worst(self.coefficients)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Code):
            return NotImplemented
        return np.array_equal(self.coefficients, other.coefficients)

    def __hash__(self) -> int:
        return hash((self.coefficients.shape, self.coefficients.tobytes()))

    def __repr__(self) -> str:
        if self.r == 1 and np.all(self.coefficients == 1.0 / self.k):
            return f"Code.uniform(k={self.k})"
        return f"Code({self.coefficients.tolist()})"
