"""Findings of tune, crossover and on_chip into measured.json, which the kernels go by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from codedinv.kernels import tuning
from codedinv.kernels.versions import DECIDING

from .crossover import FORMS
from .options import Options
from .receipts import kernel_sources, measured_receipts

MEASURED = Path(__file__).resolve().parents[2] / "kernels" / "measured.json"

Rows = list[dict[str, Any]]
# How a kernel is timed: from Python, and replayed from a graph.
LAUNCHES = ("", "_graphed")


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
            merge(card, receipt["results"], receipt["dtype"], source_of(receipt))
            print(f"{receipt['file']}: adopted")
    if measured != json.loads(before):
        text = json.dumps(measured, indent=1, sort_keys=True) + "\n"
        for path in {MEASURED, tuning.MEASURED.resolve()}:
            path.write_text(text)


@dataclass(frozen=True)
class Source:
    """Where a finding is from: the receipt's file, and the versions it was measured with."""

    file: str
    versions: dict[str, str | None]


def source_of(receipt: dict[str, Any]) -> Source:
    """Torch and Triton, by which an entry is used or not, and the driver, for the reader."""
    found = receipt["versions"]
    versions = {name: found.get(name) for name in DECIDING}
    return Source(receipt["file"], {**versions, "driver": receipt.get("driver")})


def merge_tiles(card: dict[str, Any], rows: Rows, dtype: str, source: Source) -> None:
    """The fastest candidate of each kernel and stage into a card's entries."""
    kernels: dict[tuple[str, str], Rows] = {}
    for row in rows:
        if "ms" in row:
            kernels.setdefault((row["entry"], row["stage"]), []).append(row)
    for (entry, stage), timed in kernels.items():
        tiles = _adoptable(entry, timed)
        if tiles is not None:
            of_these_versions(card, f"{entry} {stage} {dtype}", source).update(
                tuning=tiles, tuning_receipt=source.file
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


def merge_crossovers(card: dict[str, Any], rows: Rows, dtype: str, source: Source) -> None:
    """Times of a kernel and of the best form of torch at each batch into a card's entries.

    A batch counts only if every form was tried there; one that failed lost, ours too: its time is
    null, or batches around it would speak for it. Ours is launched from Python, as `auto` does,
    also against graphs.
    """
    found: dict[str, Rows] = {}
    for row in rows:
        name = "forward" if row["kernel"] == "stage" else "inversion"
        times = found.setdefault(f"{name} {row['stage']} {dtype}", [])
        forms = FORMS[row["kernel"]]
        lacking = [form for form in forms if form not in row]
        tried = {form: row[form] for form in forms if row.get(form)}
        if lacking or not tried:
            print(f"{row['kernel']} {row['stage']} at {row['batch']}: lacks {lacking or 'torch'}")
        else:
            best = min(tried, key=lambda form: float(tried[form]))
            times.append(
                {"batch": row["batch"], "ours": row["kernels"], "other": tried[best], "form": best}
            )
    keep_times(card, found, source)


def merge_on_chip(card: dict[str, Any], rows: Rows, dtype: str, source: Source) -> None:
    """Times of a kernel of kernels/cuda and of the Triton one at each batch into a card's entries:
    those from Python or those from a graph, whichever say less for it; null where it failed."""
    found: dict[str, Rows] = {}
    for row in rows:
        times = found.setdefault(f"on_chip {row['kernel']} {row['stage']} {dtype}", [])
        if all(row.get(f"{name}{how}") for name in ("on_chip", "kernels") for how in LAUNCHES):
            how = min(LAUNCHES, key=lambda how: row[f"kernels{how}"] / row[f"on_chip{how}"])
            ours, other = row[f"on_chip{how}"], row[f"kernels{how}"]
            form = f"kernels{how}"
            times.append({"batch": row["batch"], "ours": ours, "other": other, "form": form})
        elif any(f"on_chip{how}" in row and not row[f"on_chip{how}"] for how in LAUNCHES):
            times.append({"batch": row["batch"], "ours": None, "other": row.get("kernels")})
    keep_times(card, found, source)


def keep_times(card: dict[str, Any], found: dict[str, Rows], source: Source) -> None:
    """Times by entry into a card's entries, in the order of batches."""
    for key, times in found.items():
        times.sort(key=lambda row: row["batch"])
        of_these_versions(card, key, source).update(times=times, receipt=source.file)


def of_these_versions(card: dict[str, Any], key: str, source: Source) -> dict[str, Any]:
    """A card's entry, without what other versions found."""
    entry = card.setdefault(key, {})
    if entry.get("versions") != source.versions:
        entry.clear()
        entry["versions"] = source.versions
    return cast("dict[str, Any]", entry)
