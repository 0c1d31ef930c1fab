"""A calibration as a file of its bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from codedinv.coding import Code
from codedinv.errors import BundleError
from codedinv.model.folder import add_files, is_calibrated
from codedinv.model.manifest import CONSISTENCY, Manifest
from codedinv.verification import Consistency


def consistency_file(consistency: Consistency) -> dict[str, bytes]:
    """The file's name and content."""
    from safetensors.numpy import save

    return {CONSISTENCY: save(consistency.to_arrays())}


def save_consistency(
    folder: Path, consistency: Consistency, calibration: Mapping[str, Any]
) -> None:
    """Writes a calibration into a bundle; nothing else of it is made anew.

    Args:
        folder: of the bundle.
        consistency: the check.
        calibration: how it was found, for the metadata; plain JSON values.

    Raises:
        BundleError: the bundle is damaged.
    """
    files = consistency_file(consistency)
    add_files(folder, files, {"consistency": dict(calibration)})


def load_consistency(folder: Path, manifest: Manifest) -> Consistency | None:
    """The calibration of a bundle, its files verified and its manifest read; None: it has none.

    Raises:
        BundleError: the file holds something else, or does not fit the bundle.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not is_calibrated(folder):
        return None
    path = folder / CONSISTENCY
    size = math.prod(manifest.embedding_shape)
    try:
        code = Code(np.array(manifest.code.coefficients, dtype=np.float64))
        consistency = Consistency.from_arrays(code, load_file(path))
    except (SafetensorError, KeyError, ValueError, IndexError) as error:
        raise BundleError(f"{path} does not hold a calibration: {error}") from error
    if consistency.mean.shape[1] != size:
        raise BundleError(
            f"{path}: expected {size} values per embedding, got {consistency.mean.shape[1]}"
        )
    return consistency
