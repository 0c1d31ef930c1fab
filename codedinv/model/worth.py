"""Whether a model's reconstructed answers are worth giving, by what its bundle says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Worth:
    """What a bundle's `metadata["metrics"]` says.

    Attributes:
        degraded: A_d, the accuracy of reconstructed answers, or another score of which more is
            better; None: nobody has measured it.
        floor: an answer of this score can be had without any worker, so below it none should be
            reconstructed: `floor` where the bundle states it, else the light model's accuracy
            (`controls.light`); None: no floor is known.
    """

    degraded: float | None
    floor: float | None

    @property
    def objection(self) -> str | None:
        """Why answers should not be reconstructed; None: they may."""
        if self.degraded is None:
            return "its A_d (accuracy of reconstructed answers) was never measured"
        if self.floor is not None and self.degraded < self.floor:
            return f"its A_d is {self.degraded:g}, below its floor of {self.floor:g}"
        return None


def worth_of(metadata: Mapping[str, Any]) -> Worth:
    """Reads a model's metadata; what is no number there counts as not measured."""
    metrics = metadata.get("metrics")
    metrics = metrics if isinstance(metrics, Mapping) else {}
    controls = metrics.get("controls")
    floor = _number(metrics.get("floor"))
    if floor is None and isinstance(controls, Mapping):
        floor = _number(controls.get("light"))
    return Worth(_number(metrics.get("A_d")), floor)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and value == value else None
