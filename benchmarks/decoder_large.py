"""The decoder's rows above the second-level cache: beside torch, and beside an earlier build."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import torch
from decoder_pushes import Pusher, random_row

from codedinv import Code, StreamingDecoder

LARGE = (262_144, 524_288, 1_048_576, 2_097_152, 4_194_304, 16_777_216)  # fp32: 1 MiB and more


def second_level_bytes() -> int:
    """Size of the second-level cache, 1 MiB where the system does not say."""
    try:
        return os.sysconf("SC_LEVEL2_CACHE_SIZE") or 2**20
    except (OSError, ValueError):
        return 2**20


def large_rows() -> list[dict[str, Any]]:
    """Bandwidth of pushes to (11, 10) beside torch's axpy and triad, 12 bytes an element each.

    Every contender has rows of its own: none finds another's in the caches.
    """
    rows = []
    for length in LARGE:
        pushers = {
            name: Pusher(StreamingDecoder(Code.uniform(10), length), 10, row, **how)
            for name, row, how in (
                ("push", random_row(length), {}),
                ("push of a torch tensor", torch.rand(length), {}),
                ("push, check=False", random_row(length), {"check": False}),
            )
        }
        x, acc, y, a, b = (torch.rand(length) for _ in range(5))
        contenders: dict[str, Callable[[], Any]] = {
            **{name: pusher.time_one for name, pusher in pushers.items()},
            "torch.add_": lambda x=x, acc=acc: acc.add_(x, alpha=-0.1),
            "triad": lambda y=y, a=a, b=b: torch.add(a, b, alpha=-0.1, out=y),
        }
        ns: dict[str, list[int]] = {name: [] for name in contenders}
        for turn in range(max(25, 2**28 // length)):
            order = list(contenders)
            order = order[turn % 5 :] + order[: turn % 5]
            for name in order:
                start = perf_counter_ns()
                contenders[name]()
                ns[name].append(perf_counter_ns() - start)
        for name, pusher in pushers.items():
            ns[name] = pusher.nanoseconds  # without the resets between
        rounds = {name: np.array(values[3:], float) for name, values in ns.items()}

        def ratio(one: str, other: str, rounds: dict[str, Any] = rounds) -> float:
            return round(float(np.median(rounds[one] / rounds[other])), 3)

        rows.append(
            {
                "elements_fp32": length,
                "above_l2": 4 * length > second_level_bytes(),
                "gb_per_s": {
                    name: round(float(12 * length / np.median(times)), 1)
                    for name, times in rounds.items()
                },
                "push_over_add_": ratio("push", "torch.add_"),
                "unchecked_over_add_": ratio("push, check=False", "torch.add_"),
                "triad_over_push": ratio("triad", "push"),
            }
        )
    return rows


# Times one recovery of four lost of four for each line it reads.
RECOVERER = """
import sys
from time import perf_counter_ns
import numpy as np
import codedinv
from codedinv import Code, StreamingDecoder
print(codedinv.__file__, flush=True)
length = int(sys.argv[1])
code = Code(np.array(eval(sys.argv[2])))
decoder = StreamingDecoder(code, length)
for slot in range(4, 8):
    decoder.push(slot, np.random.default_rng(slot).normal(size=length).astype(np.float32))
out = np.empty((4, length), np.float32)
for line in sys.stdin:
    start = perf_counter_ns()
    decoder.recover(out) if line == "out\\n" else decoder.recover()
    print(perf_counter_ns() - start, flush=True)
"""


class Recoverer:
    """A process that recovers r = 4 with the package of a folder."""

    def __init__(self, folder: Path, length: int) -> None:
        # One code for both, whatever Code.mds gives in either.
        coefficients = Code.mds(4, 4).coefficients.tolist()
        self._process = subprocess.Popen(
            [sys.executable, "-c", RECOVERER, str(length), repr(coefficients)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        found = Path(self._process.stdout.readline().strip())
        if not found.is_relative_to(folder.resolve()):
            raise SystemExit(f"{folder}: expected its own package, found {found}")

    def nanoseconds(self, how: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(how + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def recovery_before_and_now(before: Path, rounds: int = 60) -> dict[str, Any]:
    """Recovery of r = 4 at 1,048,576 fp32 by this build and by an earlier one."""
    length = 1_048_576
    old, new = Recoverer(before, length), Recoverer(Path(__file__).resolve().parents[1], length)
    times = {"before": [], "now": [], "now, recover(out=)": []}
    for _ in range(rounds):
        times["before"].append(old.nanoseconds("new"))
        times["now"].append(new.nanoseconds("new"))
        times["now, recover(out=)"].append(new.nanoseconds("out"))
    old.close()
    new.close()
    arrays = {name: np.array(values[3:], float) for name, values in times.items()}
    return {
        "us": {name: round(float(np.median(values)) / 1000, 1) for name, values in arrays.items()},
        "before_over_now": round(float(np.median(arrays["before"] / arrays["now"])), 2),
        "before_over_now_out": round(
            float(np.median(arrays["before"] / arrays["now, recover(out=)"])), 2
        ),
    }
