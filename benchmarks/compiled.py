"""What the kernels use when they are compiled for an H200 that is not here.

    python benchmarks/compiled.py

Writes benchmarks/receipts/compiled-sm-90.json and prints the table of docs/kernels.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from receipt import write_receipt

from codedinv.kernels.aot import compile_variant, variants

ARCHITECTURE = 90
KERNELS = ("stage", "inversion", "inversion of few")
DTYPES = (torch.bfloat16, torch.float32)


def table(content: dict[str, Any]) -> str:
    """The receipt as markdown: registers / KiB of shared memory / matrix instructions."""
    uses = {row["variant"]: row for row in content["results"]}
    triton = content["versions"]["triton"]
    lines = [
        f"| Triton {triton}, sm_{ARCHITECTURE} | warps | " + " | ".join(KERNELS) + " |",
        "|---|---|" + "---|" * len(KERNELS),
    ]
    for shape in (name.removeprefix("stage ") for name in uses if name.startswith("stage ")):
        rows = [uses[f"{kernel} {shape}"] for kernel in KERNELS]
        cells = [
            f"{row['registers']} / {row['shared_bytes'] / 1024:.0f} / "
            f"{sum(row['tensor_core'].values())}"
            for row in rows
        ]
        warps = dict.fromkeys(str(row["warps"]) for row in rows)
        lines.append(f"| {shape} | {', of few '.join(warps)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Compiles every stage, so takes some minutes."""
    results = [
        asdict(compile_variant(variant, ARCHITECTURE))
        for variant in variants(ARCHITECTURE, kernels=KERNELS, dtypes=DTYPES)
    ]
    spilled = [r["variant"] for r in results if r["stack_bytes"] or r["local_bytes"]]
    path = write_receipt("compiled", {"spilled": spilled, "results": results}, f"sm_{ARCHITECTURE}")
    print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
