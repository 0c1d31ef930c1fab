"""Plain NumPy decoders that the C++ one is held to and measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.coding.code import Code


def recover(code: Code, results: Mapping[int, NDArray[Any]]) -> dict[int, NDArray[np.float64]]:
    """All missing data slots by float64 least squares over the parities that arrived.

    Args:
        code: the code.
        results: {slot: embedding} of any k or more slots; data slots are taken as exact.

    Returns:
        {slot: embedding} of the missing data slots.

    Raises:
        ValueError: with fewer than k results.
    """
    if len(results) < code.k:
        raise ValueError(f"results: expected any {code.k} slots, got {len(results)}")
    wide = {slot: np.asarray(row, dtype=np.float64) for slot, row in results.items()}
    missing = [j for j in range(code.k) if j not in wide]
    parities = [i for i in range(code.r) if code.k + i in wide]
    if not missing:
        return {}
    known = np.array(
        [
            wide[code.k + i]
            - sum(code.coefficients[i, j] * wide[j] for j in range(code.k) if j in wide)
            for i in parities
        ]
    )
    system = code.coefficients[np.ix_(parities, missing)]
    solution, *_ = np.linalg.lstsq(system, known.reshape(len(parities), -1), rcond=None)
    shape = known.shape[1:]
    return {slot: row.reshape(shape) for slot, row in zip(missing, solution, strict=True)}


def syndrome(code: Code, results: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """parity_i - sum_j c_ij z_j of each parity, (r, *shape), from the results of all n slots."""
    wide = np.array([np.asarray(row, dtype=np.float64) for row in results])
    return np.asarray(wide[code.k :] - np.tensordot(code.coefficients, wide[: code.k], 1))


class OnlineDecoder:
    """The streaming decoder's arithmetic for r = 1 in NumPy, without any check of its input."""

    def __init__(self, code: Code, shape: tuple[int, ...], dtype: Any = np.float32) -> None:
        wide = np.float64 if np.dtype(dtype) == np.float64 else np.float32
        self._k = code.k
        self._coefficients = code.coefficients[0].astype(wide)
        self._accumulator = np.zeros(shape, wide)

    def push(self, slot: int, embedding: NDArray[Any]) -> None:
        """Takes one result; slots as in `StreamingDecoder`."""
        if slot < self._k:
            self._accumulator -= self._coefficients[slot] * embedding
        else:
            self._accumulator += embedding

    def estimate(self, slot: int) -> NDArray[Any]:
        """Paper eq. (6)."""
        return np.asarray(self._accumulator / self._coefficients[slot])

    def reset(self) -> None:
        """Forgets all results."""
        self._accumulator.fill(0.0)
