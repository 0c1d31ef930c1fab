"""Which files of a folder a runtime reads, and whether they are those that were meant.

A bundle may be replaced in place while it is served (a deploy does that). A worker that restarts
then must not answer with other weights than its peers and its front end have.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from codedinv.errors import BundleError

BACKBONE_FILE = "backbone.onnx"
ENCODER_FILE = "encoder.onnx"
_MANIFEST = "bundle.json"

# An ONNX tensor whose data are in another file has an entry with key (field 1) "location" and the
# file's name as value (field 2): found so, an onnx import (100 ms and 20 MB of every worker) is
# saved. A hit that is something else names no file of the folder.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])")


def files_read(
    folder: Path, runtime: Literal["onnx", "torch"], encodes: bool = False
) -> Iterator[str]:
    """Names of the files that a runtime reads from a folder; the one that names the others first.

    Args:
        folder: where they are.
        runtime: who reads them.
        encodes: the encoder too.

    Raises:
        BundleError: the runtime is torch, and the folder no bundle.
    """
    if runtime == "torch":
        yield _MANIFEST
        from codedinv.model.folder import file_names

        yield from (name for name in file_names(folder) if name != _MANIFEST)
    else:
        yield BACKBONE_FILE
        yield from _external_data(folder, BACKBONE_FILE)
        if encodes:
            yield ENCODER_FILE
            yield from _external_data(folder, ENCODER_FILE)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal.

    Raises:
        BundleError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing") from error


def content_hash(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """One hash for a backbone's ONNX graph and the files with weights that it refers to: that of
    the graph where it has all its weights in it.

    Args:
        folder: where they are.
        hashes: SHA-256 of files by name, others too.

    Returns:
        None: not all of them are among `hashes`.
    """
    names = list(files_read(folder, "onnx"))
    if not all(name in hashes for name in names):
        return None
    if len(names) == 1:
        return hashes[names[0]]
    lines = "".join(f"{hashes[name]}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def verified(
    folder: Path,
    runtime: Literal["onnx", "torch"],
    hashes: Mapping[str, str],
    encodes: bool = False,
) -> Iterator[None]:
    """Whatever the runtime reads within has the SHA-256 that `hashes` says, by file name.

    Args:
        folder, runtime, encodes: as of `files_read`.
        hashes: SHA-256 of files by name, others too.

    Raises:
        BundleError: a file is missing, has no hash or another one, or was replaced after it was
            verified; the message names it.
    """
    stamps: dict[str, tuple[int, ...]] = {}
    for name in files_read(folder, runtime, encodes):
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{path} is missing")
        stamps[name] = _stamp(path)
        expected, got = hashes.get(name, "none"), sha256(path)
        if got != expected:
            raise BundleError(
                f"{name}: expected sha256 {expected}, got {got}; "
                f"the bundle was replaced while it was served ({folder})"
            )
    yield
    for name, stamp in stamps.items():
        path = folder / name
        if not path.is_file() or _stamp(path) != stamp:
            raise BundleError(f"{name}: replaced while it was loaded ({folder})")


def _external_data(folder: Path, name: str) -> list[str]:
    """Files that hold tensors of an ONNX file."""
    path = folder / name
    if not path.is_file() or not path.stat().st_size:
        return []
    names: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in _LOCATION.finditer(content):
            size = sum((byte & 0x7F) << (7 * i) for i, byte in enumerate(match[1]))
            names.add(content[match.end() : match.end() + size].decode(errors="replace"))
    return sorted(name for name in names if "\0" not in name and (folder / name).is_file())


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes when a file is replaced or written to."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
