"""Erasure patterns and decoding as differentiable tensor operations, for training only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from codedinv.coding import Code


@dataclass(frozen=True)
class Erasure:
    """Missing data slots and the parities used for them, as many.

    Attributes:
        missing: data slots.
        parities: rows of the code's coefficients.
        inverse: [m, m], inverse of C[parities, missing].
    """

    missing: tuple[int, ...]
    parities: tuple[int, ...]
    inverse: Tensor


def erasures(code: Code, generator: np.random.Generator) -> list[Erasure]:
    """All k single erasures for r = 1; else k random patterns of 1 to r missing slots."""
    if code.r == 1:
        return [_erasure(code, (slot,), (0,)) for slot in range(code.k)]
    patterns = []
    for _ in range(code.k):
        size = int(generator.integers(1, min(code.r, code.k) + 1))
        missing = generator.choice(code.k, size, replace=False)
        parities = generator.choice(code.r, size, replace=False)
        patterns.append(_erasure(code, tuple(missing.tolist()), tuple(parities.tolist())))
    return patterns


def _erasure(code: Code, missing: tuple[int, ...], parities: tuple[int, ...]) -> Erasure:
    square = code.coefficients[np.ix_(parities, missing)]
    return Erasure(missing, parities, torch.tensor(np.linalg.inv(square), dtype=torch.float32))


def decoded_error(parity_error: Tensor, erasure: Erasure) -> Tensor:
    """What an encoder's error becomes after decoding.

    The decoder solves C[parities, missing] z = parity - known part; so an error e of the parity
    embeddings, f(parity_i) - sum_j c_ij f(x_j), reaches the missing embeddings as inverse e
    (paper, section 3.3: k times as large for r = 1).

    Args:
        parity_error: [G, r, *embedding].
        erasure: the pattern.

    Returns:
        [G, m, *embedding] in the order of `erasure.missing`.
    """
    picked = parity_error[:, list(erasure.parities)]
    mixed = torch.matmul(erasure.inverse.to(picked), picked.flatten(2))
    return mixed.reshape(picked.shape)
