"""How each kernel is run: (stage, dtype, batch, device) -> tiles, warps, pipeline depth, bands.

`measured.json` holds what a card has been seen to prefer, written by `benchmarks/device.sh adopt`;
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

from .shapes import Stage, padded_channels, padded_width
from .versions import speaks_here

MEASURED = Path(__file__).with_name("measured.json")

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
    """How the stage and inversion kernels run.

    Attributes:
        images: whole images per program.
        block_m: pixels per tile of the matrix products.
        block_k: rows of the first convolution's weights that are multiplied at a time.
        block_n: columns of the last one's.
        num_warps, num_stages: as in Triton.
        bands: programs that share an image, each a band of rows; images is 1 if there are several.
        promote: whether float32 sums of block_k rows begin at zero and are added up outside of the
            tensor core, which cuts them off.
    """

    images: int
    block_m: int
    block_k: int
    block_n: int
    num_warps: int
    num_stages: int
    bands: int = 1
    promote: bool = True


def tensor_cores(capability: int) -> str:
    """The matrix instruction that Triton emits for a compute capability: "wgmma" for 9.x,
    "tcgen05" for 10.x and 11.x, "mma" for the others, 12.x among them."""
    return {9: "wgmma", 10: "tcgen05", 11: "tcgen05"}.get(capability // 10, "mma")


@dataclass(frozen=True)
class Rule:
    """Tiles for the calls it fits; of rules that fit, the later ones count.

    Attributes:
        tiles: fields of StageTuning. why: what decided.
        cores: a matrix instruction. exact: float32, in three parts. wide: above 64 hidden
            channels. few: no more images than multiprocessors. channels: at most so many, as
            padded. hidden: at most so many. stage: this one only. None fits all.
    """

    tiles: dict[str, int]
    why: str
    cores: str | None = None
    exact: bool | None = None
    wide: bool | None = None
    few: bool | None = None
    channels: int = LARGEST_CHANNELS
    hidden: int = LARGEST_HIDDEN
    stage: Stage | None = None

    def fits(self, stage: Stage, exact: bool, cores: str, few: bool) -> bool:
        return (
            self.cores in (None, cores)
            and self.exact in (None, exact)
            and self.wide in (None, stage.hidden > 64)
            and self.few in (None, few)
            and padded_channels(stage.channels) <= self.channels
            and stage.hidden <= self.hidden
            and self.stage in (None, stage)
        )


# Without them something spills, unless a reason is given.
RULES = (
    Rule({"block_m": 64, "block_k": 64, "block_n": 64, "num_warps": 4, "num_stages": 2}, "default"),
    Rule({"num_warps": 8}, "a tile's hidden layer fits the registers", wide=True),
    Rule({"block_m": 128}, "wgmma takes 64 rows from each 4 warps", cores="wgmma", wide=True),
    Rule({"block_m": 64, "block_k": 32, "num_warps": 4}, "an image has 64 pixels at most; 8 warps "
         "would multiply twice. In three parts these spill 8 to 64 bytes",
         cores="wgmma", exact=False, wide=True, few=True),
    Rule({"block_k": 32}, "tensor memory", cores="tcgen05", wide=True),
    Rule({"block_k": 32, "block_n": 32}, "three parts of each operand", exact=True),
    Rule({"block_k": 16}, "", exact=True, wide=True),
    Rule({"block_k": 16}, "fragments of mma are registers", cores="mma", exact=True),
    Rule({"block_n": 16}, "", cores="mma", exact=True, wide=True),
    Rule({"block_m": 32}, "with 64 mixing spills 8 bytes", cores="mma", exact=True,
         stage=Stage(16, 7, 7, 96)),
    Rule({"num_warps": 8}, "4 would use every register", cores="tcgen05", exact=True),
    Rule({"num_warps": 4}, "these do not", cores="tcgen05", exact=True, hidden=32),
    Rule({"num_stages": 1}, "a pipeline overflows tensor memory, for which Triton 3.7 emits a trap",
         cores="tcgen05", exact=True, wide=True),
    Rule({"block_k": 32}, "16 spill 8 to 16 bytes", cores="tcgen05", exact=True, wide=True),
    Rule({"block_k": 16}, "32 spill 24 to 32", cores="tcgen05", exact=True,
         stage=Stage(16, 7, 7, 96)),
    Rule({"block_k": 64}, "nine taps at once", cores="wgmma", exact=True, channels=4, hidden=32),
    Rule({"block_k": 16}, "nine taps of one channel are sixteen", channels=1),
    Rule({"num_stages": 3}, "shared memory allows it", exact=False, channels=4),
    Rule({"num_stages": 1}, "Triton 3.6 spills 8 to 56 bytes for a pipeline",
         cores="wgmma", exact=True, stage=Stage(16, 7, 7, 96)),
    Rule({"num_stages": 1}, "8 to 32 bytes", cores="wgmma", exact=True, stage=Stage(64, 4, 4, 128)),
)  # fmt: skip


def default_stage_tuning(
    stage: Stage, dtype: torch.dtype, capability: int = 90, bands: int = 1, few: bool = False
) -> StageTuning:
    """A tuning that compiles without spills for every stage, dtype and target listed here, on
    Triton 3.6 to 3.9; the sizes of tiles were found by trying, not by timing.

    Args:
        stage, dtype: of the call. capability: of the card, 90 for 9.0.
        bands: programs for each image.
        few: whether there are no more images than multiprocessors, so that each gets its own.
    """
    exact, cores = dtype == torch.float32, tensor_cores(capability)
    tiles: dict[str, int] = {}
    for rule in RULES:
        if rule.fits(stage, exact, cores, few):
            tiles |= rule.tiles
    tiles["block_n"] = min(tiles["block_n"], padded_width(9 * stage.channels))
    images = 1 if few else max(1, tiles["block_m"] // (stage.height * stage.width))
    # Sums in tensor memory would have to leave it at each step, and programs would spill.
    promote = cores != "tcgen05"
    return StageTuning(images=images, bands=bands, promote=promote, **tiles)


def _interpreted(stage: Stage, dtype: torch.dtype) -> StageTuning:
    """Tiles for the interpreter, where an operation costs the same whatever its size."""
    return replace(
        default_stage_tuning(stage, dtype),
        images=max(1, 128 // (stage.height * stage.width)),
        block_m=128,
        block_k=64,
        block_n=64,
        num_warps=32,
    )


def bands_for(stage: Stage, batch: int, multiprocessors: int) -> int:
    """Into how many bands of rows to cut an image so that a small batch fills the card.

    Each band also computes the hidden layers of its neighbours' nearest rows, so a band is no
    thinner than two rows, nor than what fills a tile of 64 pixels together with those; 1 where
    that leaves nothing to share. From there rows double, since each number of them is a kernel to
    compile, and a band of 4 + 2 rows costs but a fifth more than one of 3 + 2.
    """
    least = max(2, -(-64 // stage.width) - 2)
    bands = min(multiprocessors // max(1, batch), -(-stage.height // least))
    if bands < 2 or stage.height <= least + 2:
        return 1
    rows = least
    while rows * bands < stage.height:
        rows *= 2
    return -(-stage.height // rows)


@cache
def _measured() -> dict[str, Any]:
    return json.loads(MEASURED.read_text()) if MEASURED.exists() else {}


def measured_entry(card: Card, kernel: str, stage: Stage, dtype: torch.dtype) -> dict[str, Any]:
    """What was measured of a kernel on a card with these releases of torch and Triton; {} where
    nothing was."""
    key = f"{kernel} {stage} {str(dtype).removeprefix('torch.')}"
    entry = _measured().get(card.name, {}).get(key, {})
    return dict(entry) if speaks_here(entry.get("versions")) else {}


def measured_on_chip(card: Card) -> bool:
    """Whether anything was measured on a card of the kernels of cuda/."""
    return any(key.startswith("on_chip ") for key in _measured().get(card.name, {}))


def stage_tuning(
    kernel: str, stage: Stage, dtype: torch.dtype, batch: int, card: Card
) -> StageTuning:
    """The tuning of kernel "stage" or "inversion" for a batch on a card."""
    if card == INTERPRETER:
        return _interpreted(stage, dtype)
    few = batch <= card.multiprocessors
    bands = bands_for(stage, batch, card.multiprocessors)
    default = default_stage_tuning(stage, dtype, card.capability, bands, few)
    name = f"{kernel} of few" if few else kernel
    return replace(default, **measured_entry(card, name, stage, dtype).get("tuning", {}))
