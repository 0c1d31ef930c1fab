"""Where a training runs."""

from __future__ import annotations

import torch


def check_device(device: str) -> str:
    """The device as it was given, if there is one like it.

    Raises:
        ValueError: it is neither "cpu" nor "cuda", or torch finds no CUDA device.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: torch finds no CUDA device here")
    return device
