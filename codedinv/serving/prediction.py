"""Prediction: the answer to one query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codedinv.schemes.scheme import Source


@dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to one query.

    Attributes:
        outputs: float32 (outputs,) per task, in the order of the model's heads.
        source: "exact": the backbone's own result for this query; "reconstructed": recovered from
            the rest of its coding group; "hedged", "fallback": as the scheme says.
        latency: seconds from `submit` to the answer.
    """

    outputs: Mapping[str, NDArray[np.float32]]
    source: Source
    latency: float

    @property
    def degraded(self) -> bool:
        """True unless the answer is exact."""
        return self.source != "exact"
