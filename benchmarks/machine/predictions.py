"""Every bar of docs/kernels.md, predicted from counts: ours, the baseline, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from device.bars import BARS, Bar
from device.networks import NETWORKS

from codedinv.kernels.shapes import Stage

from .baselines import COMPILED, EAGER, EAGER_INVERSE, GRAPH, HOST_OURS, Form, branch_us
from .model import NONE, Range, residence, time_of

NETWORK = NETWORKS["cifar"]
# One launch of a graph, and the first of its kernels: as published for H100.
REPLAY_US = Range(4, 8)


@dataclass(frozen=True)
class Prediction:
    """A bar's: times in us, how many times faster, whether that meets the bar, and what limits."""

    bar: Bar
    baseline: str
    baseline_us: Range
    ours_us: Range
    limits: str

    @property
    def times(self) -> Range:
        return self.baseline_us.over(self.ours_us)

    @property
    def met(self) -> str:
        """ "yes" if it is at its worst, "no" if it is not at its best, else by the middle."""
        if self.times.low >= self.bar.times:
            return "yes"
        if self.times.high < self.bar.times:
            return "no"
        middle = (self.times.low * self.times.high) ** 0.5
        return "likely" if middle >= self.bar.times else "unlikely"

    def row(self) -> dict[str, Any]:
        bar = self.bar
        return {
            "what": bar.what, "against": bar.against, "dtype": bar.dtype, "batch": bar.batch,
            "bar": bar.times, "baseline": self.baseline,
            "baseline_us": _rounded(self.baseline_us), "ours_us": _rounded(self.ours_us),
            "times": _rounded(self.times, 2), "met": self.met, "limits": self.limits,
        }  # fmt: skip


def predictions(counted: dict[str, dict[str, Any]], runs: dict[str, int]) -> list[Prediction]:
    """Of all bars.

    Args:
        counted: `kernels.count` by variant. runs: iterations of a block's inverse by dtype.
    """
    return [_predict(bar, counted, runs) for bar in BARS]


def pieces(
    counted: dict[str, dict[str, Any]], kernel: str, stage: Stage, dtype: str, batch: int
) -> tuple[dict[str, Any], dict[str, tuple[Range, str]]]:
    """(counts, microseconds and limit of "rest", "block" and "iteration") for a batch."""
    few = " of few" if batch <= 132 else ""
    found = counted[f"{kernel}{few} {stage} {dtype}"]
    where = residence(batch, found["images"], found["bands"], found["warps"], found["registers"])
    meeting = int(found["bands"] > 1)
    return found, {
        name: time_of(found[name], where, meeting) for name in ("rest", "block", "iteration")
    }


def _predict(bar: Bar, counted: dict[str, dict[str, Any]], runs: dict[str, int]) -> Prediction:
    inverse = bar.what.startswith("inverse")
    kernel = "inversion" if inverse else "stage"
    iterations = runs[bar.dtype] if inverse else 0
    from_python = bar.ours == "kernels"
    ours, slowest = NONE, (0.0, "")
    for stage, blocks in NETWORK.stages:
        _, times = pieces(counted, kernel, stage, bar.dtype, bar.batch)
        each = (
            times["block"][0] + iterations * times["iteration"][0] if inverse else times["block"][0]
        )
        ours += times["rest"][0] + blocks * each
        main, limit = times["iteration" if inverse else "block"]
        slowest = max(slowest, (blocks * (main.low + main.high), f"{limit} at {stage}"))
    overhead = len(NETWORK.stages) * HOST_OURS if from_python else REPLAY_US
    if from_python:
        ours = Range(max(ours.low, overhead.low), max(ours.high, overhead.high))
    else:
        ours += overhead
    name, baseline = min(
        ((name, _torch(form, bar, iterations)) for name, form in _forms(bar)),
        key=lambda found: found[1].low + found[1].high,
    )
    return Prediction(bar, name, baseline, ours, slowest[1])


def _forms(bar: Bar) -> list[tuple[str, Form]]:
    if bar.what == "forward":
        return [("eager", EAGER), ("compiled", COMPILED), ("graph", GRAPH)]
    if bar.against == "eager":
        # The benchmark's fastest eager form is told the counts, and so never asks.
        return [("eager", EAGER), ("eager that asks", EAGER_INVERSE)]
    return [("graph", GRAPH)]


def _torch(form: Form, bar: Bar, iterations: int) -> Range:
    runs = iterations or 1
    total = NONE
    for stage, blocks in NETWORK.stages:
        total += blocks * runs * branch_us(form, stage, bar.dtype, bar.batch)
    return total if form.convolutions else total + REPLAY_US


def _rounded(value: Range, digits: int = 1) -> list[float]:
    return [round(value.low, digits), round(value.high, digits)]
