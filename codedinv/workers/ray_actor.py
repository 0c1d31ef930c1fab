"""The Ray actor that runs backbones, and the parcel that brings it their files.

Imported where the actor runs, so without Ray itself.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from codedinv.errors import BundleError
from codedinv.model.runtimes import choose_runtime
from codedinv.workers.backbone import Array, Backbone, BackboneSpec, load_backbone
from codedinv.workers.faults import Faults, FaultyBackbones
from codedinv.workers.integrity import sha256

WATCH, CONTROL = "watch", "control"  # threads of an actor beside the one that does the tasks


@dataclass(frozen=True)
class Parcel:
    """A backbone with its files: another machine does not have the front end's folders.

    Attributes:
        spec: the backbone; its folder is the front end's.
        files: the content of each file that the spec has a hash of.
    """

    spec: BackboneSpec
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, spec: BackboneSpec) -> Parcel:
        """Reads the files.

        Raises:
            BundleError: one is missing, or not the one that was meant.
        """
        folder = Path(spec.folder)
        for name, expected in spec.hashes.items():
            got = sha256(folder / name)
            if got != expected:
                raise BundleError(
                    f"{name}: expected sha256 {expected}, got {got}; the bundle was replaced "
                    f"while it was served ({folder})"
                )
        return cls(spec, {name: (folder / name).read_bytes() for name in spec.hashes})

    def load(self) -> Backbone:
        """Loads the backbone from a copy of the files, which is verified, and runs it once.

        Raises:
            BundleError: the files are not the spec's.
            ValueError: the backbone gives another shape than the spec says.
        """
        with tempfile.TemporaryDirectory(prefix="codedinv-") as folder:
            for name, content in self.files.items():
                (Path(folder) / name).write_bytes(content)
            backbone = replace(self.spec, folder=folder).load()
        got = backbone(np.zeros((1, *self.spec.query_shape), np.float32)).shape
        if got != (1, *self.spec.embedding_shape):
            raise ValueError(f"expected embeddings {self.spec.embedding_shape}, got {got[1:]}")
        return backbone


class BackboneActor:
    """Does tasks one after the other; its other methods run beside them."""

    def __init__(self, parcels: Mapping[str, Parcel]) -> None:
        self._backbones = FaultyBackbones(
            {name: parcel.load() for name, parcel in parcels.items()},
            time.sleep,
            lambda: os._exit(1),
            lambda folder: load_backbone(folder, choose_runtime("auto")),
        )

    def ready(self) -> int:
        """Answers once the backbones are loaded, with the process id."""
        return os.getpid()

    def run(self, model: str, query: Array) -> Array:
        """One task: (*input) -> (*embedding)."""
        (result,) = self._backbones(model, query[np.newaxis])
        return np.asarray(result)

    def live(self) -> None:
        """Never returns: the one who waits for it is told of the actor's end by Ray."""
        threading.Event().wait()

    def set_faults(self, faults: Faults) -> None:
        """What goes wrong with the tasks that are not begun yet."""
        self._backbones.faults = faults
