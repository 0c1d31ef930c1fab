"""Anchors: stored queries that fill the free slots of a partial coding group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codedinv.errors import BundleError
from codedinv.model.manifest import Manifest


@dataclass(frozen=True)
class Anchors:
    """Stored queries that fill the free slots of a partial coding group at no worker's cost.

    Attributes:
        queries: float32 (A, *input), at least `least_anchors`.
        embeddings: float32 (A, *embedding), the backbone's results for them.
    """

    queries: NDArray[np.float32]
    embeddings: NDArray[np.float32]


def least_anchors(k: int, encoded: bool) -> int:
    """How many anchors a model must have at least.

    Those with an encoder fill partial groups with them, which miss up to k - 1 queries; to the
    others one shows what a query looks like.

    Args:
        k: queries in a group.
        encoded: the model has an encoder.
    """
    return max(k - 1, 1) if encoded else 1


def anchors_file(anchors: Anchors) -> bytes:
    """The content of their file."""
    from safetensors.numpy import save

    arrays = {"queries": anchors.queries, "embeddings": anchors.embeddings}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def load_anchors(path: Path, manifest: Manifest) -> Anchors:
    """Reads a bundle's anchors.

    Raises:
        BundleError: the file holds something else, or does not fit the bundle.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        anchors = Anchors(tensors["queries"], tensors["embeddings"])
    except (SafetensorError, KeyError) as error:
        raise BundleError(f"{path} does not hold anchors: {error}") from error
    shapes = (anchors.queries.shape[1:], anchors.embeddings.shape[1:])
    expected = (manifest.input_shape, manifest.embedding_shape)
    if shapes != expected:
        raise BundleError(
            f"{path}: expected queries and embeddings of the shapes {expected}, got {shapes}"
        )
    counts = len(anchors.queries), len(anchors.embeddings)
    least = least_anchors(manifest.code.k, manifest.architecture.encoder is not None)
    if counts[0] != counts[1] or counts[0] < least:
        raise BundleError(f"{path}: expected {least} anchors or more, got {counts}")
    for name, array in (("queries", anchors.queries), ("embeddings", anchors.embeddings)):
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise BundleError(f"{path}: {name}: expected finite float32 values, got {array.dtype}")
    return anchors
