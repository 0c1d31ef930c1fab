"""Everything that can be measured without a GPU, in under ten minutes: `make bench`.

    python benchmarks/suite.py [PART ...]

Each part writes its receipt into build/bench, or the folder that BENCH_OUT names, and prints its
bars; the end is a table of all of them beside what the tracked receipts say. Exit code 0 only if
every part ran and every bar is met.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from receipt import FOLDER, ROOT, TRACKED, cpu_name, slug

PARTS = {
    "batches": [],
    "decoder": ["--trials", "4000"],
    "encoder": [],
    "frontend": [],
    "transport": [],
}
# It is this checkout that is measured, whatever is installed.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}


def run(part: str, arguments: list[str]) -> bool:
    """Runs a part; false: it could not write its receipt, whatever the bars are."""
    path = FOLDER / receipt_name(part)
    before = path.stat().st_mtime_ns if path.exists() else None
    print(f"\n# {part}", flush=True)
    program = [sys.executable, str(ROOT / "benchmarks" / f"{part}.py"), *arguments]
    subprocess.run(program, cwd=ROOT, env=os.environ | _ENVIRONMENT, check=False)
    return path.exists() and path.stat().st_mtime_ns != before


def receipt_name(part: str) -> str:
    """Of this machine."""
    return f"{part}-{slug(cpu_name())}.json"


def summary(
    now: dict[str, list[dict[str, Any]]], earlier: dict[str, list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The bars of all parts, each with what an earlier receipt had measured ("before")."""
    rows = []
    for part, bars in now.items():
        before = {bar["claim"]: bar["measured"] for bar in earlier.get(part, [])}
        rows += [{"part": part, **bar, "before": before.get(bar["claim"])} for bar in bars]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The same as text."""
    lines = [f"{'':6}  {'now':>9}  {'before':>9}  {'bar':>10}  claim"]
    for row in rows:
        verdict = "met" if row["met"] else "MISSED"
        before = "-" if row["before"] is None else row["before"]
        lines.append(
            f"{verdict:6}  {row['measured']:>9}  {before:>9}  {row['bar']:>10}  "
            f"{row['part']}: {row['claim']}"
        )
    return "\n".join(lines)


def _bars(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["bars"] if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"PART: expected one of {list(PARTS)}, got {sorted(unknown)}")
    # The tracked figures are read first: BENCH_OUT may be the folder that they are in.
    earlier = {part: _bars(TRACKED / receipt_name(part)) for part in parts}
    failed = [part for part in parts if not run(part, PARTS[part])]
    now = {part: _bars(FOLDER / receipt_name(part)) for part in parts if part not in failed}
    rows = summary(now, earlier)
    print("\n" + table(rows))
    for part in failed:
        print(f"{part}: it wrote no receipt")
    return 0 if not failed and all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
