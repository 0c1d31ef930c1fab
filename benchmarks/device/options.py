"""What a command measures, for how long, and where its receipts go."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .networks import Network

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Those that the bars are stated for come first.
BATCHES = (1, 256, 64, 8, 1024)
# Relative step of fixed-point solutions: what the bars are stated for.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
# A rehearsal's: the interpreter takes half a second for each iteration.
REHEARSAL_TOLERANCE = 1e-2


class OutOfTime(Exception):
    """The command has used its time; what it measured is in its receipt."""


@dataclass(frozen=True)
class Options:
    """The command line, read.

    Attributes:
        name: of the network, as in receipts.
        network: what is measured; a tiny one in a rehearsal.
        dtype_name, batches: of the inputs.
        out: folder of the receipts.
        ends: time.monotonic() after which nothing new is begun.
        again: measure what the receipts already have.
        rehearse: on the CPU, in Triton's interpreter; times mean nothing.
    """

    name: str
    network: Network
    dtype_name: str
    batches: tuple[int, ...]
    out: Path
    ends: float
    again: bool
    rehearse: bool

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def tolerance(self) -> float:
        return REHEARSAL_TOLERANCE if self.rehearse else TOLERANCE[self.dtype]

    def check_time(self) -> None:
        """Raises OutOfTime once the command should end."""
        if time.monotonic() > self.ends:
            raise OutOfTime
