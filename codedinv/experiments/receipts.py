"""Receipts: a result with what is needed to believe it and to get it again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_VERSIONS_OF = ("codedinv", "numpy", "torch", "onnxruntime", "onnx")


def write_receipt(path: str | Path, command: str, result: dict[str, Any]) -> None:
    """Writes a result as JSON with command, device, versions, commit and time.

    Args:
        path: of the JSON file; its folders are made.
        command: the command line that gives the result again.
        result: plain JSON values.
    """
    path = Path(path)
    receipt = {"command": command, **circumstances(), "result": result}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(receipt, indent=1) + "\n")


def circumstances() -> dict[str, Any]:
    """Time, commit, device and versions of this process, as plain JSON values."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": {"cpu": _cpu_name(), "cores": os.cpu_count(), "machine": platform.machine()},
        "versions": {"python": platform.python_version(), **_versions()},
    }


def command_line() -> str:
    """The command line of this process, as one would type it."""
    return " ".join(["codedinv", *sys.argv[1:]])


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The checkout's commit, with "+changes" if tracked files differ; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+changes" if changed else head


def _git(root: Path, *arguments: str) -> str:
    finished = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
