"""Which kernel variants fit which cards, by each of several releases of Triton.

    pip install --no-deps --target FOLDER triton==3.6.0
    python benchmarks/compiled_sweep.py [--triton FOLDER ...] [--arch 80 90 100]

Compiles every variant with the installed Triton and with those in the folders, and writes
compiled-sweep.json. Needs no GPU, but a second or three for each variant; Triton's cache remembers
them, so a sweep that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import torch
import triton
from receipt import ROOT, write_receipt

from codedinv.kernels.aot import KERNELS, SHARED_LIMIT_KIB, compile_variant, variants

ARCHITECTURES = (80, 90, 100)
DTYPES = ("float32", "bfloat16", "float16")


def compile_all(arch: int, kernels: tuple[str, ...], dtypes: tuple[str, ...]) -> None:
    """One line of JSON for each variant, with this process's Triton."""
    for variant in variants(arch, kernels, dtypes=tuple(getattr(torch, name) for name in dtypes)):
        row: dict[str, Any] = {"variant": str(variant), "arch": arch}
        try:
            row |= asdict(compile_variant(variant, arch))
        except Exception as error:  # A variant that does not compile is a finding.
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps({"triton": triton.__version__, **row}), flush=True)


def in_a_process(folder: str | None, *arguments: str) -> list[dict[str, Any]]:
    """The rows of `compile_all` with the Triton of a folder; None: with the installed one."""
    paths = [*([folder] if folder else []), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--here", *arguments],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def fault(row: dict[str, Any]) -> str | None:
    """What is wrong with a variant; None if it fits."""
    if "failed" in row:
        return str(row["failed"])
    if row["stack_bytes"] or row["local_bytes"]:
        return f"spills {row['stack_bytes'] + row['local_bytes']} bytes"
    if row["shared_bytes"] > 1024 * SHARED_LIMIT_KIB[row["arch"]]:
        return f"{row['shared_bytes']} bytes of shared memory"
    return None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one Triton and architecture: how many variants, most registers, and what does not fit."""
    faults = {row["variant"]: found for row in rows if (found := fault(row))}
    return {
        "triton": rows[0]["triton"],
        "arch": rows[0]["arch"],
        "variants": len(rows),
        "most_registers": max(row.get("registers", 0) for row in rows),
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triton", nargs="*", default=[], metavar="FOLDER", help="others to try")
    parser.add_argument("--arch", nargs="+", type=int, default=ARCHITECTURES)
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--here", action="store_true", help="only print rows of this Triton")
    options = parser.parse_args()
    if options.here:
        compile_all(options.arch[0], tuple(options.kernel), tuple(options.dtype))
        return 0
    rest = ["--kernel", *options.kernel, "--dtype", *options.dtype]
    results = []
    for folder in (None, *options.triton):
        for arch in options.arch:
            results.append(summary(in_a_process(folder, "--arch", str(arch), *rest)))
            print(json.dumps(results[-1]), flush=True)
    write_receipt(
        "compiled",
        {"kernels": options.kernel, "dtypes": options.dtype, "results": results},
        "sweep",
    )
    return int(any(row["faults"] for row in results))


if __name__ == "__main__":
    sys.exit(main())
