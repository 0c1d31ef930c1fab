"""ExactConsistency: for codes whose syndrome is rounding noise, so that nothing need be fitted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.verification.consistency import Floats, Verdict
from codedinv.verification.same import SAME_TOLERANCE

# Of the errors along the best slot's coefficients and beside them: beside is rounding noise.
_AMBIGUOUS = 0.1


class ExactConsistency:
    """A `Check` for replication and for linear networks, where parities are exact up to rounding.

    An element of a syndrome beyond `tolerance` times its scale's root mean square is an alarm; the
    score is 4 there and grows by 1 with each factor of ten: there is no distribution to take it
    from.

    Args:
        code: of the groups.
        tolerance: relative. The default is that of `same`, for the same reasons.
    """

    def __init__(self, code: Code, tolerance: float = SAME_TOLERANCE) -> None:
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance: expected 0 < tolerance < 1, got {tolerance}")
        self.code = code
        self.tolerance = tolerance

    def __call__(self, syndrome: Floats, scale: Any = None, /) -> Verdict:
        """Checks one group; see `Check`.

        Raises:
            ValueError: no scale, or shapes that do not fit the code.
        """
        rows = np.asarray(syndrome, np.float64).reshape(len(syndrome), -1)
        if scale is None or np.shape(scale) != (self.code.r,) or len(rows) != self.code.r:
            raise ValueError(
                f"syndrome, scale: expected ({self.code.r}, *embedding) and ({self.code.r},), got "
                f"{np.shape(syndrome)} and {None if scale is None else np.shape(scale)}"
            )
        norms = np.asarray(scale, np.float64)
        if not np.isfinite(rows).all() or not np.isfinite(norms).all():
            return Verdict(True, None, math.inf)
        sizes = np.abs(rows).max(axis=1) * math.sqrt(rows.shape[1])
        relative = float(np.max(sizes / np.maximum(norms, np.finfo(np.float32).tiny)))
        score = max(0.0, 4 + math.log10(max(relative, 1e-30) / self.tolerance))
        if relative <= self.tolerance:
            return Verdict(False, None, score)
        return Verdict(True, self._culprit(rows), score)

    def _culprit(self, rows: NDArray[np.float64]) -> int | None:
        """The slot whose coefficients the rows (r, D) are multiples of."""
        if self.code.r == 1:
            return None
        unit = np.abs(rows).max()
        total = float(np.sum((rows / unit) ** 2))
        directions = np.concatenate([self.code.coefficients, np.eye(self.code.r)], axis=1)
        directions = directions / np.linalg.norm(directions, axis=0)
        left = total - np.sum((directions.T @ (rows / unit)) ** 2, axis=1)
        best, second = np.argsort(left, kind="stable")[:2]
        return int(best) if left[best] < _AMBIGUOUS * left[second] else None
