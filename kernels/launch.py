"""What every launch needs: strides, the device, a plan (sizes, grid, options), scratch memory."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from .shapes import (
    Sizes,
    Stage,
    next_power_of_2,
    padded_channels,
    padded_taps,
    padded_width,
    parts_of,
    pixel_strides,  # noqa: F401 (the modules of kernels take it from here)
)
from .tuning import StageTuning

# Programs per multiprocessor of a persistent grid: two of 4 warps at 255 registers fill the
# register file; more only wait, and each one's scratch competes for L2.
PROGRAMS_PER_MULTIPROCESSOR = 2
# Under the interpreter programs run one after another; two are enough to test the persistent loop.
INTERPRETED_PROGRAMS = 2
# Registers of a multiprocessor, of any compute capability from 8.0 to 12.0.
REGISTER_FILE = 65536
# Elements a thread holds of a tile of pixels by channels outside the matrix products.
ELEMENTS_PER_THREAD = 8
# Anderson mixing sums four such tiles at once: with 8 Triton 3.6 spills 48 bytes at 16@7x7/64, and
# with 4, where 8 warps share a tile, any Triton up to 40 at 48@8x8/128.
ELEMENTS_WHEN_MIXING = {4: 4, 8: 8}

# float32 scratch images of each kernel. Forward: a block's input and output, in turns. Fixed
# point: y and the last two G(x) = y - F(x) rotate through three; Anderson acceleration also keeps
# x (index 3) and the last two steps G(x) - x (4 and 5).
BUFFERS = {"stage": 2, "inversion": 3, "anderson": 6}
# Numbers that a band tells the others of an image, in turns in two places (solver.py).
SUMS = 12


def interpreting() -> bool:
    """Whether this process runs kernels in Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs_on(device: torch.device, tasks: int, bands: int) -> int:
    """Programs to launch for `tasks` independent tasks of `bands` programs each, which groups of
    bands take in turns. Bands wait for each other, so all must run at once: at most one program a
    multiprocessor then."""
    if device.type != "cuda":
        return bands * max(1, min(tasks, INTERPRETED_PROGRAMS))
    places = _multiprocessors(device) * (PROGRAMS_PER_MULTIPROCESSOR if bands == 1 else 1)
    return bands * max(1, min(tasks, places // bands))


_NOTHING = contextlib.nullcontext()


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes x's GPU current for a launch; nothing to do on the CPU."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else _NOTHING


def most_registers(num_warps: int) -> int:
    """Registers a thread may have: all there are. Told nothing, the assembler spills a few to reach
    the next lower number at which one more program fits on a multiprocessor."""
    return min(255, REGISTER_FILE // (32 * num_warps))


@lru_cache(maxsize=1024)
def sizes_of(
    kernel: str, stage: Stage, dtype: torch.dtype, tuning: StageTuning, interpreted: bool
) -> Sizes:
    """What kernel "stage", "inversion" or "anderson" is compiled for."""
    channels = padded_channels(stage.channels)
    pixels = -(-stage.height // tuning.bands) * stage.width
    elements = ELEMENTS_PER_THREAD
    if kernel == "anderson":
        elements = ELEMENTS_WHEN_MIXING.get(tuning.num_warps, elements)
    block = 32 * tuning.num_warps * elements // channels
    return Sizes(
        C=stage.channels, CP=channels, N=padded_width(stage.hidden),
        K1=padded_taps(channels), N3=padded_taps(stage.channels),
        H=stage.height, W=stage.width, IMAGES=tuning.images, BANDS=tuning.bands,
        BLOCK=min(block, next_power_of_2(pixels)), BLOCK_M=tuning.block_m,
        BLOCK_N=tuning.block_n, BLOCK_K=tuning.block_k, PARTS=parts_of(dtype)[1],
        PROMOTE=tuning.promote, INTERPRETED=interpreted,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """How one kernel is launched for one shape of batch.

    Attributes:
        grid: number of programs. sizes: constexpr of the kernel. options: Triton's own arguments.
        scratch: (dtype, count) of each kind of scratch memory: images [groups, buffers, IMAGES, C,
            H, W] float32; activated [groups, 2, PARTS, IMAGES, H, W, CP] of the parts; partial
            [programs, 9 C, STRIDE] float32; inner [programs, PARTS, BLOCK_M, N] of the parts;
            sums [groups, SUMS, BANDS, IDS] float32. A group is the programs of an image.
        groups: number of counters, one for each group.
    """

    grid: tuple[int]
    sizes: Sizes
    options: dict[str, Any]
    scratch: tuple[tuple[torch.dtype, int], ...]
    groups: int


@lru_cache(maxsize=1024)
def plan_of(
    kernel: str,
    stage: Stage,
    dtype: torch.dtype,
    batch: int,
    device: torch.device,
    tuning: StageTuning,
) -> Plan:
    """The plan of kernel "stage", "inversion" or "anderson" with given tiles."""
    interpreted = interpreting()
    sizes = sizes_of(kernel, stage, dtype, tuning, interpreted)
    programs = programs_on(device, -(-batch // tuning.images), tuning.bands)
    groups = programs // tuning.bands
    part, count = parts_of(dtype)
    options: dict[str, Any] = {
        "num_warps": tuning.num_warps,
        "num_stages": tuning.num_stages,
        "maxnreg": most_registers(tuning.num_warps),
    }
    if tuning.bands > 1 and device.type == "cuda":
        # A grid that could not run all at once is refused by the driver and never deadlocks.
        options["launch_cooperative_grid"] = True
    scratch = (
        (torch.float32, BUFFERS[kernel] * groups * sizes.SIZE),
        (part, 2 * count * groups * sizes.PLANE),
        (torch.float32, 9 * programs * sizes.C * sizes.STRIDE),
        (part, count * programs * sizes.BLOCK_M * sizes.N),
        (torch.float32, 0 if kernel == "stage" else SUMS * programs * sizes.IDS),
    )
    return Plan((programs,), sizes, options, scratch, groups)
