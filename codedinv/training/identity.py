"""What a training is of: its settings, its data and the networks it starts from, as plain JSON.

A checkpoint keeps it, so that a run is never continued with another recipe or other data in
silence; the message says what changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_SHOWN = 60  # characters of a value in a message


def tensor_print(*tensors: Tensor) -> str:
    """Shape, dtype and hash of tensors, as a short text: "60000x28x28 uint8 3f2a91c04b7d"."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    first = tensors[0]
    shape = "x".join(map(str, first.shape))
    return f"{shape} {str(first.dtype).removeprefix('torch.')} {digest.hexdigest()[:12]}"


def module_print(module: nn.Module) -> str:
    """Hash of a network's weights and buffers, as a short text."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_print(tensor).encode())
    return digest.hexdigest()[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two identities: "encoder.steps was 4000, is 8000", ..."""
    before, after = _flat(old), _flat(new)
    return [
        f"{key} was {_shown(before.get(key))}, is {_shown(after.get(key))}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": "1"}: values as JSON, so that tuples and lists compare alike."""
    if isinstance(value, Mapping):
        parts: dict[str, Any] = {}
        for key, inner in value.items():
            parts |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return parts
    return {prefix: json.dumps(value)}


def _shown(value: str | None) -> str:
    text = "absent" if value is None else value
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
