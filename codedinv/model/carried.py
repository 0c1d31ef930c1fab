"""The files of a model that is saved as it is: its ONNX graphs are not made anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codedinv.errors import BundleError
from codedinv.model.anchors import Anchors, anchors_file
from codedinv.model.manifest import ANCHORS, WEIGHTS, Manifest
from codedinv.model.onnx_files import need_onnx


def carried_files(
    manifest: Manifest,
    anchors: Anchors,
    contents: Mapping[str, bytes],
    folder: Path | None,
    hashes: Mapping[str, str],
    shared_weights: bool,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What `CodedModel.save` writes of a model whose networks torch cannot rebuild.

    Args:
        manifest, anchors: of the model.
        contents: ONNX files by name, of a model that has no folder.
        folder, hashes: where the others are, and what they were when the model was loaded.
        shared_weights: the ONNX files are to refer to weights.safetensors.

    Returns:
        {file name: content}, and what is to be said of them in the metadata.

    Raises:
        BundleError: a file is missing or another than when the model was loaded.
        ValueError: the weights are to be shared, and no file has them.
        MissingExtra: the package onnx is not installed.
    """
    names = manifest.onnx_files()
    if folder is None:
        files = {name: contents[name] for name in names}
    else:
        need_onnx()
        from codedinv.model.shared_weights import with_own_weights

        present = [*names, *([WEIGHTS] if WEIGHTS in hashes else [])]
        files = {name: _read(folder / name, hashes[name]) for name in present}
        files |= {name: with_own_weights(files[name], folder) for name in names}
    if shared_weights:
        if WEIGHTS not in files:
            raise ValueError(f"shared_weights: the model has ONNX graphs alone, and no {WEIGHTS}")
        from codedinv.model.shared_weights import with_shared_weights

        weights = files[WEIGHTS]
        files |= {name: with_shared_weights(files[name], weights, WEIGHTS) for name in names}
    elif WEIGHTS not in manifest.file_names():
        files.pop(WEIGHTS, None)  # nothing refers to it any more
    files[ANCHORS] = anchors_file(anchors)
    return files, {**(manifest.metadata.get("onnx") or {}), "shared_weights": shared_weights}


def _read(path: Path, expected: str) -> bytes:
    if not path.is_file():
        raise BundleError(f"{path} is missing from the bundle")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise BundleError(f"{path} is damaged, or was replaced since the model was loaded")
    return content
