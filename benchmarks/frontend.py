"""What the front end costs a query, beside a bare pool of pipes and futures.

    python benchmarks/frontend.py [--rounds 5] [--queries 800]

Both run the identity as backbone in as many worker processes, and are driven alike: so many queries
in hand that no worker is idle. Rounds of both alternate in one run, and the median of the rounds'
ratios counts, so that what else the machine does falls on both. Parent CPU is this whole process's,
the caller's thread included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bare_pool import BarePool
from identity import IdentityModel
from receipt import bar, cpu_name, print_bars, write_receipt

from codedinv.serving import CodedServer, Policy

WORKERS, SIZE = 5, 784
IN_FLIGHT = (1, 4)
WAYS = ("bare", "uncoded", "coded")
MOST_CPU, LEAST_THROUGHPUT = 2.0, 0.5

Submit = Callable[[Any], Future[Any]]


@contextmanager
def opened(way: str, model: IdentityModel, in_flight: int) -> Iterator[Submit]:
    """A pool or server of one way, ready."""
    if way == "bare":
        assert model.folder is not None
        with closing(BarePool(model.folder, model.input_shape, WORKERS, in_flight)) as pool:
            yield pool.submit
    else:
        scheme = "uncoded" if way == "uncoded" else "invertible"
        policy = Policy(in_flight=in_flight)
        with CodedServer(model, workers=WORKERS, scheme=scheme, policy=policy) as server:
            yield server.submit


def saturate(submit: Submit, queries: np.ndarray, count: int, in_hand: int) -> tuple[float, float]:
    """CPU seconds of this process and seconds for each of `count` queries, `in_hand` at a time."""
    waiting: deque[Future[Any]] = deque()
    cpu, start = time.process_time(), time.perf_counter()
    for i in range(count):
        if len(waiting) == in_hand:
            waiting.popleft().result()
        waiting.append(submit(queries[i % len(queries)]))
    for future in waiting:
        future.result()
    return (time.process_time() - cpu) / count, (time.perf_counter() - start) / count


def round_trips(submit: Submit, queries: np.ndarray, count: int) -> list[float]:
    """Seconds from submit to the answer, one query at a time."""
    seconds = []
    for i in range(count):
        start = time.perf_counter()
        submit(queries[i % len(queries)]).result()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(rounds: int, count: int) -> list[dict[str, Any]]:
    """A row for each in_flight."""
    with tempfile.TemporaryDirectory() as folder:
        model = IdentityModel(SIZE).saved(Path(folder) / "bundle")
        return [_row(model, in_flight, rounds, count) for in_flight in IN_FLIGHT]


def _row(model: IdentityModel, in_flight: int, rounds: int, count: int) -> dict[str, Any]:
    queries = model.queries(64)
    in_hand = 2 * WORKERS * in_flight
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    each: dict[str, list[float]] = {way: [] for way in WAYS}
    trips: dict[str, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        submits = {way: stack.enter_context(opened(way, model, in_flight)) for way in WAYS}
        for submit in submits.values():
            saturate(submit, queries, count // 4, in_hand)
        for _ in range(rounds):
            for way, submit in submits.items():
                spent, took = saturate(submit, queries, count, in_hand)
                cpu[way].append(spent)
                each[way].append(took)
                trips[way] += round_trips(submit, queries, count // 8)
    ways = {
        way: {
            "cpu_over_bare": _ratio(cpu[way], cpu["bare"]),
            "throughput_over_bare": _ratio(each["bare"], each[way]),
            "added_us_p50": _added(trips[way], trips["bare"], 0.5),
            "added_us_p99": _added(trips[way], trips["bare"], 0.99),
        }
        for way in WAYS[1:]
    }
    return {
        "in_flight": in_flight,
        "bare_cpu_us": round(1e6 * float(np.median(cpu["bare"])), 1),
        "ways": ways,
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(float(np.median(np.array(ours) / np.array(theirs))), 3)


def _added(ours: list[float], theirs: list[float], q: float) -> float:
    return round(1e6 * float(np.quantile(ours, q) - np.quantile(theirs, q)), 1)


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts, at the greatest in_flight."""
    found = []
    for way, of_way in rows[-1]["ways"].items():
        what = f"{way}, in_flight {rows[-1]['in_flight']}"
        cpu, throughput = of_way["cpu_over_bare"], of_way["throughput_over_bare"]
        found += [
            bar(f"parent CPU per query over a bare pool's, {what}", cpu, MOST_CPU, at_most=True),
            bar(f"throughput over a bare pool's, {what}", throughput, LEAST_THROUGHPUT,
                at_most=False),
        ]  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=800, help="of a round")
    options = parser.parse_args()
    rows = measure(options.rounds, options.queries)
    verdicts = bars(rows)
    content = {"workers": WORKERS, "values": SIZE, "rounds": options.rounds, "bars": verdicts}
    write_receipt("frontend", {**content, "rows": rows}, cpu_name())
    return print_bars(verdicts)


if __name__ == "__main__":
    sys.exit(main())
