"""The bars that the kernels are held to, against what the receipts of a card say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .options import Options
from .receipts import kernel_sources, measured_receipts

NETWORK = "cifar"
PYTHON, GRAPH = "kernels", "kernels_graphed"
EAGER = ("eager", "eager_channels_last")
# eager_fixed is told the number of iterations, and so never asks the device; see comparisons.py.
EAGER_INVERSE = ("eager", "eager_fixed", "eager_fixed_channels_last")
REPLAY = ("eager_graphed",)
COMPILED = ("compiled",)

RULE = """\
Times in ms. The verdict goes by the number in bold: where the baseline includes a graph (the graph
itself, or the best of the three) ours is replayed from a CUDA graph too; against eager alone ours
is launched from Python. The baseline is the fastest of the forms that were measured."""


@dataclass(frozen=True)
class Bar:
    """One claim to hold.

    Attributes:
        what: "forward" or "inverse". against: the baseline, in words.
        dtype, batch: where. times: how many times faster than the baseline at least.
        forms: groups of baseline forms, of each of which one must have been measured.
        ours: the form of ours that the verdict goes by.
    """

    what: str
    against: str
    dtype: str
    batch: int
    times: float
    forms: tuple[tuple[str, ...], ...]
    ours: str


def _forward(dtype: str, batch: int, times: float) -> Bar:
    forms = (EAGER, COMPILED, REPLAY)
    return Bar("forward", "best of eager, compiled, graph", dtype, batch, times, forms, GRAPH)


def _inverse(batch: int, eager: float, graph: float) -> Iterator[Bar]:
    for dtype, tolerance in (("float32", "1e-5"), ("bfloat16", "1e-3")):
        what = f"inverse to {tolerance}"
        yield Bar(what, "eager", dtype, batch, eager, (EAGER_INVERSE,), PYTHON)
        yield Bar(what, "graph of eager", dtype, batch, graph, (REPLAY,), GRAPH)


BARS = (
    _forward("bfloat16", 256, 1.8),
    _forward("bfloat16", 1, 3),
    _forward("float32", 1, 3),
    *_inverse(1, eager=15, graph=5),
    *_inverse(256, eager=6, graph=3),
)


def show_bars(options: Options) -> None:
    """Prints the table, and keeps it as bars.md in --out."""
    text = report(options.out, kernel_sources())
    print(text)
    (options.out / "bars.md").write_text(text + "\n")


def report(folder: Path, sources: str) -> str:
    """One markdown table for each card with receipts in a folder.

    Args:
        folder: of the receipts; rehearsals do not count.
        sources: digest of today's kernels; receipts of others are named.
    """
    receipts: dict[str, dict[str, Any]] = {"no card": {}}
    for found in measured_receipts(folder, "*.json"):
        if "kernel_sources" in found:
            receipts.pop("no card", None)
            receipts.setdefault(found["device"], {})[found["what"]] = found
    parts = [_table(card, of_card, sources) for card, of_card in sorted(receipts.items())]
    return "\n\n".join([*parts, RULE])


def _table(card: str, receipts: dict[str, Any], sources: str) -> str:
    lines = [
        f"**{NETWORK} on {card}**",
        "",
        "| what | against | dtype | batch | bar | baseline "
        "| ours, from Python | ours, from a graph | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(bar, receipts) for bar in BARS]
    lines += [_sanitizer_line(tool, receipts) for tool in ("memcheck", "racecheck")]
    old = [what for what, found in sorted(receipts.items()) if found["kernel_sources"] != sources]
    if old:
        lines += ["", f"Measured with other kernels than today's: {', '.join(old)}."]
    return "\n".join(lines)


def _line(bar: Bar, receipts: dict[str, Any]) -> str:
    found = receipts.get(f"{bar.what.split()[0]}-{NETWORK}-{bar.dtype}", {"results": []})
    row: dict[str, Any] = next((r for r in found["results"] if r["batch"] == bar.batch), {})
    baseline = fastest(bar, row)
    cells = [
        bar.what, bar.against, bar.dtype, str(bar.batch), f"{bar.times:g}x",
        f"{row[baseline]:.4g} ({baseline})" if baseline else "unmeasured",
        *(_ours(form, row, baseline, bar) for form in (PYTHON, GRAPH)),
        verdict(bar, row),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def fastest(bar: Bar, row: dict[str, Any]) -> str | None:
    """The name of the fastest baseline that was measured."""
    measured = [name for group in bar.forms for name in group if row.get(name)]
    return min(measured, key=lambda name: float(row[name]), default=None)


def verdict(bar: Bar, row: dict[str, Any]) -> str:
    """ "met", "MISSED", or "unmeasured" with what is lacking.

    A bar is missed as soon as one baseline shows it; it is met only against all of them.
    """
    baseline, ours = fastest(bar, row), row.get(bar.ours)
    if not baseline or not ours:
        return "unmeasured"
    if row[baseline] / ours < bar.times:
        return "MISSED"
    lacking = [group[0] for group in bar.forms if not any(row.get(name) for name in group)]
    return f"unmeasured ({', '.join(lacking)} lacking)" if lacking else "met"


def _ours(form: str, row: dict[str, Any], baseline: str | None, bar: Bar) -> str:
    if not row.get(form):
        return "unmeasured"
    times = f", {row[baseline] / row[form]:.2f}x" if baseline else ""
    mark = "**" * (form == bar.ours)
    return f"{mark}{row[form]:.4g}{times}{mark}"


def _sanitizer_line(tool: str, receipts: dict[str, Any]) -> str:
    found = receipts.get("sanitizer", {"results": []})
    row = next((row for row in found["results"] if row["tool"] == tool), None)
    said = "unmeasured" if row is None else "; ".join(row["summary"]).replace("=", "").strip()
    judged = "unmeasured" if row is None else "met" if row["clean"] else "MISSED"
    return f"| {tool} | | float32, bfloat16 | 3 | clean | | {said} | | {judged} |"
