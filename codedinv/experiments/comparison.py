"""The demo's table, made of its summary: for a terminal, and in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from codedinv.experiments.tally import LATE_S, QUANTILES

Run = Mapping[str, Any]
_GAP = "-"
_NOTEWORTHY = 0.1  # of the cores, at work for others


def rows(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Headings with a cell for each run, in the order of the summary's runs."""
    runs: list[Run] = list(summary["runs"].values())

    def row(heading: str, cell: Callable[[Run], str]) -> tuple[str, list[str]]:
        return heading, [cell(run) for run in runs]

    return [
        row("lost", lambda run: f"{run['lost']:,}"),
        row(f"late (over {1e3 * LATE_S:.0f} ms)", lambda run: f"{run['late']:,}"),
        *(
            row(f"latency {name}, ms", lambda run, name=name: _milliseconds(run, name))  # type: ignore[misc]
            for name in QUANTILES
        ),
        row("extra worker calls", lambda run: f"{run['extra_calls']['all']:.0%}"),
        row("extra front-end work", lambda run: _share(run["front_end"])),
        row("right, of all answers", lambda run: _percent(run["accuracy"].get("all"))),
        row("degraded answers", lambda run: f"{run['degraded']['count']:,}"),
        row("of these right", lambda run: _of_degraded(run, "right")),
        row("right, had they been exact", lambda run: _of_degraded(run, "exact_right")),
        *_by_light(runs),
    ]


def caption(summary: Mapping[str, Any]) -> list[str]:
    """Sentences without which the table would be misread."""
    k, n, queries = summary["k"], summary["n"], summary["queries"]
    beyond = queries - math.ceil(0.999 * (queries - 1)) - 1
    r = n - k
    lines = [
        f"Same {queries:,} arrivals, same images, same victims, same {summary['workers']} workers "
        f"in each column. Latency counts from the scheduled arrival{_beyond(beyond)}.",
        "Extra worker calls: backbone calls beyond one per query (copies, hedges, parity queries, "
        "what was sent again after a death, probes of a slow worker). Guided and Coded-InvNet "
        f"send r/k = {r / k:.0%} of parities or copies where every group needs them; a group whose "
        "queries are all answered before they are made sends none. Nor does replication copy a "
        "query that is answered by then.",
        "Extra front-end work: multiply-accumulates for each query, over one backbone call.",
        "Hedged: a second worker after the p95 of recent service times, for at most 5 % of the "
        "queries; a worker that is always slow gets queries only when the others are full.",
        "Degraded: not the backbone's own answer of that query. Below: how many of them are right, "
        "and how many exact answers, or the light model's alone, would have been.",
    ]
    others = [run["others_cores"] for run in summary["runs"].values()]
    if any(cores is not None and cores > _NOTEWORTHY * summary["cores"] for cores in others):
        each = ", ".join(f"{cores:.1f}" for cores in others)
        lines.append(
            f"Other processes kept {each} of {summary['cores']} cores busy during these runs: the "
            "tails are theirs too. Run it again on a quiet machine before you compare columns."
        )
    lines += [f"No column '{label}': {reason}." for label, reason in summary["omitted"].items()]
    return lines


def table(summary: Mapping[str, Any]) -> Table:
    """The table for a terminal of 80 columns or more."""
    found = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    found.add_column("")
    for label in summary["runs"]:
        first, _, rest = label.replace("-", "-\n", 1).replace(" ", "\n", 1).partition("\n")
        found.add_column(f"{first}\n{rest}", justify="right")
    for heading, cells in rows(summary):
        found.add_row(heading, *cells)
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """The table and its caption for a page of documentation."""
    labels = list(summary["runs"])
    lines = [
        "| | " + " | ".join(labels) + " |",
        "|---|" + "---:|" * len(labels),
        *("| " + " | ".join([heading, *cells]) + " |" for heading, cells in rows(summary)),
    ]
    return "\n".join([*lines, "", *caption(summary)])


def _beyond(count: int) -> str:
    """What stands behind the p99.9; nothing where the run is so short that it is the greatest."""
    return f"; of so many queries {count} took longer than the p99.9" if count else ""


def _by_light(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """The light model's row, of a model that has one."""
    cells = [_of_degraded(run, "light_right") for run in runs]
    return [("right by the light model", cells)] if set(cells) != {_GAP} else []


def _milliseconds(run: Run, name: str) -> str:
    latency = run["latency_ms"]
    return f"{latency[name]:.1f}" if name in latency else _GAP


def _share(share: float) -> str:
    return f"{share:.1%}" if share else _GAP


def _percent(value: float | None) -> str:
    return _GAP if value is None else f"{value:.1f} %"


def _of_degraded(run: Run, name: str) -> str:
    degraded = run["degraded"]
    return _GAP if not degraded["count"] or degraded[name] is None else f"{degraded[name]:,}"
