"""How a call is timed and checked."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from codedinv.kernels import testing

Call = Callable[[], Any]


class Timer:
    """Median milliseconds of a call: device events on a GPU, the host's clock in a rehearsal.

    Args:
        rehearse: whether there is no GPU.
        budget_ms: about how long to repeat a call, at least 10 and at most 200 times.
    """

    def __init__(self, rehearse: bool, budget_ms: float = 600) -> None:
        self.rehearse, self.budget_ms = rehearse, budget_ms

    def __call__(self, function: Call) -> float:
        if self.rehearse:
            started = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - started)
        function()
        torch.cuda.synchronize()
        once = self._events(function, 3)
        return self._events(function, max(10, min(200, int(self.budget_ms / max(once, 0.01)))))

    def _events(self, function: Call, repeats: int) -> float:
        pairs = []
        for _ in range(repeats):
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            function()
            pair[1].record()
            pairs.append(pair)
        torch.cuda.synchronize()
        return statistics.median(first.elapsed_time(last) for first, last in pairs)


def graphed(function: Call) -> Call:
    """Replays `function` (static inputs) from a CUDA graph, captured at the first call."""
    graph: torch.cuda.CUDAGraph | None = None

    def replay() -> None:
        nonlocal graph
        if graph is None:
            graph = _captured(function)
        graph.replay()

    return replay


def _captured(function: Call) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def with_tf32(function: Call) -> Call:
    """`function` with torch's convolutions in TF32."""

    def call() -> None:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = True
        try:
            function()
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return call


def checked(value: Tensor, expected: Tensor, limit: float) -> float:
    """The relative error of the first images; what is wrong is not timed.

    Raises:
        RuntimeError: the error is not below limit.
    """
    error = testing.relative_error(value[: expected.shape[0]], expected)
    if not error < limit:
        raise RuntimeError(f"relative error {error:.2e} is above {limit:.0e}; not timed")
    return error


def attempt(result: dict[str, Any], name: str, function: Callable[[], float]) -> None:
    """Stores a time under `name`, or why there is none; one failure does not end a run."""
    try:
        result[name] = round(function(), 5)
    except Exception as error:  # Whatever a compiler or a card may raise goes into the receipt.
        result[name] = None
        result.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"[:400]
