"""What batches are worth on a CPU, and what coding costs at saturation.

    python benchmarks/batches.py [--rounds 12] [--queries 600]

Servers of two worker processes, uncoded: workers that take one query at a time, and workers that
take up to 8 of those that wait. All are open at once, and rounds of them alternate in one run, so
that what else the machine does falls on all. *Saturation* is a closed loop with so many queries in
hand that no worker is idle. Tails are of an open loop: Poisson arrivals at 0.8 times the saturation
of workers without batches, the same arrivals for each, latency from the scheduled arrival. What
counts is the median of the rounds' ratios.

Then k = 10 against uncoded, eleven workers each, at saturation, with and without batches.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np
from frontend import saturate
from receipt import ROOT, bar, cpu_name, print_bars, write_receipt

sys.path.insert(0, str(ROOT))

from codedinv.data import load_test_images, to_queries
from codedinv.experiments.traffic import Record, poisson_arrivals, send
from codedinv.serving import CodedServer, Policy

WORKERS, MAX_BATCH, IN_HAND, LOAD = 2, 8, 128, 0.8
# One by one with a task in hand as by default, one by one with as many in hand as for batches.
WAYS: dict[str, dict[str, Any]] = {
    "one by one": {},
    "one by one, in_flight 16": {"policy": Policy(in_flight=2 * MAX_BATCH)},
    "batches of 8": {"max_batch": MAX_BATCH},
}
BATCHED = "batches of 8"
MOST_TAIL, MOST_ERROR = 1.3, 1e-4
CODED_MODEL, K = "fashion-mnist-k10", 10
LEAST_CODED = round(0.97 * K / (K + 1), 4)


def measure_batches(rounds: int, count: int, queries: np.ndarray) -> dict[str, Any]:
    """Throughput and tail of each way over the first's, and how far answers are apart."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    tails: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        servers = {
            way: stack.enter_context(
                CodedServer("fashion-mnist", workers=WORKERS, scheme="uncoded", **options)
            )
            for way, options in WAYS.items()
        }
        answers = {way: outputs(server, queries[:256]) for way, server in servers.items()}
        for _ in range(rounds):
            for way, server in servers.items():
                seconds[way].append(saturate(server.submit, queries, count, IN_HAND)[1])
        rate = LOAD / float(np.median(seconds["one by one"]))
        for number in range(rounds):
            generator = np.random.default_rng(number)
            arrivals = poisson_arrivals(count, rate, generator)
            picked = queries[generator.integers(len(queries), size=count)]
            for way, server in servers.items():
                ended = send(server, picked, arrivals, Record(count))
                tails[way].append([answer.latency_s for answer in ended])
    first = next(iter(WAYS))
    ways = {
        way: {
            "throughput": _ratio(seconds[first], seconds[way]),
            "p50": _ratio(_quantiles(tails[way], 0.5), _quantiles(tails[first], 0.5)),
            "p99": _ratio(_quantiles(tails[way], 0.99), _quantiles(tails[first], 0.99)),
            "largest_difference": float(np.abs(answers[way] - answers[first]).max()),
        }
        for way in WAYS
    }
    return {"load": LOAD, "rate_per_s": round(rate), "ways": ways}


def measure_coding(rounds: int, count: int, queries: np.ndarray) -> list[dict[str, Any]]:
    """Throughput at saturation of k = 10 over uncoded, eleven workers each."""
    rows = []
    for max_batch in (1, MAX_BATCH):
        seconds: dict[str, list[float]] = {"uncoded": [], "invertible": []}
        with ExitStack() as stack:
            servers = {
                scheme: stack.enter_context(
                    CodedServer(CODED_MODEL, workers=K + 1, scheme=scheme, max_batch=max_batch)
                )
                for scheme in seconds
            }
            for server in servers.values():
                saturate(server.submit, queries, count // 4, 2 * IN_HAND)
            for _ in range(rounds):
                for scheme, server in servers.items():
                    took = saturate(server.submit, queries, count, 4 * IN_HAND)[1]
                    seconds[scheme].append(took)
        ratio = _ratio(seconds["uncoded"], seconds["invertible"])
        rows.append({"max_batch": max_batch, "throughput_over_uncoded": ratio})
    return rows


def outputs(server: CodedServer, queries: np.ndarray) -> np.ndarray:
    """The answers to all queries at once, (B, outputs)."""
    return np.stack([p.outputs["label"] for p in server.predict_batch(queries)])


def _quantiles(rounds: list[list[float]], q: float) -> list[float]:
    return [float(np.quantile(latencies, q)) for latencies in rounds]


def _ratio(above: list[float], below: list[float]) -> float:
    return round(float(np.median(np.array(above) / np.array(below))), 3)


def bars(batches: dict[str, Any], coding: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts."""
    ways = batches["ways"]
    batched = ways[BATCHED]
    best = max(of["throughput"] for way, of in ways.items() if way != BATCHED)
    least_tail = min(of["p99"] for way, of in ways.items() if way != BATCHED)
    found = [
        bar(f"throughput of {BATCHED} over the best without", batched["throughput"] / best, 1.0,
            at_most=False),
        bar(f"p99 at {LOAD} of saturation, {BATCHED} over the best without",
            batched["p99"] / least_tail, MOST_TAIL, at_most=True),
        bar("largest difference of an answer", batched["largest_difference"], MOST_ERROR,
            at_most=True),
    ]  # fmt: skip
    for row in coding:
        what = f"throughput at saturation, k = {K} over uncoded, max_batch {row['max_batch']}"
        found.append(bar(what, row["throughput_over_uncoded"], LEAST_CODED, at_most=False))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--queries", type=int, default=600, help="of a round")
    options = parser.parse_args()
    queries = to_queries(load_test_images()[0][:1000])
    batches = measure_batches(options.rounds, options.queries, queries)
    coding = measure_coding(options.rounds, options.queries, queries)
    verdicts = bars(batches, coding)
    content = {
        "workers": WORKERS, "max_batch": MAX_BATCH, "rounds": options.rounds,
        "queries": options.queries, "bars": verdicts,
    }  # fmt: skip
    write_receipt("batches", {**content, "batches": batches, "coding": coding}, cpu_name())
    return print_bars(verdicts)


if __name__ == "__main__":
    sys.exit(main())
