"""ONNX files that refer to a safetensors file for their weights, and back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model

_SMALLEST_SHARED = 1024  # bytes; a reference itself takes about 80


def with_shared_weights(content: bytes, safetensors: bytes, location: str) -> bytes:
    """Lets an ONNX file refer to a safetensors file for the weights that both hold.

    Both formats store plain little-endian numbers, so ONNX's external data can point into the other
    file; a weight is found there by its bytes. Runtimes load such a file by its path, with the
    safetensors file beside it.

    Args:
        content: of an ONNX file.
        safetensors: content of the safetensors file.
        location: its name.

    Returns:
        The smaller ONNX file. Weights that the other lacks, and small ones, stay inside.
    """
    header_size = int.from_bytes(safetensors[:8], "little")
    offsets = {}
    for name, entry in json.loads(safetensors[8 : 8 + header_size]).items():
        if name != "__metadata__":
            start, end = (8 + header_size + offset for offset in entry["data_offsets"])
            offsets[hashlib.sha256(safetensors[start:end]).digest()] = start
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        start = offsets.get(hashlib.sha256(tensor.raw_data).digest())
        if start is None or len(tensor.raw_data) < _SMALLEST_SHARED:
            continue
        entries = {"location": location, "offset": start, "length": len(tensor.raw_data)}
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
    return bytes(model.SerializeToString())


def with_own_weights(content: bytes, folder: Path) -> bytes:
    """Takes the weights that an ONNX file refers to into it.

    Args:
        content: of the ONNX file.
        folder: where the files with the weights are.
    """
    model = onnx.load_from_string(content)
    if not any(tensor.external_data for tensor in model.graph.initializer):
        return content
    load_external_data_for_model(model, str(folder))
    return bytes(model.SerializeToString())
