"""Does what a bundle holds agree with what its `bundle.json` says?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.errors import BundleError
from codedinv.model.anchors import Anchors
from codedinv.model.manifest import BACKBONE, ENCODER, LIGHT, MANIFEST, Manifest, head_file
from codedinv.model.networks import Networks
from codedinv.model.runtimes import Network


def check_code(path: Path, manifest: Manifest) -> None:
    """Refuses a code from which nothing could be recovered.

    Raises:
        BundleError: some k rows of its generator are singular; the message names `path`.
    """
    try:
        Code(np.array(manifest.code.coefficients, dtype=np.float64))
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error


def check_networks(folder: Path, manifest: Manifest, anchors: Anchors, networks: Networks) -> None:
    """Runs each network of the front end once, on anchors, and compares with the manifest.

    The backbone is not run: it is the workers', and its results are checked as they come.

    Raises:
        BundleError: a network does not take what the manifest says, or answers in another shape;
            the message names its file, what `bundle.json` says and what came.
    """
    query, embedding, code = anchors.queries[:1], anchors.embeddings[:1], manifest.code
    for task, outputs in manifest.tasks.items():
        says = f"the task {task!r} has {outputs} outputs"
        file = BACKBONE if manifest.is_identity(task) else head_file(task)
        _check(folder / file, networks.heads[task], embedding, (1, outputs), says)
    if networks.light is not None:
        outputs = sum(manifest.tasks.values())
        says = f"all tasks together have {outputs} outputs"
        _check(folder / LIGHT, networks.light, query, (1, outputs), says)
    if networks.encoder is not None:
        group = np.repeat(query[:, None], code.k, axis=1)
        says = f"k = {code.k}, r = {code.r} and queries are {manifest.input_shape}"
        expected = (1, code.r, *manifest.input_shape)
        _check(folder / ENCODER, networks.encoder, group, expected, says)


def _check(
    path: Path, network: Network, x: NDArray[np.float32], expected: tuple[int, ...], says: str
) -> None:
    try:
        got = tuple(network(x).shape)
    except Exception as error:  # of ONNX Runtime or torch; they have no common base
        raise BundleError(
            f"{path}: {MANIFEST} says that {says}, but it does not take float32 {x.shape}: {error}"
        ) from error
    if got != expected:
        raise BundleError(f"{path}: {MANIFEST} says that {says}: expected {expected}, got {got}")
