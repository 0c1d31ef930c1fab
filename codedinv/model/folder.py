"""A bundle as a folder: which files it has, how they are written and how they are verified.

Nothing is ever unpickled: weights are safetensors, networks are ONNX, the rest is JSON.
`bundle.json` carries size and SHA-256 of every other file and a checksum of itself, so a damaged
file is found before any of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codedinv.errors import BundleError
from codedinv.model.manifest import (
    CONSISTENCY,
    FORMAT,
    MANIFEST,
    SCHEMA_VERSION,
    WEIGHTS,
    FileEntry,
    Manifest,
    check_manifest,
)
from codedinv.model.names import check_name, check_task


def write_folder(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> dict[str, str]:
    """Writes a bundle so that the folder is never seen half written.

    All files go to a temporary folder beside the target, which is then renamed. An existing bundle
    is moved aside first and removed last; a crash between the two renames leaves it under
    `.<name>.replaced-*`.

    Returns:
        SHA-256 of every file by name, `bundle.json` included.

    Raises:
        ValueError: the folder exists and holds something that is not a bundle, or the metadata
            is not plain JSON.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"folder: {folder} exists and is no bundle; it is left as it is")
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = {**files, MANIFEST: _manifest_json(manifest, files)}
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in files.items():
            _write_file(temporary / name, content)
        temporary.chmod(0o755)  # mkdtemp's 0700 would keep a service's own user out
        if folder.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{folder.name}.replaced-", dir=folder.parent))
            os.rename(folder, replaced / folder.name)
            os.rename(temporary, folder)
            shutil.rmtree(replaced)
        else:
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def read_manifest(folder: Path) -> Manifest:
    """As `read_verified`, without the hashes."""
    return read_verified(folder)[0]


def read_verified(folder: Path) -> tuple[Manifest, dict[str, str]]:
    """Reads `bundle.json` and verifies every file of the bundle against it.

    Returns:
        The manifest, and SHA-256 of every file by name, `bundle.json` as it was read included.

    Raises:
        BundleError: not a bundle, another schema version, or a file that is missing or damaged;
            the message names the file.
    """
    path = folder / MANIFEST
    table, manifest, digest = _parse_manifest(path)
    hashes = {MANIFEST: digest}
    for name in manifest.file_names():
        if name not in table:
            raise BundleError(f"{path}: it has no entry for {name}, which its networks call for")
        _verify(folder / name, table[name])
        hashes[name] = table[name].sha256
    for name in _optional(table, manifest):
        _verify(folder / name, table[name])
        hashes[name] = table[name].sha256
    return manifest, hashes


def is_calibrated(folder: Path) -> bool:
    """Whether a bundle has a `consistency.safetensors` that its `bundle.json` knows of."""
    return CONSISTENCY in _parse_manifest(folder / MANIFEST)[0]


def add_files(folder: Path, added: Mapping[str, bytes], metadata: Mapping[str, Any]) -> None:
    """Adds files to a bundle, or replaces those of the same name; the others stay as they are.

    Args:
        folder: of the bundle.
        added: {file name: content}.
        metadata: entries that are added to the bundle's, or replace those of the same name.

    Raises:
        BundleError: the bundle is damaged.
    """
    manifest = read_manifest(folder)
    table = _parse_manifest(folder / MANIFEST)[0]
    files = {name: (folder / name).read_bytes() for name in table} | dict(added)
    updated = manifest.model_copy(update={"metadata": {**manifest.metadata, **metadata}})
    write_folder(folder, updated, files)


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a bundle, `bundle.json` included."""
    return {name: (folder / name).stat().st_size for name in file_names(folder)}


def file_names(folder: Path) -> list[str]:
    """The files that a bundle says it has, `bundle.json` first.

    Raises:
        BundleError: not a bundle, another schema version, or a damaged `bundle.json`.
    """
    table, manifest, _ = _parse_manifest(folder / MANIFEST)
    return [MANIFEST, *manifest.file_names(), *_optional(table, manifest)]


def _optional(table: Mapping[str, FileEntry], manifest: Manifest) -> list[str]:
    """Files that a bundle has though it need not; others in its table are none of ours."""
    needed = manifest.file_names()
    return [name for name in (CONSISTENCY, WEIGHTS) if name in table and name not in needed]


def _parse_manifest(path: Path) -> tuple[dict[str, FileEntry], Manifest, str]:
    """File table, manifest, and the SHA-256 of what was read."""
    if not path.is_file():
        raise BundleError(f"{path} is missing: {path.parent} is no codedinv bundle")
    text = path.read_bytes()
    try:
        content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} is damaged: not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f'{path} is no codedinv bundle: expected "format": "{FORMAT}"')
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}; this codedinv reads version {SCHEMA_VERSION}"
        )
    if content.pop("checksum", None) != _checksum(content):
        raise BundleError(f"{path} is damaged: its checksum does not match its content")
    try:
        table = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        del content["format"], content["schema_version"]
        manifest = Manifest(**content)
        _check_names(manifest, table)
        check_manifest(manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} does not follow schema {SCHEMA_VERSION}: {error}") from error
    return table, manifest, hashlib.sha256(text).hexdigest()


def _check_names(manifest: Manifest, table: Mapping[str, FileEntry]) -> None:
    """Refuses names that would lead out of the folder: anybody can write a `bundle.json`.

    Raises:
        ValueError: such a name, no task, or heads that are not those of the tasks.
    """
    check_name(manifest.name)
    for task in manifest.tasks:
        check_task(task)
    heads = manifest.architecture.heads
    if not manifest.tasks or set(manifest.tasks) != set(heads):
        raise ValueError(
            f"heads: expected one or more, one for each task, got tasks {list(manifest.tasks)} "
            f"and heads {list(heads)}"
        )
    for name in table:
        if name in ("", ".", "..") or not {"/", "\\", "\0"}.isdisjoint(name):
            raise ValueError(f"files: expected names of files in the folder, got {name!r}")


def _verify(path: Path, expected: FileEntry) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing from the bundle")
    size = path.stat().st_size
    if size != expected.bytes:
        raise BundleError(f"{path} is damaged: expected {expected.bytes} bytes, got {size}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected.sha256:
        raise BundleError(
            f"{path} is damaged: expected SHA-256 {expected.sha256[:12]}..., got {digest[:12]}..."
        )


def _manifest_json(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    format_first: dict[str, Any] = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    content = format_first | manifest.model_dump()
    content["files"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
    }
    try:
        # Through JSON once, so that the checksum is of what a reader will parse.
        content = json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: expected plain, finite JSON values ({error})") from error
    content["checksum"] = _checksum(content)
    return (json.dumps(content, indent=1) + "\n").encode()


def _checksum(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
