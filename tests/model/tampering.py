"""Bundles changed as by somebody who writes one by hand: hashes and checksum fit again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes bundle.json and gives it a checksum that fits again."""
    path = folder / "bundle.json"
    content = json.loads(path.read_text())
    change(content)
    content.pop("checksum", None)
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["checksum"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(content))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Replaces a file and its entry, as someone would who builds a bundle by hand."""
    (folder / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    rewrite(folder, lambda manifest: manifest["files"].update({name: entry}))
