"""Which kernel variants fit which cards, by each of several releases of Triton.

    pip install --no-deps --target FOLDER triton==3.6.0
    python benchmarks/compiled_sweep.py [--triton FOLDER ...] [--arch 80 90 100]

Compiles every variant with the installed Triton and with those in the folders, and writes
compiled-sweep.json after each architecture and dtype, beside what it has of others; each result
names a digest of the sources that it is of. Needs no GPU, but a second or three for each variant;
Triton's cache remembers them, so a sweep that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
import triton
from receipt import FOLDER, ROOT, TRACKED, write_receipt

from codedinv.kernels.aot import SHARED_LIMIT_KIB, compile_variant, variants

ARCHITECTURES = (80, 90, 100)
DTYPES = ("float32", "bfloat16", "float16")
DECIDING = (
    "tiles", "solver", "residual", "inversion", "anderson", "spectral_norm", "launch", "shapes",
    "tuning", "aot",
)  # fmt: skip


def compile_all(arch: int, dtypes: tuple[str, ...]) -> None:
    """One line of JSON for each variant, with this process's Triton."""
    for variant in variants(arch, dtypes=tuple(getattr(torch, name) for name in dtypes)):
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


def summary(rows: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    """Of one Triton, architecture and dtype: how many variants, most registers, what does not
    fit."""
    faults = {row["variant"]: found for row in rows if (found := fault(row))}
    return {
        "triton": rows[0]["triton"],
        "arch": rows[0]["arch"],
        "dtype": dtype,
        "variants": len(rows),
        "most_registers": max(row.get("registers", 0) for row in rows),
        "faults": faults,
    }


def sources() -> str:
    """A digest of all that decides what is compiled."""
    folder = ROOT / "kernels"
    content = b"".join((folder / f"{name}.py").read_bytes() for name in DECIDING)
    return hashlib.sha256(content).hexdigest()[:12]


def kept() -> list[dict[str, Any]]:
    """Results of earlier sweeps, each of its own sources: of those not adopted yet, else of the
    tracked receipt."""
    for folder in (FOLDER, TRACKED):
        path = folder / "compiled-sweep.json"
        if path.exists():
            return list(json.loads(path.read_text())["results"])
    return []


def sweep(tritons: list[str | None], architectures: list[int], dtypes: list[str]) -> int:
    """Compiles everything; returns how many variants do not fit."""
    digest = sources()
    results = kept()
    faults = 0
    for folder, arch, dtype in product(tritons, architectures, dtypes):
        found = summary(in_a_process(folder, "--arch", str(arch), "--dtype", dtype), dtype)
        found["sources"] = digest
        print(json.dumps(found), flush=True)
        faults += len(found["faults"])
        key = ("triton", "arch", "dtype")
        others = [row for row in results if any(row[name] != found[name] for name in key)]
        results = sorted([*others, found], key=lambda row: [row[name] for name in key])
        write_receipt("compiled", {"sources_now": digest, "results": results}, "sweep")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triton", nargs="*", default=[], metavar="FOLDER", help="others to try")
    parser.add_argument("--only-these", action="store_true", help="not the installed Triton")
    parser.add_argument("--arch", nargs="+", type=int, default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--here", action="store_true", help="only print rows of this Triton")
    options = parser.parse_args()
    if options.here:
        compile_all(options.arch[0], tuple(options.dtype))
        return 0
    tritons = [*([] if options.only_these else [None]), *options.triton]
    return int(sweep(tritons, list(options.arch), list(options.dtype)) > 0)


if __name__ == "__main__":
    sys.exit(main())
