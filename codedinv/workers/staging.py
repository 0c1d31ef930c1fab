"""Networks on a GPU, called with arrays: pinned staging memory and one CUDA graph for each bucket
of batch sizes.

A call of a small network costs more to launch than to compute. So a batch is padded to the next of
a few sizes, whose launches were recorded once and are replayed as one.

    queries ─► pinned memory ─► device memory ─► graph ─► device memory ─► pinned memory ─► results

What touches a device is behind `Device`, so that all else is tested without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from codedinv.workers.backbone import Array

_WARM_UPS = 3  # libraries choose algorithms and kernels are compiled before a recording


class Device(Protocol):
    """Memory and launches of one device."""

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        """Host memory, zeroed, that the device copies from and to by itself; float32."""

    def memory(self, shape: tuple[int, ...]) -> Tensor:
        """Device memory, zeroed; float32."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Runs `work` a few times and returns what repeats its launches, on the same memory."""

    def run(self, work: Callable[[], None]) -> None:
        """Runs `work` and waits until the device has done all of it."""


class Cuda:
    """A CUDA device, of which this process uses one stream. float32 is float32: no TF32, so that
    workers of all kinds give the same embeddings.

    Args:
        name: "cuda:0" and so on.
    """

    def __init__(self, name: str) -> None:
        self._device = torch.device(name)
        torch.cuda.set_device(self._device)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        # Scratch memory of the kernels belongs to a stream: recordings and replays share one.
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def pinned(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, pin_memory=True)

    def memory(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, device=self._device)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        torch.cuda.synchronize(self._device)  # weights and memory were filled on another stream
        for _ in range(_WARM_UPS):
            self.run(work)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        return graph.replay

    def run(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream):
            work()
        self._stream.synchronize()


class Staged:
    """A network on a device, called with queries (B, *input), B of at most `max_batch`.

    Args:
        network: (B, *input) -> (B, *embedding), of the device; each row by itself.
        device: where it runs.
        input_shape: of one query.
        max_batch: of a call.

    Attributes:
        max_batch: the same.
        buckets: the batch sizes that are run: a smaller batch is padded with what was there before.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        device: Device,
        input_shape: tuple[int, ...],
        max_batch: int,
    ) -> None:
        self.max_batch = max_batch
        self.buckets = buckets_for(max_batch)
        self._device = device
        self._queries = device.pinned((max_batch, *input_shape))
        self._inputs = device.memory((max_batch, *input_shape))
        with torch.no_grad():
            embedding_shape = tuple(network(self._inputs[:1]).shape[1:])
            self._outputs = device.memory((max_batch, *embedding_shape))
            self._results = device.pinned((max_batch, *embedding_shape))
            self._replays = {
                size: device.record(self._work(network, size)) for size in self.buckets
            }
        self._network = network  # a recording reads its weights

    def __call__(self, queries: Array) -> Array:
        count = len(queries)
        if count > self.max_batch:
            raise ValueError(f"queries: expected {self.max_batch} at most, got {count}")
        bucket = next(size for size in self.buckets if size >= count)
        np.copyto(self._queries.numpy()[:count], queries)

        def work() -> None:
            self._inputs[:count].copy_(self._queries[:count], non_blocking=True)
            self._replays[bucket]()
            self._results[:count].copy_(self._outputs[:count], non_blocking=True)

        with torch.no_grad():
            self._device.run(work)
        return self._results.numpy()[:count].copy()

    def _work(self, network: Callable[[Tensor], Tensor], bucket: int) -> Callable[[], None]:
        def work() -> None:
            self._outputs[:bucket].copy_(network(self._inputs[:bucket]))

        return work


def buckets_for(max_batch: int) -> tuple[int, ...]:
    """Powers of two below `max_batch`, and itself: at most half of a bucket is padding."""
    powers = [2**i for i in range(max_batch.bit_length()) if 2**i < max_batch]
    return (*powers, max_batch)


def on_cuda(
    network: torch.nn.Module, name: str, input_shape: tuple[int, ...], max_batch: int
) -> Staged:
    """A module, which is moved there, on the CUDA device of that name."""
    return Staged(network.eval().to(name), Cuda(name), input_shape, max_batch)
