"""What the kernels of kernels/cuda should take on an H200 that is not here, by their machine code.

    python benchmarks/predicted.py

Compiles the layouts that one image and 256 images get, disassembles them, and counts what a warp
executes in a block of layers (forward) or an iteration (inverse): instructions, weighted by how
often the loops around them run. Writes predicted-sm-90.json and prints the tables of
docs/on-chip.md, of which the second has the baselines of machine-code-sm-90.json. Needs nvcc, and
Triton for its disassembler.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from machine.on_chip import bars_table
from receipt import TRACKED, write_receipt

from codedinv.kernels.on_chip_compile import MAIN, SOURCES
from codedinv.kernels.on_chip_plan import layout_for
from codedinv.kernels.on_chip_shape import TILE_K, TILE_N, Layout
from codedinv.kernels.tuning import STAGES

MULTIPROCESSORS, CAPABILITY, CLOCK_GHZ = 132, 90, 1.755
BATCHES = (1, 256)

# Steps of a long product in one trip, as in cuda/products.cuh.
UNROLLED = 6

# Cycles that one instruction of a warp occupies a unit: of a scheduler (of four) for the tensor
# core and exponentials; of the multiprocessor for shared memory, by the bytes of a lane.
TENSOR, EXPONENTIAL, SHARED_PER_4_BYTES = 8, 8, 1
# Instructions that a scheduler issues in a cycle: 0.6 at best, 0.25 for each warp that it has.
BEST_RATE, RATE_OF_A_WARP = 0.6, 0.25
# Microseconds of a meeting: of a cluster (0.2 published for a barrier, and the skew), of a block.
CLUSTER_US, BLOCK_US = 0.25, 0.03


@dataclass(frozen=True)
class Loop:
    """Instructions [first, last] of a program, the last of which jumps back."""

    first: int
    last: int

    def __contains__(self, other: Loop | int) -> bool:
        if isinstance(other, int):
            return self.first <= other <= self.last
        return self != other and self.first <= other.first and other.last <= self.last


def disassembled(layout: Layout, folder: Path) -> str:
    """Both kernels of a layout as machine code."""
    cubin = folder / "stage.cubin"
    command = ["nvcc", f"-arch=sm_{CAPABILITY}", "-std=c++17", "-cubin", "-o", str(cubin)]
    options = layout.defines(torch.bfloat16)
    subprocess.run([*command, *options, str(SOURCES / MAIN)], check=True)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    done = subprocess.run([str(tool), "-c", str(cubin)], capture_output=True, text=True, check=True)
    return done.stdout


def program(text: str, kernel: str) -> tuple[list[str], list[Loop]]:
    """Instructions of a kernel without predicates, and its loops."""
    section = text.split(f".text.{kernel}_kernel:")[1].split(".section")[0]
    instructions: list[str] = []
    places: dict[str, int] = {}
    for line in section.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            places[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?);", line):
            instructions.append(found[1])
    loops = set()
    for at, instruction in enumerate(instructions):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)
        if target and places[target[1]] < at:
            loops.add(Loop(places[target[1]], at))
    return instructions, sorted(loops, key=lambda loop: loop.last - loop.first)


def main_loop(instructions: list[str], loops: list[Loop]) -> Loop:
    """Of blocks in a forward, of iterations in an inversion: the smallest with all products and a
    meeting."""
    products = [at for at, text in enumerate(instructions) if text.startswith("HMMA")]
    for loop in loops:
        body = instructions[loop.first : loop.last + 1]
        if all(at in loop for at in products) and any("BAR" in text for text in body):
            return loop
    raise ValueError("no loop has all products and a meeting")


def trips(layout: Layout, loop: Loop, inner: list[Loop], instructions: list[str]) -> int:
    """How often a loop within the main one runs, told from what it does; for the busiest warp."""
    body = Counter(
        text.split()[0].split(".")[0] for text in instructions[loop.first : loop.last + 1]
    )
    if body["HMMA"]:
        return product_trips(layout, body)
    if body["LDGSTS"]:  # what its unrolled form leaves over is another loop, which runs once
        rounds = -(-layout.shared_weight_bytes // (16 * 32 * layout.warps))
        return rounds // body["LDGSTS"] if body["LDGSTS"] > 1 else 1
    if any(other in loop for other in inner):  # of a team's images
        return -(-layout.images // (layout.warps // layout.team))
    if body["F2FP"] and body["FADD"] > 8:  # of places
        items = layout.rows * layout.stage.width * layout.own // layout.vector
        return -(-items // (32 * layout.team))
    return 1


def product_trips(layout: Layout, body: Counter[str]) -> int:
    """How often the busiest warp runs a loop with products."""
    units = layout.tiles // layout.tall
    steps = layout.inner // TILE_K * layout.tall
    last = layout.last_columns // TILE_N * steps  # products of a unit in the last layer
    if not layout.shared:  # of units, through all layers; or of columns of the last
        return -(-units // layout.warps) if body["MUFU"] else last // body["HMMA"]
    if not body["STS"] and not body["MUFU"]:  # of steps of the first layer, some at a time
        return layout.first_rows // TILE_K // UNROLLED
    of_unit = last
    if body["MUFU"]:
        second = layout.inner_tiles * steps
        first = layout.inner_tiles * layout.first_rows // TILE_K * layout.tall
        of_unit = second if body["HMMA"] <= second else first
    return -(-units * of_unit // (body["HMMA"] * layout.warps))


def executed(layout: Layout, instructions: list[str], loops: list[Loop]) -> Counter[str]:
    """How often the busiest warp executes each kind of instruction in the main loop."""
    main = main_loop(instructions, loops)
    inner = [loop for loop in loops if loop in main]
    often = {loop: trips(layout, loop, inner, instructions) for loop in inner}
    count: Counter[str] = Counter()
    for at in range(main.first, main.last + 1):
        times = 1
        for loop, of_loop in often.items():
            times *= of_loop if at in loop else 1
        count[instructions[at].split()[0]] += times
    return count


def predicted(layout: Layout, kernel: str, batch: int, count: Counter[str]) -> dict[str, Any]:
    """Cycles that each unit of a multiprocessor is busy with one cluster's share, and microseconds
    that a block or an iteration takes for the whole batch."""
    warps_each = -(-layout.warps // 4)
    kinds: Counter[str] = Counter()
    shared = 0
    for name, times in count.items():
        kind, *rest = name.split(".")
        kinds[kind] += times
        if kind in ("LDS", "STS", "LDSM", "ST"):
            width = 4 if kind == "LDSM" else 4 if "128" in rest else 2 if "64" in rest else 1
            shared += times * width * SHARED_PER_4_BYTES
    instructions = sum(kinds.values())
    rate = min(BEST_RATE, RATE_OF_A_WARP * warps_each)
    busy = {
        "issue": instructions * warps_each / rate,
        "shared": shared * layout.warps,
        "tensor": kinds["HMMA"] * warps_each * TENSOR,
        "exponentials": kinds["MUFU"] * warps_each * EXPONENTIAL,
    }
    meetings = (3 if layout.splits > 1 else 1) if layout.cluster > 1 else 0
    once = max(busy.values()) / CLOCK_GHZ / 1e3 + meetings * CLUSTER_US + BLOCK_US
    clusters = -(-batch // layout.images)
    waves = -(-clusters // (MULTIPROCESSORS // layout.cluster))
    return {
        "kernel": kernel, "layout": str(layout), "stage": str(layout.stage), "batch": batch,
        "instructions": instructions, **{key: round(cycles) for key, cycles in busy.items()},
        "cluster_meetings": meetings, "waves": waves, "us": round(waves * once, 2),
        **{f"layout_{key}": value for key, value in asdict(layout).items() if key != "stage"},
    }  # fmt: skip


def table(content: dict[str, Any]) -> str:
    """The receipt as markdown."""
    lines = [
        "| kernel, batch | layout | instructions of a warp | issue / shared / tensor / exp, cycles "
        "| waves | predicted us |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["results"]:
        busy = " / ".join(str(row[key]) for key in ("issue", "shared", "tensor", "exponentials"))
        lines.append(
            f"| {row['kernel']} {row['batch']} | {row['layout']} | {row['instructions']} | {busy} "
            f"| {row['waves']} | {row['us']} |"
        )
    return "\n".join(lines)


def main() -> None:
    rows = []
    only = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for stage in (stage for stage in STAGES if not only or str(stage) in only):
            for batch in BATCHES:
                for kernel in ("forward", "inversion"):
                    layout = layout_for(stage, batch, MULTIPROCESSORS, CAPABILITY, kernel)
                    assert isinstance(layout, Layout), layout
                    code = program(disassembled(layout, Path(folder)), kernel)
                    rows.append(predicted(layout, kernel, batch, executed(layout, *code)))
    path = write_receipt("predicted", {"results": rows}, f"sm_{CAPABILITY}")
    content = json.loads(path.read_text())
    print(table(content))
    code = json.loads((TRACKED / f"machine-code-sm-{CAPABILITY}.json").read_text())
    print("\n" + bars_table(content, code))


if __name__ == "__main__":
    main()
