"""Times the kernels against torch on a GPU and writes receipts; run by benchmarks/device.sh.

    python benchmarks/kernels.py COMMAND [options]

Every candidate is checked against float64 before it is timed. Times are medians of device events
after warm-up; candidates that are launched from Python are timed so and, as "graphed", replayed
from a CUDA graph. `--rehearse` runs the same code on a CPU with tiny shapes and Triton's
interpreter; its times mean nothing and its receipts say so.

Exit status 124: the time was not enough; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import receipt
import torch
from device.adopt import adopt
from device.bars import show_bars
from device.comparisons import measure_forward, measure_inverse
from device.crossover import measure_crossover
from device.networks import NETWORKS, REHEARSAL
from device.on_chip import measure_on_chip
from device.options import BATCHES, DTYPES, Options, OutOfTime
from device.power import measure_power
from device.roofline import measure_ceilings
from device.serving import measure_serving
from device.smoke import sanitize, smoke
from device.tune import measure_tune

COMMANDS = {
    "smoke": smoke, "sanitize": sanitize, "ceilings": measure_ceilings, "tune": measure_tune,
    "adopt": adopt, "crossover": measure_crossover, "forward": measure_forward,
    "inverse": measure_inverse, "on_chip": measure_on_chip, "power": measure_power,
    "serving": measure_serving, "bars": show_bars,
}  # fmt: skip
WITHOUT_A_GPU = ("adopt", "bars")
OUT_OF_TIME = 124


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--network", choices=NETWORKS, default="cifar")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--out", type=Path, default=receipt.FOLDER, help="folder of the receipts")
    parser.add_argument("--seconds", type=float, default=420, help="begin nothing new after this")
    parser.add_argument("--again", action="store_true", help="measure what is already there")
    parser.add_argument("--rehearse", action="store_true", help="CPU, interpreter, tiny shapes")
    given = parser.parse_args()
    if given.rehearse:
        # Read where a kernel is defined, which codedinv.kernels does at its first launch.
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available() and given.command not in WITHOUT_A_GPU:
        parser.error("no CUDA device is here; --rehearse runs the same code on the CPU")
    # Full float32 unless a result says otherwise: what the kernels are compared with.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    options = Options(
        name=given.network,
        network=REHEARSAL if given.rehearse else NETWORKS[given.network],
        dtype_name=given.dtype,
        batches=(2,) if given.rehearse else tuple(given.batch),
        out=given.out,
        ends=time.monotonic() + given.seconds,
        again=given.again,
        rehearse=given.rehearse,
    )
    try:
        COMMANDS[given.command](options)
    except OutOfTime:
        print("out of time; the same command goes on from here")
        sys.exit(OUT_OF_TIME)


if __name__ == "__main__":
    main()
