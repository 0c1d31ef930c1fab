"""What a call of the encoder costs beside a call of the backbone and of the head.

    python benchmarks/encoder.py [--rounds 3]

The figures 7 and 8 of the paper, for the bundles of k = 2, 4 and 10, batches of 1, 32 and 256
coding groups, torch eager and compiled, ONNX Runtime in fp32 and dynamically quantised to int8.
Every runtime is on one thread and is checked against torch before it is timed (but int8, whose
results differ by design). Times are CPU times of that thread, for a machine may have other work.
Parts and runtimes alternate call by call; a ratio is the median of the rounds'.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np
from encoder_networks import (
    BATCHES,
    BUNDLES,
    PARTS,
    RUNTIMES,
    Networks,
    NotAvailable,
    check,
    inputs,
    load,
)
from receipt import bar, cpu_name, print_bars, write_receipt

from codedinv import CodedModel

MOST_OF_A_CALL, MOST_OF_A_QUERY = 0.10, 0.02
_LEAST_SECONDS = 0.2  # that a part is timed for, at least


def measure(k: int, rounds: int, skipped: dict[str, str]) -> list[dict[str, Any]]:
    """A row for each runtime and batch; what cannot run goes to `skipped`, with the reason."""
    model = CodedModel.load(BUNDLES[k])
    networks: dict[str, Networks] = {}
    for runtime in RUNTIMES:
        try:
            networks[runtime] = load(k, runtime)
            if runtime != "onnx int8":
                check(networks[runtime], networks["torch eager"], inputs(model, 32))
        except NotAvailable as error:
            skipped[f"{runtime}, k = {k}"] = str(error)
            networks.pop(runtime, None)
    return [row for batch in BATCHES for row in _rows(model, networks, k, batch, rounds)]


def _rows(
    model: CodedModel, networks: dict[str, Networks], k: int, batch: int, rounds: int
) -> list[dict[str, Any]]:
    examples = inputs(model, batch)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    calls = [(name, part, net.calls[part]) for name, net in networks.items() for part in PARTS]
    for _, part, call in calls:
        call(examples[part])
    until, done = time.perf_counter() + _LEAST_SECONDS * len(networks), 0
    while done < rounds or time.perf_counter() < until:
        for name, part, call in calls:
            start = time.thread_time()
            call(examples[part])
            seconds[name, part].append(time.thread_time() - start)
        done += 1
    rows = []
    for name in networks:
        of = {part: np.array(seconds[name, part]) for part in PARTS}
        ratio = float(np.median(of["encoder"] / of["backbone"]))
        rows.append({
            "runtime": name, "k": k, "batch": batch, "rounds": done,
            "encoder_over_backbone": round(ratio, 4),
            "per_query": round(ratio / k, 4),
            "head_over_backbone": round(float(np.median(of["head"] / of["backbone"])), 4),
        })  # fmt: skip
    return rows


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Verdicts, of ONNX Runtime at batch 256."""
    found = []
    for row in rows:
        if row["runtime"] != "onnx fp32" or row["batch"] != 256 or row["k"] == 2:
            continue
        where = f"k = {row['k']}, batch 256, ONNX Runtime"
        call, query = row["encoder_over_backbone"], row["per_query"]
        found += [
            bar(f"encoder's time over the backbone's, {where}", call, MOST_OF_A_CALL,
                at_most=True),
            bar(f"the same for each query, {where}", query, MOST_OF_A_QUERY, at_most=True),
        ]  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for k in BUNDLES:
        rows += measure(k, options.rounds, skipped)
    verdicts = bars(rows)
    content = {"bars": verdicts, "rows": rows, "not_measured": skipped}
    write_receipt("encoder", content, cpu_name())
    return print_bars(verdicts)


if __name__ == "__main__":
    sys.exit(main())
