"""Findings of tune, crossover and on_chip into measured.json, which the kernels go by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from codedinv.kernels import tuning

from .options import Options
from .receipts import kernel_sources, measured_receipts

MEASURED = Path(__file__).resolve().parents[2] / "kernels" / "measured.json"

Rows = list[dict[str, Any]]
# How a kernel is timed: from Python, and replayed from a graph.
FORMS = ("", "_graphed")


def adopt(options: Options) -> None:
    """Merges the receipts of --out into kernels/measured.json, and that of the package in use."""
    before = MEASURED.read_text()
    measured = json.loads(before)
    for pattern, merge in (
        ("tune-*.json", merge_tiles),
        ("crossover-*.json", merge_crossovers),
        ("on_chip-*.json", merge_on_chip),
    ):
        for receipt in measured_receipts(options.out, pattern):
            if receipt["kernel_sources"] != kernel_sources():
                print(f"{receipt['file']}: not adopted, it is of other kernels than these")
                continue
            card = measured.setdefault(receipt["device"], {})
            merge(card, receipt["results"], receipt["dtype"], receipt["file"])
            print(f"{receipt['file']}: adopted")
    if measured != json.loads(before):
        text = json.dumps(measured, indent=1, sort_keys=True) + "\n"
        for path in {MEASURED, tuning.MEASURED.resolve()}:
            path.write_text(text)


def merge_tiles(card: dict[str, Any], rows: Rows, dtype: str, file: str) -> None:
    """The fastest candidate of each kernel and stage into a card's entries."""
    kernels: dict[tuple[str, str], Rows] = {}
    for row in rows:
        if "ms" in row:
            kernels.setdefault((row["entry"], row["stage"]), []).append(row)
    for (entry, stage), timed in kernels.items():
        tiles = _adoptable(entry, timed)
        if tiles is not None:
            card.setdefault(f"{entry} {stage} {dtype}", {}).update(
                tuning=tiles, tuning_receipt=file
            )


def _adoptable(entry: str, timed: Rows) -> dict[str, int] | None:
    """The fields that an entry may fix.

    An entry replaces fields of the default at every batch it applies to. `of few` entries are
    measured at one image and apply to up to as many as the card has multiprocessors, where fewer
    programs are left for each image. So the number of bands is fixed only at 1, and otherwise
    tuning.bands_for keeps choosing: that another number was faster is said, and not adopted.
    """
    few = entry.endswith(" of few")
    usual = {1, *(row["tiles"]["bands"] for row in timed if row["default"])}
    best = min(timed, key=lambda row: row["ms"])
    if best["tiles"]["bands"] not in usual:
        print(f"{entry} {best['stage']}: fastest with {best['tiles']['bands']} bands; not adopted")
        timed = [row for row in timed if row["tiles"]["bands"] in usual]
        if not timed:
            return None
        best = min(timed, key=lambda row: row["ms"])
    tiles = dict(best["tiles"])
    if few:
        del tiles["images"]
    if not few or tiles["bands"] != 1:
        del tiles["bands"]
    return tiles


def merge_crossovers(card: dict[str, Any], rows: Rows, dtype: str, file: str) -> None:
    """The batches at which a kernel beat every measured form of torch into a card's entries."""
    won: dict[str, list[int]] = {}
    for row in rows:
        name = "forward" if row["kernel"] == "stage" else "inversion"
        batches = won.setdefault(f"{name} {row['stage']} {dtype}", [])
        torch_ms = [row[form] for form in ("eager", "eager_channels_last") if row[form]]
        if row["kernels"] and torch_ms and row["kernels"] < min(torch_ms):
            batches.append(row["batch"])
    for key, batches in won.items():
        faster = [[batch, batch] for batch in sorted(batches)]
        card.setdefault(key, {}).update(faster_at_batch=faster, receipt=file)


def merge_on_chip(card: dict[str, Any], rows: Rows, dtype: str, file: str) -> None:
    """The batches at which a kernel of kernels/cuda beat the Triton one, launched from Python and
    from a graph, into a card's entries."""
    won: dict[str, list[int]] = {}
    for row in rows:
        batches = won.setdefault(f"on_chip {row['kernel']} {row['stage']} {dtype}", [])
        if all(row.get(f"{name}{how}") for name in ("on_chip", "kernels") for how in FORMS) and all(
            row[f"on_chip{how}"] < row[f"kernels{how}"] for how in FORMS
        ):
            batches.append(row["batch"])
    for key, batches in won.items():
        faster = [[batch, batch] for batch in sorted(batches)]
        card.setdefault(key, {}).update(faster_at_batch=faster, receipt=file)
