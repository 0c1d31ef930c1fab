"""Receipts of measurements on a card: written after each result, gone on from, read again."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import receipt
import torch

from codedinv.kernels import tuning

from .options import Options

REHEARSAL = "rehearsal"


def kernel_sources() -> str:
    """A digest of the kernels that this process imports."""
    folder = Path(tuning.__file__).parent
    files = [*sorted(folder.glob("*.py")), *sorted(folder.glob("cuda/*"))]
    content = b"".join(path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:12]


def adopted_tiles(card: str) -> str:
    """A digest of the tiles that measured.json has for a card."""
    path = tuning.MEASURED
    measured = json.loads(path.read_text()) if path.exists() else {}
    tiles = {key: entry.get("tuning") for key, entry in measured.get(card, {}).items()}
    tiles = {key: value for key, value in tiles.items() if value}
    return hashlib.sha256(json.dumps(tiles, sort_keys=True).encode()).hexdigest()[:12]


def driver() -> str | None:
    """The driver's version; None where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


class Receipt:
    """Results of one command, kept after each, so that a killed run loses one measurement.

    Goes on from the receipt of an earlier run if the kernels are the same.

    Args:
        what: name of the receipt.
        options: the command line.
        tuned: whether the results depend on the adopted tiles, which must then be the same too.
    """

    def __init__(self, what: str, options: Options, tuned: bool = True) -> None:
        self.what = what
        self.device = REHEARSAL if options.rehearse else torch.cuda.get_device_name()
        # Where write_receipt puts what it is given.
        receipt.FOLDER = options.out
        self._method = {
            "method": "medians of device events after warm-up, ms; checked in float64 first",
            "rehearsal": options.rehearse,
            "network": options.name,
            "dtype": options.dtype_name,
            "tf32": {
                "cudnn": torch.backends.cudnn.allow_tf32,
                "matmul": torch.backends.cuda.matmul.allow_tf32,
            },
            "driver": driver(),
            "kernel_sources": kernel_sources(),
            "adopted_tiles": adopted_tiles(self.device) if tuned else None,
        }
        self.results: list[dict[str, Any]] = []
        slug = "".join(c if c.isalnum() else "-" for c in self.device.lower()).strip("-")
        path = options.out / f"{what}-{slug}.json"
        if path.exists() and not options.again:
            before = json.loads(path.read_text())
            same = ("kernel_sources", "adopted_tiles")
            if all(before.get(key) == self._method[key] for key in same):
                self.results = before["results"]

    def has(self, **key: Any) -> bool:
        return any(key.items() <= result.items() for result in self.results)

    def add(self, result: dict[str, Any]) -> None:
        self.results.append(result)
        self.write(result)

    def write(self, changed: dict[str, Any]) -> None:
        """Writes the file, and says which of its results is new."""
        receipt.write_receipt(self.what, {**self._method, "results": self.results}, self.device)
        print(json.dumps(changed), flush=True)


def measured_receipts(folder: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """Receipts in a folder whose name matches, without those of rehearsals."""
    for path in sorted(folder.glob(pattern)):
        content = json.loads(path.read_text())
        if not content.get("rehearsal"):
            yield {**content, "file": path.name}
