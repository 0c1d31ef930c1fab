"""What a fit found: a table, plain JSON, and a figure of the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from codedinv.experiments.intervals import Estimate, few_examples
from codedinv.fitting.candidates import Candidate
from codedinv.fitting.settings import AT

_COLOURS = {
    "uncoded": "#666666",
    "replication": "#E69F00",
    "guided": "#009E73",
    "invertible": "#0072B2",
    "worker-encoded": "#CC79A7",
}


@dataclass(frozen=True)
class Report:
    """What a fit found.

    Attributes:
        model: its name.
        candidates: every way to serve it, the best A_o first.
        best: the one that the bundle is made for.
        why: a sentence.
        unavailable: share of unavailable results that they are sorted by.
        light: accuracy of the light model in percent.
        worth: A_n minus that, image by image.
        light_over_backbone: the light model's work over f's.
        omitted: what could not be made, and why.
        examples: of the test set.
        seconds: the fit took.
    """

    model: str
    candidates: Sequence[Candidate]
    best: Candidate
    why: str
    unavailable: float
    light: Estimate
    worth: Estimate
    light_over_backbone: float
    omitted: Mapping[str, str]
    examples: int
    seconds: float

    def __str__(self) -> str:
        rows = [f"A_o at {self.unavailable:.0%}   A_n     A_d     workers  front end"]
        for one in self.candidates:
            mark = "*" if one is self.best else " "
            rows.append(
                f"{one.overall[self.unavailable].mean:9.2f} {mark} {one.normal.mean:6.2f} "
                f"{one.degraded.mean:7.2f} {one.workers:+8.0%} {one.front_end:9.1%}   {one.title}"
            )
        return "\n".join([*rows, self.why, *self._warnings()])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "unit": "percent",
            "examples": self.examples,
            "unavailable": self.unavailable,
            "best": self.best.title,
            "why": self.why,
            "light": asdict(self.light),
            "light_over_backbone": self.light_over_backbone,
            "workers_worth": asdict(self.worth),
            "candidates": [one.to_dict() for one in self.candidates],
            "omitted": dict(self.omitted),
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> Table:
        """The report for people."""
        table = Table(
            title=f"{self.model}: A_n = {_with_half(self.best.normal)} % on {self.examples:,} test "
            f"examples; best A_o at {self.unavailable:.0%} unavailable first",
            caption=self._caption(),
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1),
        )
        table.add_column("", no_wrap=True)
        shares = sorted({*AT, self.unavailable})
        for heading in (
            "A_d, %", *(f"A_o, {share:.0%}" for share in shares),
            "workers", "front end", "if lost",
        ):  # fmt: skip
            table.add_column(heading, justify="right", no_wrap=True)
        for one in self.candidates:
            table.add_row(
                one.title,
                _with_half(one.degraded),
                *(f"{one.overall[share].mean:.2f}" for share in shares),
                f"{one.workers:+.0%}",
                f"{one.front_end:.1%}",
                f"{one.front_end_lost:.1%}",
                style="bold green" if one is self.best else "",
            )
        return table

    def _caption(self) -> str:
        lines = [
            f"Light model: {_with_half(self.light)} % for {self.light_over_backbone:.1%} of f's "
            f"work; f is worth {_with_half(self.worth)} points over it.",
            "Costs, for each query and each lost one, are shares of one backbone call.",
            *self._warnings(),
            *(f"Left out: {what}: {why}" for what, why in self.omitted.items()),
        ]
        return "\n".join(lines)

    def _warnings(self) -> list[str]:
        warning = few_examples(self.examples)
        return [] if warning is None else [warning]

    def figure(self, path: str | Path) -> Path:
        """Draws A_o against what the workers do for it, every candidate with its interval, those of
        the frontier by name: more names would hide each other."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axis = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        for one in self.candidates:
            found = one.overall[self.unavailable]
            bars = [[found.mean - found.low], [found.high - found.mean]]
            filled = one is self.best
            colour = _COLOURS.get(one.scheme, "black")
            axis.errorbar(
                100 * one.workers, found.mean, bars, marker="o", ms=9 if filled else 5,
                mfc=colour if filled else "white", color=colour, elinewidth=0.8, alpha=0.9,
            )  # fmt: skip
        for number, one in enumerate(self.frontier()):
            axis.annotate(
                one.title, (100 * one.workers, one.overall[self.unavailable].mean),
                xytext=(7, 8 if number % 2 else -12), textcoords="offset points", fontsize=7,
            )  # fmt: skip
        axis.set_xlabel("extra work of the workers, %")
        axis.set_ylabel(f"A_o at {self.unavailable:.0%} unavailable, %")
        axis.set_title(f"{self.model}: what redundancy buys (filled: served)", fontsize=10)
        for scheme in dict.fromkeys(one.scheme for one in self.candidates):
            axis.plot([], [], "o", mfc="white", color=_COLOURS.get(scheme, "black"), label=scheme)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
        axis.margins(x=0.18)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        path = Path(path)
        figure.savefig(path, dpi=140)
        plt.close(figure)
        return path

    def frontier(self) -> list[Candidate]:
        """Candidates that none beats for as little work of the workers, the cheapest first."""
        found: list[Candidate] = []
        for one in sorted(self.candidates, key=lambda c: (c.workers, -self._overall(c))):
            if not found or self._overall(one) > self._overall(found[-1]):
                found.append(one)
        return found

    def _overall(self, one: Candidate) -> float:
        return one.overall[self.unavailable].mean


def _with_half(found: Estimate) -> str:
    return f"{found.mean:.2f} ± {(found.high - found.low) / 2:.2f}"
