"""The bars of docs/kernels.md in bfloat16, predicted for the kernels that keep state on chip.

Theirs are the times of benchmarks/predicted.py, the baselines those of benchmarks/machine_code.py.
"""

from __future__ import annotations

from typing import Any

from device.bars import BARS

from .baselines import HOST_OURS
from .model import Range
from .predictions import NETWORK, REPLAY_US, Prediction

# What predicted.py's single number may be off by, either way: its rates are assumptions.
DOUBT = 1.5


def bars(on_chip: dict[str, Any], code: dict[str, Any]) -> list[Prediction]:
    """Each bar that is in bfloat16.

    Args:
        on_chip: the receipt of predicted.py. code: that of machine_code.py.
    """
    us = {(row["kernel"], row["stage"], row["batch"]): row["us"] for row in on_chip["results"]}
    found = []
    for bar, row in zip(BARS, code["bars"], strict=True):
        if bar.dtype != "bfloat16":
            continue
        kernel = "forward" if bar.what == "forward" else "inversion"
        runs = 1 if kernel == "forward" else code["iterations"][bar.dtype]
        each = {
            str(stage): blocks * runs * us[kernel, str(stage), bar.batch]
            for stage, blocks in NETWORK.stages
        }
        total = sum(each.values())
        ours = Range(total / DOUBT, total * DOUBT)
        if bar.ours == "kernels":
            host = len(NETWORK.stages) * HOST_OURS
            ours = Range(max(ours.low, host.low), max(ours.high, host.high))
        else:
            ours += REPLAY_US
        baseline = Range(*row["baseline_us"])
        slowest = max(each, key=lambda stage: each[stage])
        found.append(Prediction(bar, row["baseline"], baseline, ours, slowest))
    return found


def bars_table(on_chip: dict[str, Any], code: dict[str, Any]) -> str:
    """As markdown."""
    lines = [
        "| bar | B | at least | Triton, times | on chip, predicted ms | times, predicted | met? "
        "| longest stage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    triton = {(row["what"], row["against"], row["batch"]): row["times"] for row in code["bars"]
              if row["dtype"] == "bfloat16"}  # fmt: skip
    for p in bars(on_chip, code):
        low, high = triton[p.bar.what, p.bar.against, p.bar.batch]
        lines.append(
            f"| {p.bar.what}, against {p.bar.against} | {p.bar.batch} | {p.bar.times:g}x "
            f"| {low:.2g} to {high:.2g} | {p.ours_us.low / 1e3:.2g} to {p.ours_us.high / 1e3:.2g} "
            f"| {p.times.low:.2g} to {p.times.high:.2g} | {p.met} | {p.limits} |"
        )
    return "\n".join(lines)
