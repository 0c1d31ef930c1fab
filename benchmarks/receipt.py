"""Receipts: one JSON file per measured claim, with all that is needed to judge and repeat it.

    from receipt import write_receipt
    write_receipt("decoder", {"bars": [...], "results": [...]}, device=cpu_name())

writes decoder-<device>.json into the folder that BENCH_OUT names, build/bench if it names none, and
returns its path. So a tracked receipt changes only where somebody means it to.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRACKED = ROOT / "benchmarks" / "receipts"
FOLDER = ROOT / os.environ.get("BENCH_OUT", "build/bench")
PACKAGES = ("codedinv", "numpy", "torch", "triton", "onnxruntime", "pybind11")


def cpu_name() -> str:
    """Model name of the processor, such as "AMD EPYC 9R14"."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def bar(claim: str, measured: float, limit: float, *, at_most: bool) -> dict[str, Any]:
    """One bar with its verdict; `at_most` says on which side of the limit it is met."""
    met = measured <= limit if at_most else measured >= limit
    relation = "<=" if at_most else ">="
    return {
        "claim": claim,
        "measured": round(measured, 4),
        "bar": f"{relation} {limit}",
        "met": met,
    }


def print_bars(bars: list[dict[str, Any]]) -> int:
    """Prints verdicts, and returns the exit code that they make: 0 if all are met."""
    for line in bars:
        verdict = "met   " if line["met"] else "MISSED"
        print(f"{verdict} {line['claim']}: {line['measured']} ({line['bar']})", flush=True)
    return 0 if all(line["met"] for line in bars) else 1


def slug(device: str) -> str:
    """A device's name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write_receipt(what: str, content: dict[str, Any], device: str) -> Path:
    """Writes `content` with machine, versions, command and commit to <what>-<device>.json."""
    path = FOLDER / f"{what}-{slug(device)}.json"
    FOLDER.mkdir(parents=True, exist_ok=True)
    receipt = {
        "what": what,
        "device": device,
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load_1min": round(os.getloadavg()[0], 2),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "command": " ".join(["python", *(_relative(a) for a in sys.argv)]),
        "commit": _commit(),
        "date": datetime.now(UTC).date().isoformat(),
        **content,
    }
    path.write_text(json.dumps(receipt, indent=2) + "\n")
    return path


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """HEAD, with "+" where tracked files that are no receipts differ from it; "" outside git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/receipts")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _relative(argument: str) -> str:
    """A path in this checkout from its root; of one elsewhere only that it is one."""
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "FOLDER"
