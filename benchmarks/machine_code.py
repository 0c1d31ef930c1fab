"""Counts of the kernels' machine code for an H200, and the times that a model makes of them.

    python benchmarks/machine_code.py [--before COMMIT]

Needs no GPU. Compiles the variants that the bars of docs/kernels.md run, counts what their programs
issue for a block and an iteration (machine/), writes machine-code-sm-90.json, and prints the tables
of docs/kernels.md. --before does the same with the kernels of another commit, to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from machine.predictions import NETWORK, pieces, predictions
from receipt import ROOT, write_receipt

from codedinv.kernels import reference, testing

DTYPES = ("bfloat16", "float32")
KERNELS = ("stage", "stage of few", "inversion", "inversion of few")
TOLERANCE = {"bfloat16": 1e-3, "float32": 1e-5}
SHOWN = ("issued", "matrix", "fp32", "integer", "barrier")


def wanted() -> list[str]:
    """Every variant that the bars run, as KERNEL:STAGE:DTYPE."""
    return [
        f"{kernel}:{stage}:{dtype}"
        for kernel in KERNELS for stage, _ in NETWORK.stages for dtype in DTYPES
    ]  # fmt: skip


def counted(package: Path) -> dict[str, dict[str, Any]]:
    """Counts by variant, of the codedinv.kernels in a folder."""
    paths = [str(package), str(ROOT / "benchmarks")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "machine.kernels", *wanted()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE, text=True, check=True, cwd=package,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["variant"]: row for row in rows}


def counted_at(commit: str) -> dict[str, dict[str, Any]]:
    """Counts of the kernels of a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "kernels"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder)
        (package / "codedinv").mkdir()
        (package / "codedinv" / "__init__.py").touch()
        with tarfile.open(fileobj=BytesIO(archive)) as content:
            content.extractall(package / "codedinv", filter="data")
        return counted(package)


def iterations_of(dtype: str) -> int:
    """Iterations of a block of the bars' networks, the largest of three stages, by the oracle.
    bfloat16 is iterated in float32, as the kernels do."""
    torch.manual_seed(0)
    most = 0
    for stage, _ in NETWORK.stages:
        blocks = testing.cast(testing.draw_blocks(stage, 2), torch.float32)
        y = reference.residual_blocks(testing.draw_images(stage, 4).float(), blocks)
        most = max(most, int(reference.invert(y, blocks, TOLERANCE[dtype], 100)[1].max()))
    return most


def per_step(counts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Microseconds of a block (forward) or an iteration (inverse), at batch 1 and 256."""
    rows = []
    for dtype in DTYPES:
        for stage, _ in NETWORK.stages:
            for kernel, part in (("stage", "block"), ("inversion", "iteration")):
                for batch in (1, 256):
                    found, times = pieces(counts, kernel, stage, dtype, batch)
                    us, limit = times[part]
                    rows.append(
                        {"kernel": kernel, "stage": str(stage), "dtype": dtype, "batch": batch,
                         "warp instructions": round(found[part]["issued"]),
                         "us": [round(us.low, 2), round(us.high, 2)], "limit": limit}
                    )  # fmt: skip
    return rows


def steps_table(content: dict[str, Any]) -> str:
    """The receipt's microseconds as markdown."""
    lines = [
        "| us on an H200, predicted | forward, a block, B = 1 | B = 256 "
        "| inverse, an iteration, B = 1 | B = 256 | limit at B = 256 |",
        "|---|---|---|---|---|---|",
    ]
    cells: dict[tuple[str, str], list[Any]] = {}
    for row in content["steps"]:
        cells.setdefault((row["stage"], row["dtype"]), []).append(row)
    for (stage, dtype), rows in cells.items():
        times = [f"{_short(row['us'])}" for row in rows]
        lines.append(f"| {stage} {dtype} | {' | '.join(times)} | {rows[-1]['limit']} |")
    return "\n".join(lines)


def bars_table(content: dict[str, Any]) -> str:
    """The receipt's bars as markdown."""
    lines = [
        "| bar | dtype | B | at least | baseline, predicted ms | ours, predicted ms "
        "| times, predicted | met? | what limits ours | measured |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["bars"]:
        lines.append(
            f"| {row['what']}, against {row['against']} | {row['dtype']} | {row['batch']} "
            f"| {row['bar']:g}x | {_short([us / 1e3 for us in row['baseline_us']])} "
            f"({row['baseline']}) | {_short([us / 1e3 for us in row['ours_us']])} "
            f"| {_short(row['times'])} | {row['met']} | {row['limits']} | unmeasured |"
        )
    return "\n".join(lines)


def compared_table(content: dict[str, Any]) -> str:
    """Counts before and after as markdown, of inversions."""
    lines = [
        f"| for one image and iteration, {content['before']} -> now | warp instructions "
        "| matrix | barriers | KB from and to L1 or L2 | KB of shared memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["compared"]:
        if not row["variant"].startswith("inversion"):
            continue
        ways = zip(*(row[f"bytes {how}"] for how in ("loaded", "copied", "stored")), strict=True)
        moved, shared = _kb([sum(way) for way in ways]), _kb(row["bytes shared"])
        shown = (row["issued"], row["matrix"], row["barrier"], moved, shared)
        cells = [_change(pair) for pair in shown]
        lines.append(f"| {row['variant'].removeprefix('inversion ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kb(pair: list[int]) -> list[int]:
    return [round(number / 1024) for number in pair]


def _change(pair: list[int]) -> str:
    return f"{pair[0]:,}" if pair[0] == pair[1] else f"{pair[0]:,} -> {pair[1]:,}"


def _short(pair: list[float]) -> str:
    return " to ".join(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in pair)


def compared(now: dict[str, Any], before: dict[str, Any]) -> list[dict[str, Any]]:
    """Counts of all warps of a program for one image, of a block or an iteration, both times."""
    rows = []
    for variant, new in now.items():
        old = before[variant]
        part = "block" if variant.startswith("stage") else "iteration"
        row: dict[str, Any] = {"variant": variant}
        for name in (*SHOWN, "bytes loaded", "bytes copied", "bytes stored", "bytes shared"):
            row[name] = [
                round(found[part].get(name, 0) * found["warps"] * found["bands"] / found["images"])
                for found in (old, new)
            ]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", metavar="COMMIT", help="also count the kernels of this commit")
    options = parser.parse_args()
    counts = counted(ROOT)
    runs = {dtype: iterations_of(dtype) for dtype in DTYPES}
    content: dict[str, Any] = {
        "method": "counts of SASS by source loops; times by machine/model.py, none measured",
        "iterations": runs,
        "bars": [prediction.row() for prediction in predictions(counts, runs)],
        "steps": per_step(counts),
        "counts": list(counts.values()),
    }
    if options.before:
        content |= {
            "before": options.before,
            "compared": compared(counts, counted_at(options.before)),
        }
    write_receipt("machine-code", content, "sm_90")
    print(steps_table(content), bars_table(content), sep="\n\n")
    if options.before:
        print("\n" + compared_table(content))


if __name__ == "__main__":
    main()
