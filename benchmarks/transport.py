"""A query's way to a worker and back by its size, beside a pipe of the standard library.

    python benchmarks/transport.py [--rounds 300]

One worker process each, whose backbone is the identity, and one query at a time: `ProcessPool.send`
and `poll` against `Connection.send_bytes` and `recv_bytes`, in turn; a ratio is of medians.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from bare_pool import serve
from identity import IdentityModel
from receipt import bar, cpu_name, print_bars, write_receipt

from codedinv.workers import BackboneSpec, ProcessPool, Ready

SIZES = (64, 784, 3_072, 16_384, 65_536, 786_432)
_MOST_VALUES = 40_000_000  # in all rounds of a size: the largest need not be sent as often

Trip = Callable[[], Any]


def measure(size: int, rounds: int) -> dict[str, Any]:
    """Median round trips of one size, in turn."""
    rounds = max(20, min(rounds, _MOST_VALUES // size))
    with tempfile.TemporaryDirectory() as folder:
        model = IdentityModel(size).saved(Path(folder) / "bundle")
        assert model.folder is not None
        query = model.queries(1)[0]
        spec = BackboneSpec.of(model.folder, model.input_shape, model.embedding_shape, "onnx")
        pool = ProcessPool(spec, workers=1)
        pool.start(0, 1)
        while not any(isinstance(message, Ready) for message in pool.poll(30.0)):
            pass
        ours, theirs = get_context("spawn").Pipe()
        arguments = (theirs, model.folder, model.input_shape)
        process = get_context("spawn").Process(target=serve, args=arguments, daemon=True)
        process.start()
        ours.recv_bytes()

        def by_pool() -> Any:
            pool.send(0, 1, 1, "backbone", query)
            while not (messages := pool.poll(None)):
                pass
            return messages[0].embedding  # type: ignore[union-attr]

        def by_pipe() -> Any:
            ours.send_bytes(query.data.cast("B"))
            return np.frombuffer(ours.recv_bytes(), np.float32).reshape(model.input_shape)

        trips: dict[str, Trip] = {"pool": by_pool, "pipe": by_pipe}
        for trip in trips.values():
            if not np.array_equal(trip(), query):
                raise ValueError(f"{size} values: what came back is not what was sent")
        row = _timed(trips, rounds)
        ours.send_bytes(b"")
        process.join()
        pool.close(5.0)
    return {"values_fp32": size, "rounds": rounds, **row}


def _timed(trips: dict[str, Trip], rounds: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {name: [] for name in trips}
    for _ in range(rounds):
        for name, trip in trips.items():
            start = time.perf_counter()
            trip()
            seconds[name].append(time.perf_counter() - start)
    pool, pipe = np.array(seconds["pool"]), np.array(seconds["pipe"])
    return {
        "pool_over_pipe_p50": round(float(np.median(pool) / np.median(pipe)), 3),
        "pool_over_pipe_p99": round(float(np.quantile(pool, 0.99) / np.quantile(pipe, 0.99)), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    rows = [measure(size, rounds) for size in SIZES]
    claim = f"round trip of {SIZES[-1]:,} values by a process pool over a pipe's, median"
    verdicts = [bar(claim, rows[-1]["pool_over_pipe_p50"], 1.0, at_most=True)]
    write_receipt("transport", {"bars": verdicts, "rows": rows}, cpu_name())
    return print_bars(verdicts)


if __name__ == "__main__":
    sys.exit(main())
