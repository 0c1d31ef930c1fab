"""Measures the streaming decoder against its bars and writes the receipt.

    python benchmarks/decoder.py [--trials N] [--before FOLDER]

Every ratio of small pushes is between medians of pushes timed in turn in one loop, so that whatever
else the machine does falls on both sides; the timer's own cost is measured in the same loop and
subtracted. Large rows and recoveries are compared round by round, and the median of the rounds'
ratios counts. torch runs on one thread, as the decoder does.

FOLDER is a checkout of an earlier commit with its extension built in place, such as

    git worktree add FOLDER COMMIT && cd FOLDER && python setup.py build_ext --inplace

which a process of its own times in turn with this one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from decoder_large import large_rows, recovery_before_and_now
from decoder_pushes import Pusher, medians, random_row
from receipt import bar, cpu_name, print_bars, write_receipt

from codedinv import Code, StreamingDecoder
from codedinv.coding import _decoder, reference

LENGTHS = (784, 3072, 65_536, 1_048_576)
DTYPES = ("float32", "float64", "float16", "bfloat16")


def check_correct(length: int) -> None:
    """Nothing is timed before its result agrees with float64 least squares."""
    rng = np.random.default_rng(0)
    code = Code.mds(4, 2)
    results = rng.normal(size=(6, length)).astype(np.float32)
    decoder = StreamingDecoder(code, length)
    for slot in (5, 0, 4, 2):
        decoder.push(slot, results[slot])
    wanted = reference.recover(code, {slot: results[slot] for slot in (5, 0, 4, 2)})
    for slot, row in decoder.recover().items():
        error = np.abs(row - wanted[slot]).max() / np.abs(wanted[slot]).max()
        if error > 1e-5:
            raise SystemExit(f"slot {slot} of {length} is wrong by {error:.1e}: nothing measured")


def flat_in_k(trials: int) -> list[dict[str, Any]]:
    rows = []
    for length in LENGTHS:
        check_correct(length)
        row = random_row(length)
        pushers = {
            str(k): Pusher(StreamingDecoder(Code.uniform(k), length), k, row)
            for k in (2, 4, 10, 30, 100)
        }
        pushers["numpy, k = 10"] = Pusher(
            reference.OnlineDecoder(Code.uniform(10), (length,)), 10, row
        )
        ns = medians(pushers, max(trials * 3072 // max(length, 3072), 1000))
        rows.append(
            {
                "elements_fp32": length,
                "push_ns": {name: round(value) for name, value in ns.items()},
                "k100_over_k2": round(ns["100"] / ns["2"], 3),
                "numpy_over_ours": round(ns["numpy, k = 10"] / ns["10"], 2),
            }
        )
    return rows


def by_kind(trials: int) -> dict[str, int]:
    """Push of 3,072 elements to (11, 10) by dtype, by producer and by number of parities."""
    pushers: dict[str, Pusher] = {}
    for dtype in DTYPES:
        decoder = StreamingDecoder(Code.uniform(10), 3072, dtype)
        pushers[dtype] = Pusher(decoder, 10, random_row(3072, decoder.dtype))
    pushers["float32 torch tensor"] = Pusher(
        StreamingDecoder(Code.uniform(10), 3072), 10, torch.from_numpy(random_row(3072))
    )
    for r in (2, 4):
        pushers[f"float32, r = {r}"] = Pusher(
            StreamingDecoder(Code.mds(10, r), 3072), 10, random_row(3072)
        )
    return {name: round(value) for name, value in medians(pushers, trials).items()}


def tails(trials: int) -> dict[str, int]:
    """Push of one element less than whole vectors, beside whole ones."""
    pushers = {
        str(length): Pusher(StreamingDecoder(Code.uniform(10), length), 10, random_row(length))
        for length in (767, 768)
    }
    return {name: round(value) for name, value in medians(pushers, trials).items()}


def recovery(trials: int) -> dict[str, int]:
    """Nanoseconds from the k-th result to the recovered embedding, beside decoding all at once."""
    results: dict[str, int] = {}
    for k in (2, 10, 100):
        rows = np.random.default_rng(k).normal(size=(k + 1, 3072)).astype(np.float32)
        decoder = StreamingDecoder(Code.uniform(k), 3072)
        for slot in range(1, k + 1):
            decoder.push(slot, rows[slot])
        at_once: Callable[[], Any] = lambda k=k, rows=rows: k * rows[k] - rows[1:k].sum(axis=0)  # noqa: E731
        times: dict[str, list[int]] = {"online": [], "numpy at once": []}
        for _ in range(trials // 4):
            for name, call in (("online", decoder.recover), ("numpy at once", at_once)):
                start = perf_counter_ns()
                call()
                times[name].append(perf_counter_ns() - start)
        for name, values in times.items():
            results[f"k = {k}, {name}"] = round(float(np.median(values)))
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20_000, help="pushes timed of each kind")
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit, built")
    arguments = parser.parse_args()
    trials = arguments.trials
    torch.set_num_threads(1)
    flat = flat_in_k(trials)
    of_tails = tails(trials)
    typical = next(row for row in flat if row["elements_fp32"] == 3072)
    bars = [
        bar(
            "median push at k = 100 over k = 2, worst size",
            max(row["k100_over_k2"] for row in flat),
            1.1,
            at_most=True,
        ),
        bar(
            "us per push of 3,072 fp32 from Python, k = 10",
            typical["push_ns"]["10"] / 1000,
            0.4,
            at_most=True,
        ),
        bar(
            "NumPy online decoder's push over ours, 3,072 fp32",
            typical["numpy_over_ours"],
            2.0,
            at_most=False,
        ),
        bar(
            "push of 767 fp32, whose last vector is not full, over 768",
            of_tails["767"] / of_tails["768"],
            1.1,
            at_most=True,
        ),
    ]
    large = large_rows()
    above = [row for row in large if row["above_l2"]]
    bars += [
        bar(
            "push's bandwidth over the triad's, worst of the rows above the second-level cache",
            min(row["triad_over_push"] for row in above),
            0.8,
            at_most=False,
        ),
        bar(
            "time of a push over torch.add_, worst of the same rows",
            max(row["push_over_add_"] for row in above),
            1.0,
            at_most=True,
        ),
    ]
    recovered = recovery_before_and_now(arguments.before) if arguments.before else None
    if recovered is not None:
        bars.append(
            bar(
                "recovery of r = 4 at 1,048,576 fp32, before over now",
                recovered["before_over_now"],
                4.0,
                at_most=False,
            )
        )
    content = {
        "method": "small rows: medians of single pushes of a warm row, timed in turn, less the "
        "timer; large rows and recoveries: medians of ratios of rounds",
        "instruction_set": _decoder.instruction_set(),
        "trials": trials,
        "bars": bars,
        "flat_in_k": flat,
        "push_ns_3072_k10": by_kind(trials),
        "push_ns_tails": of_tails,
        "recover_ns_3072_r1": recovery(trials),
        "large_rows": large,
        "recover_r4_1048576": recovered,
    }
    path = write_receipt("decoder", content, cpu_name())
    print(path)
    return print_bars(bars)


if __name__ == "__main__":
    sys.exit(main())
