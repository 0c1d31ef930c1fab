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
        queries: float32 (A, *input), A >= k - 1.
        embeddings: float32 (A, *embedding), the backbone's results for them.
    """

    queries: NDArray[np.float32]
    embeddings: NDArray[np.float32]


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
    if shapes != (manifest.input_shape, manifest.embedding_shape) or len(anchors.queries) != len(
        anchors.embeddings
    ):
        raise BundleError(f"{path}: its shapes {shapes} do not fit the bundle's")
    return anchors
