"""same: are two results of one query the same, up to what machines may differ in?"""

from __future__ import annotations

from typing import Any

import numpy as np

# float32 results of one network on one query differ by at most 2e-6 of their size between runtimes,
# batch sizes and thread counts (benchmarks/receipts/corruption.json); other BLAS libraries and fast
# convolutions reach 1e-4; a flipped exponent bit moves its element by half its value or more.
SAME_TOLERANCE = 1e-3


def same(a: Any, b: Any, tolerance: float = SAME_TOLERANCE) -> bool:
    """Whether two results of one query agree.

    They do if no element differs by more than `tolerance` times the root mean square of the larger
    result. Each element counts, so that one wrong one is not averaged away.

    Args:
        a, b: (*embedding), of one shape.
        tolerance: workers that compute in TF32 or bfloat16 beside others that do not need about
            3e-3 and 3e-2 (measured on the shipped network: 6e-4 and 1e-2).

    Raises:
        ValueError: two shapes.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a, b: expected one shape, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return False  # a sound backbone gives none: nothing to agree on
    if first.size == 0:
        return True
    size = max(float(np.mean(first**2)), float(np.mean(second**2))) ** 0.5
    return bool(np.max(np.abs(first - second)) <= tolerance * size)
