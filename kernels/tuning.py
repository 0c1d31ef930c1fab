"""How each kernel is run: (stage, dtype, device) -> tile, warps, pipeline depth, arithmetic.

`measured.json` holds what a card has been seen to prefer, written by `benchmarks/device.sh tune`;
a card or stage that is not in it gets the default below. The defaults come from what the compiler
reports without a card (no spills, shared memory; see docs/kernels.md), not from timings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .packing import padded_width

MEASURED = Path(__file__).with_name("measured.json")

# float32 operands on tensor cores as three TF32 products (relative error about 1e-6), or as plain
# FMA ("ieee"). tf32x3 is the default because FMA peaks at 67 TFLOP/s on an H200 against about 165
# for three TF32 products; no card has timed the two here yet.
FLOAT32_PRECISION = "tf32x3"

LARGEST_HIDDEN = 128
LARGEST_CHANNELS = 64
LARGEST_PIXELS = 4096


@dataclass(frozen=True)
class Card:
    """What tuning needs to know of a device.

    Attributes:
        name: torch's name of it, as in measured.json.
        multiprocessors: how many programs of one kernel it can begin at once.
        capability: compute capability, 90 for 9.0.
    """

    name: str
    multiprocessors: int
    capability: int


# The card of a process that runs kernels in Triton's interpreter.
INTERPRETER = Card("interpreter", 1, 0)


@dataclass(frozen=True, order=True)
class Stage:
    """The shape of a run of residual blocks: C @ H x W with M hidden channels."""

    channels: int
    height: int
    width: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.channels}@{self.height}x{self.width}/{self.hidden}"

    @property
    def branch_macs(self) -> int:
        """Multiply-accumulates of one block's branch for one image."""
        per_pixel = 18 * self.channels * self.hidden + self.hidden * self.hidden
        return per_pixel * self.height * self.width


# Every stage of the recipes: the small Fashion-MNIST networks, then the paper's (MNIST and
# Fashion-MNIST padded to 32x32; CIFAR-10).
STAGES = (
    Stage(1, 28, 28, 16), Stage(1, 28, 28, 32),
    Stage(4, 14, 14, 32), Stage(4, 14, 14, 64),
    Stage(16, 7, 7, 64), Stage(16, 7, 7, 96),
    Stage(4, 16, 16, 32), Stage(16, 8, 8, 64), Stage(64, 4, 4, 128),
    Stage(3, 32, 32, 32), Stage(12, 16, 16, 64), Stage(48, 8, 8, 128),
)  # fmt: skip

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class StageTuning:
    """How the kernels that keep whole images (stage forward, inversion) run.

    Attributes:
        images: whole images per program.
        block_m: pixels per tile. block_k1, block_k3: K chunk of the two 3x3 convolutions.
        block_n: hidden channels per tile: all (padded), or a divisor of them, in which case the
            first hidden layer goes through scratch.
        num_warps, num_stages: as in Triton.
        precision: of float32 products, "tf32x3", "ieee" or "tf32".
    """

    images: int
    block_m: int
    block_n: int
    block_k1: int
    block_k3: int
    num_warps: int
    num_stages: int
    precision: str


@dataclass(frozen=True)
class BlockTuning(StageTuning):
    """How the one-block kernel runs: as above, and into how many bands of rows an image is cut."""

    bands: int = 1


def default_stage_tuning(stage: Stage, dtype: torch.dtype, capability: int = 90) -> StageTuning:
    """A tuning that compiles without spills for every stage, dtype and target listed here.

    float32 as three TF32 products needs three times the operand registers: K chunks of 16 and
    hidden tiles of 32 are what Triton 3.6 and 3.9 both fit into 255 (32 and 64 spill up to 280
    bytes a thread on sm_90). Where a pipelined loop spills its addresses, the loop is not
    pipelined: half precision on compute capabilities 8 and 10, float32 on 8.
    """
    exact = dtype == torch.float32
    smallest = 16 if exact else 32
    block_k1 = next((k for k in (smallest, 16) if stage.channels % k == 0), 32)
    block_n = padded_width(stage.hidden)
    if exact and stage.hidden >= 64:
        block_n = 32
    elif stage.hidden > 64:
        block_n = 64 if stage.hidden % 64 == 0 else 32
    return StageTuning(
        images=max(1, 64 // (stage.height * stage.width)),
        block_m=64,
        block_n=block_n,
        block_k1=16 if stage.channels == 1 else block_k1,
        block_k3=smallest if stage.hidden % smallest == 0 else 16,
        num_warps=8 if stage.channels > 16 else 4,
        num_stages=_pipeline_depth(stage, exact, capability),
        precision=FLOAT32_PRECISION if exact else "ieee",
    )


def _pipeline_depth(stage: Stage, exact: bool, capability: int) -> int:
    if capability // 10 == 8:
        # The one float32 stage that spills (168 bytes) without pipelining.
        return 2 if exact and stage == Stage(16, 7, 7, 96) else 1
    return 2 if exact or capability // 10 == 9 else 1


def _interpreted(stage: Stage, dtype: torch.dtype) -> StageTuning:
    """Tiles for the interpreter, where an operation costs the same whatever its size."""
    return replace(
        default_stage_tuning(stage, dtype),
        images=max(1, 128 // (stage.height * stage.width)),
        block_m=128,
        block_n=padded_width(stage.hidden),
        block_k1=64,
        block_k3=64,
    )


def bands_for(stage: Stage, batch: int, multiprocessors: int) -> int:
    """Bands that give every multiprocessor work, none thinner than two rows."""
    wanted = -(-multiprocessors // max(1, batch))
    most = max(1, stage.height // 2)
    return min(wanted, most)


@cache
def _measured() -> dict[str, Any]:
    return json.loads(MEASURED.read_text()) if MEASURED.exists() else {}


def _entry(card: Card, kernel: str, stage: Stage, dtype: torch.dtype) -> dict[str, Any]:
    key = f"{kernel} {stage} {str(dtype).removeprefix('torch.')}"
    return dict(_measured().get(card.name, {}).get(key, {}))


def stage_tuning(kernel: str, stage: Stage, dtype: torch.dtype, card: Card) -> StageTuning:
    """The tuning of kernel "stage" or "inversion" on a card."""
    if card == INTERPRETER:
        return _interpreted(stage, dtype)
    default = default_stage_tuning(stage, dtype, card.capability)
    return replace(default, **_entry(card, kernel, stage, dtype).get("tuning", {}))


def block_tuning(stage: Stage, dtype: torch.dtype, batch: int, card: Card) -> BlockTuning:
    """The tuning of the one-block kernel for a batch on a card."""
    tiles = stage_tuning("block", stage, dtype, card)
    bands = bands_for(stage, batch, card.multiprocessors)
    return BlockTuning(**{**vars(tiles), "images": 1 if bands > 1 else tiles.images}, bands=bands)


def smallest_stage_batch(stage: Stage, dtype: torch.dtype, card: Card) -> int:
    """Batch from which one launch for the whole stage beats one launch a block.

    Below it, whole images leave multiprocessors idle that bands could use.
    """
    return card.multiprocessors * stage_tuning("stage", stage, dtype, card).images // 2


def measured_faster(kernel: str, stage: Stage, dtype: torch.dtype, batch: int, card: Card) -> bool:
    """Whether a receipt shows the kernel to beat the best torch path on this card.

    Args:
        kernel: "forward" or "inversion".
        stage, dtype, batch: the call.
        card: where.
    """
    batches = _entry(card, kernel, stage, dtype).get("faster_at_batch", [])
    return any(low <= batch <= high for low, high in batches)
