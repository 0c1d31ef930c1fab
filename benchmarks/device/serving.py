"""Queries a second and their latency through a worker that makes batches, as a server has it.

A query goes from the host's memory through the worker's queue, a batch, pinned staging memory and
the network, and its result comes back: everything of a GPU worker but the socket. The last form is
a whole server, a process with the bundle fashion-mnist behind it, coding left out.

Saturated, two batches in hand: one runs and the next one waits.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import receipt
import torch
from torch import Tensor

from codedinv import kernels
from codedinv.kernels import reference, testing

from .networks import Blocks, draw, draw_images, forward
from .options import Options
from .receipts import Receipt
from .timing import checked

# The worker's stub device, for rehearsals, is the tests'.
sys.path.insert(0, str(receipt.ROOT))

from codedinv.serving import CodedServer
from codedinv.workers import Batching, Result, ThreadPool
from codedinv.workers.staging import Cuda, Device, Staged
from tests.workers.stub_device import StubDevice

BATCHES = (1, 8, 64)
SECONDS = 3.0  # of each measurement
WANTED = 10.0  # times the queries a second of batch 1, at batch 64
Network = Callable[[Tensor], Tensor]
Measured = dict[str, Any]


class Launched(Cuda):
    """Without recordings: each launch comes from Python, as in an eager server."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        super().record(work)  # the same warm-up
        return work


def measure_serving(options: Options) -> None:
    """Every form at every batch, then a whole server, and the bar of batches of 64."""
    out = Receipt(f"serving-{options.name}-{options.dtype_name}", options)
    low, exact = draw(options.network, options.dtype)
    batches = (1, 2) if options.rehearse else BATCHES
    for batch in batches:
        for form in (*FORMS, "server"):
            if out.has(batch=batch, form=form):
                continue
            options.check_time()
            row: Measured = {"batch": batch, "form": form}
            try:
                if form == "server":
                    row |= _server(options, batch)
                else:
                    row |= _worker(options, batch, form, low, exact)
            except Exception as error:  # whatever a compiler or a card may raise
                row["failed"] = f"{type(error).__name__}: {error}"[:400]
            out.add(row)
    for line in verdicts(out.results, batches[0], batches[-1]):
        print(line + (", in a rehearsal" if options.rehearse else ""))


def verdicts(results: list[Measured], one: int, many: int) -> list[str]:
    """A line for each form: its rate at a large batch over that at batch 1, and the bar."""
    lines = []
    for form in (*FORMS, "server"):
        rates = {r["batch"]: r.get("queries_per_s") for r in results if r["form"] == form}
        if not (rates.get(one) and rates.get(many)):
            lines.append(f"{form}: unmeasured")
            continue
        times = rates[many] / rates[one]
        verdict = "met" if times >= WANTED else "MISSED"
        lines.append(f"{form}: batch {many} {times:.1f}x batch {one} (>= {WANTED:g}): {verdict}")
    return lines


def _worker(options: Options, batch: int, form: str, low: Blocks, exact: Blocks) -> Measured:
    images = draw_images(options.network, 256, torch.float32).cpu().numpy()
    network = FORMS[form](options, low)
    staged = Staged(network, _device(options, form), images.shape[1:], batch)
    expected = forward(
        torch.from_numpy(images[:batch]).to(testing.DEVICE, torch.float64),
        exact,
        reference.residual_blocks,
    )
    limit = testing.ERROR_LIMIT[options.dtype]
    error = checked(torch.from_numpy(staged(images[:batch])), expected.cpu(), limit)
    pool = ThreadPool(staged, 1, 2 * batch, Batching(batch))
    pool.start(0, 1)
    pool.poll(10.0)
    try:
        return {"error": error, **_saturated(_Hand(pool), images, batch, _seconds(options))}
    finally:
        pool.close(5.0)


class _Hand:
    """A pool's only worker behind `submit` and `wait`."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._next = 0

    def submit(self, query: np.ndarray) -> None:
        self._pool.send(0, 1, self._next, "backbone", query)
        self._next += 1

    def wait(self) -> int:
        """Waits for results; returns how many came, which is in the order of their queries."""
        messages = self._pool.poll(10.0)
        for message in messages:
            if not isinstance(message, Result):
                raise RuntimeError(f"expected results, got {message}")
        return len(messages)


class _Futures:
    """The same of a server."""

    def __init__(self, server: CodedServer) -> None:
        self._server = server
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, query: np.ndarray) -> None:
        self._waiting.append(self._server.submit(query))

    def wait(self) -> int:
        self._waiting.popleft().result()
        return 1


def _server(options: Options, batch: int) -> Measured:
    device = "cpu" if options.rehearse else "cuda:0"
    with CodedServer(
        "fashion-mnist", 1, scheme="uncoded", devices=device, runtime="torch", max_batch=batch
    ) as server:
        queries = np.random.default_rng(0).random((256, 1, 28, 28), np.float32)
        return _saturated(_Futures(server), queries, batch, _seconds(options))


def _saturated(
    worker: _Hand | _Futures, queries: np.ndarray, batch: int, seconds: float
) -> Measured:
    """Queries a second, and milliseconds from `submit` to result, with two batches in hand."""
    sent: deque[float] = deque()
    latencies: list[float] = []
    begin = time.perf_counter()
    number = 0
    while (now := time.perf_counter()) < begin + seconds or len(latencies) < 4 * batch:
        while len(sent) < 2 * batch:
            sent.append(time.perf_counter())
            worker.submit(queries[number % len(queries)])
            number += 1
        for _ in range(worker.wait()):
            latencies.append(time.perf_counter() - sent.popleft())
    rate = len(latencies) / (now - begin)
    while sent:
        for _ in range(worker.wait()):
            sent.popleft()
    return {
        "queries_per_s": round(rate, 1),
        "p50_ms": round(1e3 * float(np.quantile(latencies, 0.5)), 3),
        "p99_ms": round(1e3 * float(np.quantile(latencies, 0.99)), 3),
        "queries": len(latencies),
    }


def _seconds(options: Options) -> float:
    return 0.0 if options.rehearse else SECONDS


def _device(options: Options, form: str) -> Device:
    if options.rehearse:
        return StubDevice()
    return Launched("cuda:0") if form == "eager" else Cuda("cuda:0")


def _eager(options: Options, low: Blocks) -> Network:
    def network(x: Tensor) -> Tensor:
        return forward(x.to(options.dtype), low, reference.residual_blocks).float()

    return network


def _compiled(options: Options, low: Blocks) -> Network:
    torch.compiler.reset()
    backend = "eager" if options.rehearse else "inductor"
    return torch.compile(_eager(options, low), dynamic=False, backend=backend)


def _kernels(options: Options, low: Blocks) -> Network:
    handles = [kernels.prepare(stage) for stage in low]

    def network(x: Tensor) -> Tensor:
        return forward(x.to(options.dtype), handles, lambda x, handle: handle(x)).float()

    return network


# Launched from Python; the others from a recording for each bucket of batch sizes.
FORMS: dict[str, Callable[[Options, Blocks], Network]] = {
    "eager": _eager,
    "eager_graphed": _eager,
    "compiled_graphed": _compiled,
    "kernels_graphed": _kernels,
}
