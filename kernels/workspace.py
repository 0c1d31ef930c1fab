"""Scratch memory of the kernels: one block for each stream, kept between launches."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Plan

# A view begins where any vector load may.
ALIGNMENT = 256
# A batch size more costs one entry.
MOST_VIEWS = 4096

Place = tuple[torch.device, int]


class Workspace:
    """Scratch memory that the launches of a stream take turns with.

    A stream runs its launches one after another, so all kernels and all prepared blocks share one
    block of memory on it, which grows to what the largest of them needs. A block that was outgrown
    goes back to torch's allocator, which hands it to later work of the same stream only.

    A CUDA graph gets scratch from its own pool at capture, for it may be replayed on any stream.
    """

    def __init__(self) -> None:
        self._memory: dict[Place, Tensor] = {}
        self._counters: dict[Place, Tensor] = {}
        self._views: dict[tuple[Place, Plan], list[Tensor]] = {}

    def get(self, device: torch.device, plan: Plan) -> list[Tensor]:
        """Scratch for a launch on the current stream, in the order kernels take it: images,
        activated, partial, inner, counters, sums. The counters are zero, as the kernels leave
        them; the rest holds anything."""
        stream = 0
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return _views(_bytes(device, plan), _zeros(device, plan.groups), plan)
            stream = torch.cuda.current_stream(device).cuda_stream
        place = device, stream
        views = self._views.get((place, plan))
        if views is None:
            views = self._carve(place, plan)
        return views

    def clear(self) -> None:
        """Gives all memory back."""
        self._memory.clear()
        self._counters.clear()
        self._views.clear()

    def _carve(self, place: Place, plan: Plan) -> list[Tensor]:
        memory, counters = self._memory.get(place), self._counters.get(place)
        if memory is None or memory.numel() < _size(plan):
            memory = self._memory[place] = _bytes(place[0], plan)
            self._views = {key: view for key, view in self._views.items() if key[0] != place}
        if counters is None or counters.numel() < plan.groups:
            # Views of the smaller one stay right: it too is zero between launches.
            counters = self._counters[place] = _zeros(place[0], plan.groups)
        if len(self._views) >= MOST_VIEWS:
            self._views.clear()
        views = self._views[place, plan] = _views(memory, counters, plan)
        return views


def _size(plan: Plan) -> int:
    return sum(_aligned(dtype.itemsize * count) for dtype, count in plan.scratch)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes(device: torch.device, plan: Plan) -> Tensor:
    return torch.empty(_size(plan), dtype=torch.uint8, device=device)


def _zeros(device: torch.device, groups: int) -> Tensor:
    return torch.zeros(groups, dtype=torch.int32, device=device)


def _views(memory: Tensor, counters: Tensor, plan: Plan) -> list[Tensor]:
    views, start = [], 0
    for dtype, count in plan.scratch:
        size = dtype.itemsize * count
        views.append(memory[start : start + size].view(dtype))
        start += _aligned(size)
    return [*views[:4], counters, views[4]]


workspace = Workspace()
