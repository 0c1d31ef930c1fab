"""Clean groups as a learned encoder leaves them: errors in few directions, of a size per group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codedinv.coding import Code
from codedinv.verification import Consistency, fit_consistency

SHAPE = (6, 4, 4)
SIZE = 96
NOISE = 0.02


@dataclass(frozen=True)
class Groups:
    """Syndromes of clean groups, results of spread 1."""

    code: Code
    seed: int = 987654  # of no test: an error drawn alike would be one of the encoder's own
    directions: int = 5

    def clean(self, count: int, seed: int) -> np.ndarray:
        """(count, r, *SHAPE) float32."""
        shape_of = np.random.default_rng(self.seed)
        basis = shape_of.standard_normal((self.code.r, self.directions, SIZE))
        mean = shape_of.standard_normal((self.code.r, SIZE)) * 0.2
        quiet = NOISE * np.exp(shape_of.standard_normal((self.code.r, SIZE)) * 0.3)
        random = np.random.default_rng(seed)
        sizes = np.exp(0.2 * random.standard_normal((count, 1, 1)))
        along = random.standard_normal((count, self.code.r, self.directions)) * 0.3
        noise = random.standard_normal((count, self.code.r, SIZE)) * quiet
        errors = mean + sizes * (np.einsum("grm,rmd->grd", along, basis) + noise)
        return errors.astype(np.float32).reshape(count, self.code.r, *SHAPE)

    def fitted(self, count: int = 6000) -> Consistency:
        """A check of these groups."""
        return fit_consistency(self.code, self.clean(count, seed=1), rank=16)

    def wrong(self, syndrome: np.ndarray, slot: int, error: np.ndarray) -> np.ndarray:
        """The syndrome (r, *SHAPE) once the result of `slot` is off by `error`."""
        changed = syndrome.copy()
        if slot >= self.code.k:
            changed[slot - self.code.k] += error
            return changed
        coefficients = self.code.coefficients[:, slot].astype(np.float32)
        return changed - np.multiply.outer(coefficients, error).astype(np.float32)
