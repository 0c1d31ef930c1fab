"""Goodput of five workers at 20 ms under Poisson traffic with deadlines of 100 ms, coded and not.

    python benchmarks/overload.py [--seconds 8] [--receipt benchmarks/receipts/overload.json]

Workers are threads that sleep, so the figures are the server's doing, not the machine's. Coded and
uncoded meet the same arrivals. Exit code 0 only if both bars are met: goodput of at least 0.9 times
what is offered or possible, coded at least 0.97 times uncoded.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from codedinv.errors import CodedInvError  # noqa: E402
from codedinv.experiments.receipts import write_receipt  # noqa: E402
from codedinv.experiments.traffic import poisson_arrivals  # noqa: E402
from codedinv.serving import CodedServer  # noqa: E402
from tests.serving.linear_model import LinearModel  # noqa: E402

WORKERS, SERVICE_S, DEADLINE_S = 5, 0.02, 0.1
CAPACITY = WORKERS / SERVICE_S
TIMES = (0.5, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0)


def goodput(scheme: str, times: float, seconds: float, seed: int) -> float:
    """Answers within their deadline per second."""
    model = LinearModel()
    queries = model.queries(64)
    rate = times * CAPACITY
    arrivals = poisson_arrivals(int(rate * seconds), rate, np.random.default_rng(seed))
    with CodedServer(model, WORKERS, backend="thread", scheme=scheme) as server:
        for worker in range(WORKERS):
            server.pool.slow(worker, SERVICE_S)
        for future in [server.submit(q, deadline=30.0) for q in queries]:
            future.result()  # the server has seen how long its workers take
        start = time.monotonic()
        futures = []
        for number, at in enumerate(arrivals):
            time.sleep(max(0.0, start + at - time.monotonic()))
            futures.append(server.submit(queries[number % 64], deadline=DEADLINE_S))
        wait(futures)
    good = 0
    for future in futures:
        try:
            good += future.result().latency <= DEADLINE_S
        except CodedInvError:
            continue
    return good / float(arrivals[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--receipt")
    options = parser.parse_args()
    rows = []
    for times in TIMES:
        row = {"offered": times * CAPACITY, "times": times}
        for scheme in ("uncoded", "invertible"):
            row[scheme] = goodput(scheme, times, options.seconds, seed=int(10 * times))
        possible = min(row["offered"], CAPACITY)
        row["met"] = (
            min(row["uncoded"], row["invertible"]) >= 0.9 * possible
            and row["invertible"] >= 0.97 * row["uncoded"]
        )
        rows.append(row)
        print(
            f"{times:3.1f}x = {row['offered']:4.0f}/s  uncoded {row['uncoded']:5.1f}/s  coded "
            f"{row['invertible']:5.1f}/s  bar {0.9 * possible:5.1f}/s  "
            f"{'met' if row['met'] else 'MISSED'}",
            flush=True,
        )
    if options.receipt:
        command = f"python benchmarks/overload.py --seconds {options.seconds:g}"
        write_receipt(options.receipt, command, {"capacity": CAPACITY, "rows": rows})
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
