"""Which queries form a coding group: as they arrive, or alike ones chosen among those at hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Groups = NDArray[np.int64]


def arrival_groups(order: NDArray[np.int64], k: int) -> Groups:
    """Groups of k in order of arrival, (G, k); what is left over sits out."""
    return order[: len(order) // k * k].reshape(-1, k)


def alike_groups(
    order: NDArray[np.int64], classes: NDArray[np.int64], k: int, among: int | None = None
) -> Groups:
    """Groups of k queries of one class, as far as they can be had.

    Args:
        order: of arrival, of the queries' numbers.
        classes: (N,) of each query, by the light model.
        k: queries per group.
        among: how many queries there are to choose from: so many are gathered, then grouped.
            None: all of them.

    Returns:
        (G, k). Within each window every class fills as many groups as it can; what its classes
        leave over is grouped together, next classes side by side.
    """
    among = len(order) if among is None else among // k * k
    windows = [order[start : start + among] for start in range(0, len(order), among)]
    return np.concatenate([_in_window(window, classes, k) for window in windows])


def _in_window(window: NDArray[np.int64], classes: NDArray[np.int64], k: int) -> Groups:
    full, rest = [], []
    for of in np.unique(classes[window]):
        members = window[classes[window] == of]
        whole = len(members) // k * k
        full.append(members[:whole])
        rest.append(members[whole:])
    return arrival_groups(np.concatenate(full + rest), k)
