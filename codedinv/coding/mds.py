"""Well-conditioned MDS codes over the reals: a table, and a search for what it lacks.

Rows of powers (Vandermonde) or of 1 / (x + y) (Cauchy) are MDS too, but their worst pattern loses
digits fast: condition 168 and 5,684 at (n, k) = (12, 10), against 27 here.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from codedinv.coding.conditioning import Floats, Worst
from codedinv.coding.mds_search import GRAIN, TABLE, effort_at_run_time, search


def mds_code(k: int, r: int) -> tuple[Floats, Worst | None]:
    """Parity coefficients C (r, k), rows summing to exactly 1, and their worst pattern if known."""
    entry = _table().get(f"{k},{r}")
    if entry is None:
        return search(k, r, effort_at_run_time(r)), None
    condition, parities, missing = entry["worst"]
    coefficients = np.array(entry["grains"], dtype=np.float64) * GRAIN
    return coefficients, Worst(condition, tuple(parities), tuple(missing))


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table
