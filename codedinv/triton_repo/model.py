"""The backbone under Triton's Python backend: by ONNX Runtime where this Python has it, else by
NumPy. Copied into model folders as it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

QUERY, EMBEDDING = "query", "embedding"
ONNX_FILE, NUMPY_FILE = "backbone.onnx", "backbone.npz"


class TritonPythonModel:
    """What Triton makes of this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the backbone, from the files that the configuration has the hashes of."""
        folder = Path(args["model_repository"]) / args["model_version"]
        parameters = json.loads(args["model_config"])["parameters"]
        try:
            import onnxruntime
        except ImportError:
            _check(folder / NUMPY_FILE, parameters["codedinv_numpy_sha256"]["string_value"])
            from numpy_graph import NumpyGraph

            self._backbone: Any = NumpyGraph(str(folder / NUMPY_FILE))
            runtime = "NumPy"
        else:
            _check(folder / ONNX_FILE, parameters["codedinv_onnx_sha256"]["string_value"])
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = int(parameters["threads"]["string_value"])
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            providers = onnxruntime.get_available_providers()
            path = str(folder / ONNX_FILE)
            session = onnxruntime.InferenceSession(path, options, providers=providers)
            self._backbone = lambda queries: session.run(None, {QUERY: queries})[0]
            runtime = f"ONNX Runtime, {session.get_providers()[0]}"
        pb_utils.Logger.log_info(f"{args['model_name']}: backbone on {runtime}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request; one that fails harms no other."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            queries = pb_utils.get_input_tensor_by_name(request, QUERY).as_numpy()
            embeddings = np.ascontiguousarray(self._backbone(queries), np.float32)
        except Exception as error:  # told to the one who asked
            reason = f"{type(error).__name__}: {error}"
            return pb_utils.InferenceResponse([], error=pb_utils.TritonError(reason))
        return pb_utils.InferenceResponse([pb_utils.Tensor(EMBEDDING, embeddings)])


def _check(path: Path, expected: str) -> None:
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != expected:
        raise ValueError(f"{path.name}: expected sha256 {expected}, got {got}")
