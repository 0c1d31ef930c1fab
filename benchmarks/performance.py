"""The tables of docs/performance.md, from tracked receipts: `python benchmarks/performance.py`.

Only ratios of one run are published, and the two times that a front end is judged by: what it adds
to a query's median and p99.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from receipt import ROOT, TRACKED

PAGE = ROOT / "docs" / "performance.md"
_MARK = "<!-- {}: written by python benchmarks/performance.py -->\n"
_END = "<!-- end of {} -->"


def page(text: str, folder: Path = TRACKED) -> str:
    """The page with every table as the receipts in a folder say.

    Raises:
        ValueError: the page has no place for a table, or a receipt is missing.
    """
    tables_of = {
        "frontend": frontend, "batches": batches, "encoder": encoder,
        "formulations": formulations, "transport": transport, "decoder": decoder,
    }  # fmt: skip
    for name, write in tables_of.items():
        paths = sorted(folder.glob(f"{name}-*.json"))
        if not paths:
            raise ValueError(f"{folder}: expected a receipt {name}-*.json: make bench-receipts")
        tables = [_headed(receipt, write(receipt)) for receipt in map(_read, paths)]
        text = _replaced(text, name, "\n\n".join(tables))
    return text


def frontend(receipt: dict[str, Any]) -> str:
    """What a query costs the front end."""
    lines = [
        "| in_flight | scheme | parent CPU | throughput | added to the median | added to the p99 |",
        "|---|---|---|---|---|---|",
    ]
    for row in receipt["rows"]:
        for way, of in row["ways"].items():
            lines.append(
                f"| {row['in_flight']} | {way} | {of['cpu_over_bare']:.1f}x "
                f"| {of['throughput_over_bare']:.2f}x | {of['added_us_p50'] / 1e3:.2f} ms "
                f"| {of['added_us_p99'] / 1e3:.1f} ms |"
            )
    return "\n".join(lines)


def batches(receipt: dict[str, Any]) -> str:
    """Workers that take several queries at once, over workers that take one; then coding."""
    of = receipt["batches"]
    lines = [
        f"| workers | throughput at saturation | p50 at {of['load']} of it | p99 |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {way} | {row['throughput']:.2f}x | {row['p50']:.2f}x | {row['p99']:.2f}x |"
        for way, row in of["ways"].items()
    ]
    lines += ["", "| k = 10, at saturation | over uncoded |", "|---|---|"]
    lines += [
        f"| max_batch {row['max_batch']} | {row['throughput_over_uncoded']:.2f}x |"
        for row in receipt["coding"]
    ]
    return "\n".join(lines)


def encoder(receipt: dict[str, Any]) -> str:
    """A call of the encoder over a call of the backbone."""
    batches = sorted({row["batch"] for row in receipt["rows"]})
    lines = [
        "| runtime | k | "
        + " | ".join(f"batch {batch}" for batch in batches)
        + " | per query, largest batch | head |",
        "|---|---|" + "---|" * (len(batches) + 2),
    ]
    cells: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in receipt["rows"]:
        cells.setdefault((row["runtime"], row["k"]), {})[row["batch"]] = row
    for (runtime, k), by_batch in cells.items():
        last = by_batch[batches[-1]]
        ratios = " | ".join(f"{by_batch[b]['encoder_over_backbone']:.1%}" for b in batches)
        lines.append(
            f"| {runtime} | {k} | {ratios} | {last['per_query']:.2%} "
            f"| {last['head_over_backbone']:.1%} |"
        )
    lines += [f"\nNot measured: {what}: {why}" for what, why in receipt["not_measured"].items()]
    return "\n".join(lines)


def formulations(receipt: dict[str, Any]) -> str:
    """Encoders of other layers: time and multiply-accumulates over the backbone's."""
    names = list(dict.fromkeys(row["encoder"] for row in receipt["rows"]))
    of = {(row["encoder"], row["k"]): row for row in receipt["rows"]}
    ks = sorted({row["k"] for row in receipt["rows"]})
    lines = [
        "| encoder | " + " | ".join(f"k = {k}: time | MACs" for k in ks) + " |",
        "|---|" + "---|---|" * len(ks),
    ]
    for name in names:
        cells = [
            f"{of[name, k]['encoder_over_backbone']:.1%} | {of[name, k]['macs_over_backbone']:.1%}"
            for k in ks
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def transport(receipt: dict[str, Any]) -> str:
    """A round trip over a pipe's."""
    lines = ["| float32 values | median | p99 |", "|---|---|---|"]
    lines += [
        f"| {row['values_fp32']:,} | {row['pool_over_pipe_p50']:.2f}x "
        f"| {row['pool_over_pipe_p99']:.2f}x |"
        for row in receipt["rows"]
    ]
    return "\n".join(lines)


def decoder(receipt: dict[str, Any]) -> str:
    """A push of a large row over torch's axpy of the same, and the memory's triad over it."""
    lines = [
        "| float32 values | push over `add_` | unchecked push over `add_` | triad over push |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['elements_fp32']:,} | {row['push_over_add_']:.2f}x "
        f"| {row['unchecked_over_add_']:.2f}x | {row['triad_over_push']:.2f}x |"
        for row in receipt["large_rows"]
    ]
    return "\n".join(lines)


def _headed(receipt: dict[str, Any], table: str) -> str:
    machine = receipt["machine"]
    verdicts = "\n".join(
        f"- {'met' if bar['met'] else '**missed**'}: {bar['claim']}: {bar['measured']:.3g} "
        f"({bar['bar']})"
        for bar in receipt["bars"]
    )
    return (
        f"{receipt['device']}, {machine['cores']} cores, load {machine['load_1min']:.0f} at the "
        f"end, commit {receipt['commit'][:12]}, {receipt['date']}:\n\n{table}\n\n{verdicts}"
    ).rstrip()


def _replaced(text: str, name: str, table: str) -> str:
    begin, end = _MARK.format(name), _END.format(name)
    if begin not in text or end not in text:
        raise ValueError(f"text: expected the lines {begin.strip()!r} and {end!r}")
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{begin}{table}\n{end}", text, flags=re.DOTALL)


def _read(path: Path) -> dict[str, Any]:
    receipt: dict[str, Any] = json.loads(path.read_text())
    return receipt


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
