"""The demo's figure of latencies: every run's tail, and every query of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.tally import LATE_S
from codedinv.experiments.traffic import Answer

matplotlib.use("Agg")  # no display is needed, nor is a backend looked for

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis

# Okabe and Ito's palette: told apart with every common colour blindness.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
ORANGE, PURPLE, SKY = "#E69F00", "#CC79A7", "#56B4E9"
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
# Colour, line and width in the order of the columns; dashes tell them apart without colour.
_LINES: Any = (
    ("black", (0, (1, 1)), 1.6),
    (ORANGE, (0, (5, 1.5)), 1.6),
    (PURPLE, (0, (4, 1, 1, 1)), 1.8),
    (GREEN, "-", 1.8),
    (BLUE, "-", 2.4),
)
_STRIP_TICKS_MS = (5, 1e3 * LATE_S, 500)


@dataclass(frozen=True)
class Course:
    """Latencies of one run of traffic.

    Attributes:
        label: of the run.
        arrivals_s: (N,) scheduled, from the start.
        latencies_s: (N,) from the scheduled arrival; of answered queries only.
    """

    label: str
    arrivals_s: NDArray[np.float64]
    latencies_s: NDArray[np.float64]

    @classmethod
    def of(cls, label: str, answers: Sequence[Answer]) -> Course:
        """The course of some answers."""
        answered = [answer for answer in answers if answer.source is not None]
        return cls(
            label,
            np.array([answer.arrival_s for answer in answered]),
            np.array([answer.latency_s for answer in answered]),
        )


def latency_figure(
    path: Path, courses: Sequence[Course], killed_s: float, slow_s: tuple[float, float]
) -> None:
    """Draws the share of queries slower than t, and every query's latency in a strip for each run.

    Args:
        path: of the PNG.
        courses: at most five.
        killed_s: when a worker was killed, seconds from the start.
        slow_s: from when to when another was slow.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(10.5, 5.2), layout="constrained")
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.0, 1.25), wspace=0.04)
        left, right = halves
        _draw_tails(left.subplots(), courses)
        strips = right.subplots(len(courses), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        _draw_strips(strips, courses, killed_s, slow_s)
        right.supylabel("latency (ms)", fontsize=9)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _draw_tails(axes: Axes, courses: Sequence[Course]) -> None:
    for course, (colour, line, width) in zip(courses, _LINES, strict=False):
        ordered = np.sort(course.latencies_s)
        slower = 1 - np.arange(len(ordered)) / len(ordered)
        axes.step(
            1e3 * ordered, slower, linestyle=line, where="pre", color=colour, linewidth=width,
            label=course.label,
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log",
        xlabel="latency t (ms)", ylabel="share of queries slower than t",
    )  # fmt: skip
    axes.set_ylim(top=1.3)
    percent = matplotlib.ticker.FuncFormatter(lambda share, _: f"{100 * share:g} %")
    axes.yaxis.set_major_formatter(percent)
    for share, name in ((0.5, "p50"), (0.01, "p99"), (0.001, "p99.9")):
        axes.axhline(share, color=GREY, linewidth=0.5, linestyle=":", zorder=0)
        axes.text(
            1.01, share, name, color=GREY, fontsize=8, va="center", ha="left",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    _plain_milliseconds(axes.xaxis)
    axes.legend(
        frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, handlelength=3.2,
        columnspacing=1.5,
    )  # fmt: skip


def _draw_strips(
    strips: Sequence[Axes], courses: Sequence[Course], killed_s: float, slow_s: tuple[float, float]
) -> None:
    for axes, course, (colour, _, _) in zip(strips, courses, _LINES, strict=False):
        axes.axvspan(*slow_s, color="#EEEEEE", zorder=0, linewidth=0)
        axes.axvline(killed_s, color=VERMILLION, linewidth=1.2, zorder=0)
        axes.axhline(1e3 * LATE_S, color=GREY, linewidth=0.6, linestyle=":", zorder=0)
        axes.plot(
            course.arrivals_s, 1e3 * course.latencies_s, "o", color=colour, markersize=2.4,
            markeredgewidth=0, alpha=0.7,
        )  # fmt: skip
        late = int((course.latencies_s > LATE_S).sum())
        axes.text(
            1.015, 0.5, f"{course.label}\n{late} late", color=colour, va="center", ha="left",
            transform=axes.transAxes, fontweight="bold", fontsize=8.5,
        )  # fmt: skip
        axes.set_yscale("log")
        axes.set_yticks(*zip(*((t, f"{t:g}") for t in _STRIP_TICKS_MS), strict=True))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    strips[0].set_xlim(0, slow_s[1])
    strips[-1].set_xlabel("arrival (s)")
    notes = ((killed_s, "SIGKILL\nto one worker"), (sum(slow_s) / 2, "another worker\n100 ms slow"))
    for (time_s, note), colour in zip(notes, (VERMILLION, GREY), strict=True):
        strips[0].text(
            time_s, 1.06, note, color=colour, ha="center", va="bottom", fontsize=8.5,
            transform=strips[0].get_xaxis_transform(),
        )  # fmt: skip


def _plain_milliseconds(axis: Axis) -> None:
    """Writes 5, 20, 100 instead of powers of ten."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
