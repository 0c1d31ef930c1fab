"""Tensors that are made on one CUDA stream, kept, and used on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ready:
    """When and where tensors were filled.

    Attributes:
        stream: the CUDA stream that fills them. event: of the moment when it has.
    """

    stream: torch.cuda.Stream
    event: torch.cuda.Event


def capturing(device: torch.device) -> bool:
    """Whether work on a device now goes into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def mark(device: torch.device) -> Ready | None:
    """Remembers this moment of the current stream; None on the CPU and within a capture, where
    whoever may use the tensors is in the same graph."""
    if device.type != "cuda" or capturing(device):
        return None
    stream = torch.cuda.current_stream(device)
    return Ready(stream, stream.record_event())


def use(tensors: Sequence[Tensor], ready: Ready | None) -> None:
    """Makes the current stream wait until tensors are filled, and torch's allocator wait for the
    current stream before it reuses them. Nothing to do on the stream that filled them, nor in a
    capture: it may not wait for what is outside, and torch synchronises before it begins one."""
    if ready is None or torch.cuda.is_current_stream_capturing():
        return
    stream = torch.cuda.current_stream(tensors[0].device)
    if stream == ready.stream:
        return
    stream.wait_event(ready.event)
    for tensor in tensors:
        tensor.record_stream(stream)
