"""One small case of each kernel, by itself and under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import torch

from codedinv import kernels
from codedinv.kernels import reference, testing, tuning
from codedinv.kernels.tuning import Stage

from .case import Case
from .options import Options
from .receipts import Receipt
from .timing import checked

# (stage, bands): several images to a program and the last one short; three bands, the last one
# shorter than the others.
SHAPES = ((Stage(16, 7, 7, 96), 1), (Stage(4, 14, 14, 32), 3))
REHEARSAL_SHAPES = ((Stage(4, 4, 4, 16), 1), (Stage(4, 4, 4, 16), 2))
BATCH = 3
TOLERANCE = 3e-3
KERNELS = (("stage", False), ("inversion", False), ("inversion", True))
DTYPES = (torch.float32, torch.bfloat16)

NOT_HERE = 3


def smoke(options: Options) -> None:
    """Runs every kernel once, small, and checks it."""
    shapes = REHEARSAL_SHAPES if options.rehearse else SHAPES
    for (stage, bands), dtype, (kernel, anderson) in product(shapes, DTYPES, KERNELS):
        name = f"{kernel}{' with mixing' * anderson} {stage} {dtype} in {bands} bands"
        if options.rehearse and bands > 1:
            print(f"skipped {name}: the interpreter runs programs one after another")
            continue
        tiles = tuning.default_stage_tuning(stage, dtype, bands=bands, few=bands > 1)
        error = Case(kernel, stage, dtype, BATCH, TOLERANCE, anderson).check(tiles)
        print(f"{name}: relative error {error:.1e}")
    weight, vector = torch.randn(32, 16, 3, 3), torch.randn(1, 16, 7, 7)
    expected = reference.power_iteration([weight], [vector], 1)[0]
    on_device = [weight.to(testing.DEVICE)], [vector.to(testing.DEVICE)]
    checked(kernels.power_iteration(*on_device, 1)[0], expected, 1e-4)
    print("every kernel ran and was right")


def sanitize(options: Options) -> None:
    """`smoke` under memcheck and racecheck; what they found, and their logs beside it."""
    if options.rehearse:
        smoke(options)
        return
    program = shutil.which("compute-sanitizer")
    if program is None:
        print("compute-sanitizer is not here")
        sys.exit(NOT_HERE)
    out = Receipt("sanitizer", options, tuned=False)
    for tool in ("memcheck", "racecheck"):
        if out.has(tool=tool):
            continue
        options.check_time()
        log = options.out / f"sanitizer-{tool}.log"
        code = _under(program, tool, log)
        lines = log.read_text(errors="replace").splitlines()
        if any("Device not supported" in line for line in lines):
            print(f"{tool} does not take this device; see {log.name}")
            sys.exit(NOT_HERE)
        summary = [line for line in lines if "SUMMARY" in line]
        ran = "every kernel ran and was right" in lines
        if not summary:
            print(*lines[-10:], sep="\n")
            raise RuntimeError(f"{tool} came to no verdict; see {log.name}")
        out.add({"tool": tool, "clean": code == 0 and ran, "summary": summary, "ran": ran})
    dirty = [row["tool"] for row in out.results if not row["clean"]]
    if dirty:
        raise RuntimeError(f"not clean: {', '.join(dirty)}")


def _under(program: str, tool: str, log: Path) -> int:
    """Exit status of `smoke` under a tool of compute-sanitizer."""
    entry = Path(__file__).resolve().parents[1] / "kernels.py"
    with log.open("w") as file:
        return subprocess.run(
            [program, "--tool", tool, "--error-exitcode", "1",
             sys.executable, "-W", "ignore", str(entry), "smoke"],
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            stdout=file, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
