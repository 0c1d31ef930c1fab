"""BackboneSpec: how a worker gets its backbone; small enough to travel as JSON."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Backbone = Callable[[Array], Array]  # (*input) -> (*embedding), one query at a time

BACKBONE_FILE = "backbone.onnx"


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone a worker runs.

    Attributes:
        folder: a bundle's folder.
        query_shape: of one query.
        embedding_shape: of one result.
        runtime: "onnx": folder/backbone.onnx with ONNX Runtime on one thread, without torch;
            "torch": the bundle's own modules; "auto": the first where onnxruntime is installed.
    """

    folder: str
    query_shape: tuple[int, ...]
    embedding_shape: tuple[int, ...]
    runtime: Literal["auto", "onnx", "torch"] = "auto"

    def to_json(self) -> str:
        """The spec as `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BackboneSpec:
        """Reads what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for name in ("query_shape", "embedding_shape"):
            values[name] = tuple(values[name])
        return cls(**values)

    def load(self) -> Backbone:
        """Loads the backbone into this process.

        Raises:
            Whatever the runtime raises for a file that is missing or damaged.
        """
        runtime = self.runtime
        if runtime == "auto":
            runtime = "onnx" if importlib.util.find_spec("onnxruntime") else "torch"
        return self._load_onnx() if runtime == "onnx" else self._load_torch()

    def _load_onnx(self) -> Backbone:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        # A spinning thread would take the core that the next worker needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(
            str(Path(self.folder) / BACKBONE_FILE), options, providers=["CPUExecutionProvider"]
        )
        (query,) = (i.name for i in session.get_inputs())

        def backbone(x: Array) -> Array:
            (result,) = session.run(None, {query: x[np.newaxis]})
            return np.asarray(result[0], np.float32)

        return backbone

    def _load_torch(self) -> Backbone:
        import torch

        from codedinv.bundle import CodedModel

        torch.set_num_threads(1)
        model = CodedModel.load(self.folder, runtime="torch")

        def backbone(x: Array) -> Array:
            return np.asarray(model.embed(x[np.newaxis])[0], np.float32)

        return backbone
