"""Counts of the Triton kernels' machine code: for a block, for an iteration, for the rest.

    python -m machine.kernels KERNEL:STAGE:DTYPE ...

prints one line of JSON for each, of whichever codedinv.kernels is imported: also of an older commit
whose kernels/ were unpacked to a folder in PYTHONPATH as codedinv/kernels.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton

from codedinv.kernels import aot
from codedinv.kernels.aot import Variant, variants

from .sass import Code, counts, disassemble, read
from .sources import Sources, trip_counts

ARCHITECTURE = 90


def variant_of(text: str) -> Variant:
    """The variant of "KERNEL:STAGE:DTYPE" that an unmeasured card of ARCHITECTURE would run."""
    kernel, stage, dtype = text.split(":")
    [shape] = [known for known in aot.STAGES if str(known) == stage]
    [variant] = variants(ARCHITECTURE, (kernel,), (shape,), (getattr(torch, dtype),))
    return variant


def compiled(variant: Variant) -> tuple[Code, dict[str, Any], aot.Resources]:
    """(machine code, constexpr arguments by name, resources) of a variant."""
    seen: list[tuple[Any, Any]] = []
    compile_ = triton.compile

    def remembering(source: Any, *arguments: Any, **options: Any) -> Any:
        result = compile_(source, *arguments, **options)
        seen.append((source, result))
        return result

    with patch.object(triton, "compile", remembering):
        resources = aot.compile_variant(variant, ARCHITECTURE)
    [(source, result)] = seen
    names = source.fn.arg_names
    constants = {names[path[0]]: value for path, value in source.constants.items()}
    return read(disassemble(result.asm["cubin"])), constants, resources


def names_of(constants: dict[str, Any]) -> dict[str, Any]:
    """What the ranges of the kernels' loops are made of, for one iteration of one block; see
    `sources.trips_of`."""
    sizes = constants.get("S")
    flat = dict(constants)
    if sizes is None:  # before kernels had one constexpr
        sizes = SimpleNamespace(**constants)
        rows = -(-sizes.H // sizes.BANDS)
        local = rows + 2 * (sizes.BANDS > 1)
        flat |= {"ROWS": rows, "TOTAL": sizes.IMAGES * local * sizes.W}
    return {**flat, "origin": 0, "count": sizes.IMAGES, "blocks": 1, "iterations": 1}


def count(variant: Variant) -> dict[str, Any]:
    """What one warp of a program issues: {"block": ..., "iteration": ..., "rest": ...}.

    "rest" is outside of the loop over blocks, "block" once for each block, "iteration" once for
    each iteration of an inversion. With "images" of a program, its "warps" and "bands".
    """
    code, constants, resources = compiled(variant)
    # By name: code out of Triton's cache names the files of whoever compiled it, with these lines.
    seen = {Path(i.line[0]).name for block in code.blocks for i in block if i.line}
    folder = Path(aot.__file__).parent
    sources = Sources(path for path in sorted(folder.glob("*.py")) if path.name in seen)
    names = names_of(constants)

    def times(blocks: int, iterations: int) -> Counter[str]:
        trips = trip_counts(code, sources, names | {"blocks": blocks, "iterations": iterations})
        return counts(code, lambda loop: trips[loop.number])

    nothing, block, both = times(0, 0), times(1, 0), times(1, 1)
    return {
        "variant": str(variant),
        "warps": variant.tuning.num_warps,
        "images": variant.tuning.images,
        "bands": variant.tuning.bands,
        "registers": resources.registers,
        "blocks of code": len(code.blocks),
        "loops": [str(source) for source in sources.labels(code, names).values()],
        "rest": dict(nothing),
        "block": _difference(block, nothing),
        "iteration": _difference(both, block),
    }


def _difference(more: Counter[str], less: Counter[str]) -> dict[str, float]:
    found = {name: more[name] - less[name] for name in more}
    return {name: amount for name, amount in found.items() if amount}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(count(variant_of(argument))), flush=True)
