"""A device that is none: its memory is the host's, and its recordings run what they recorded.

What it cannot show: that a GPU's recordings and copies do the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class StubDevice:
    """As `codedinv.workers.staging.Device`.

    Attributes:
        recorded: how many recordings were made.
        allocated: shapes of all memory, pinned or not.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.allocated: list[tuple[int, ...]] = []

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        self.allocated.append(shape)
        return torch.zeros(shape)

    def memory(self, shape: tuple[int, ...]) -> Tensor:
        return self.pinned(shape)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        work()
        return work

    def run(self, work: Callable[[], None]) -> None:
        work()
