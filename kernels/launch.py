"""What every launch needs: strides, the device, scratch memory, how many programs to start."""

from __future__ import annotations

import contextlib
from functools import cache

import torch
from torch import Tensor
from triton import knobs

from .packing import PackedBlocks
from .shapes import (
    Stage,
    next_power_of_2,
    padded_channels,
    padded_taps,
    padded_width,
    parts_of,
)
from .tuning import StageTuning

# Programs per multiprocessor of a persistent grid: two of 4 warps at 255 registers fill the
# register file; more only wait, and each one's scratch competes for L2.
PROGRAMS_PER_MULTIPROCESSOR = 2
# Under the interpreter programs run one after another; two are enough to test the persistent loop.
INTERPRETED_PROGRAMS = 2
# Registers of a multiprocessor, of any compute capability from 8.0 to 10.0.
REGISTER_FILE = 65536
# Elements a thread holds of a tile of pixels by channels outside the matrix products.
ELEMENTS_PER_THREAD = 8


def interpreting() -> bool:
    """Whether this process runs kernels in Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs_on(device: torch.device, tasks: int, bands: int) -> int:
    """Programs to launch for `tasks` independent tasks of `bands` programs each; a group of bands
    takes every so-manieth task. Bands wait for each other, so all must run at once: at most one
    program a multiprocessor then."""
    if device.type != "cuda":
        return bands * max(1, min(tasks, INTERPRETED_PROGRAMS))
    places = _multiprocessors(device) * (PROGRAMS_PER_MULTIPROCESSOR if bands == 1 else 1)
    return bands * max(1, min(tasks, places // bands))


def pixel_strides(x: Tensor) -> tuple[int, int, int]:
    """(image, pixel, channel) strides of x [B, C, H, W], whose rows follow one another."""
    return x.stride(0), x.stride(3), x.stride(1)


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes x's GPU current for a launch; nothing to do on the CPU."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def most_registers(num_warps: int) -> int:
    """Registers a thread may have: all there are. Told nothing, the assembler spills a few to reach
    the next lower number at which one more program fits on a multiprocessor."""
    return min(255, REGISTER_FILE // (32 * num_warps))


def launch_options(x: Tensor, tuning: StageTuning) -> dict[str, object]:
    """Triton's own arguments of a launch. Cooperative where bands wait for each other, so that a
    grid that could not run all at once is refused by the driver and never deadlocks."""
    options: dict[str, object] = {
        "INTERPRETED": interpreting(),
        "num_warps": tuning.num_warps,
        "num_stages": tuning.num_stages,
        "maxnreg": most_registers(tuning.num_warps),
    }
    if tuning.bands > 1 and x.device.type == "cuda":
        options["launch_cooperative_grid"] = True
    return options


def tile_constants(stage: Stage, dtype: torch.dtype, tuning: StageTuning) -> dict[str, object]:
    """The constexpr arguments that the stage and inversion kernels share."""
    channels = padded_channels(stage.channels)
    pixels = -(-stage.height // tuning.bands) * stage.width
    block = 32 * tuning.num_warps * ELEMENTS_PER_THREAD // channels
    return {
        "C": stage.channels, "CP": channels, "N": padded_width(stage.hidden),
        "K1": padded_taps(channels), "N3": padded_taps(stage.channels),
        "H": stage.height, "W": stage.width, "IMAGES": tuning.images, "BANDS": tuning.bands,
        "BLOCK": min(block, next_power_of_2(pixels)), "BLOCK_M": tuning.block_m,
        "BLOCK_N": tuning.block_n, "BLOCK_K": tuning.block_k, "PARTS": parts_of(dtype)[1],
    }  # fmt: skip


def allocate(
    x: Tensor, packed: PackedBlocks, tuning: StageTuning, images: int, sums: int = 0
) -> tuple[int, list[Tensor]]:
    """Programs to launch for x, and their scratch memory.

    Args:
        x: [B, C, H, W].
        packed: the blocks. tuning: tiles and bands.
        images: float32 buffers that each image needs.
        sums: float32 numbers that the bands tell each other of each image.

    Returns:
        The number of programs; per group of bands: images [images, IMAGES, C, H, W] float32,
        activated [2, PARTS, IMAGES, H, W, CP] in the dtype of the parts; per program: partial
        [9 C, pixels] float32, pixels = those of its rows and their halo, padded to tiles, and
        inner [PARTS, BLOCK_M, N] like activated; counters [groups] int32, zero; sums [groups,
        sums, BANDS, IMAGES padded] float32.
    """
    batch, channels, height, width = x.shape
    bands = tuning.bands
    programs = programs_on(x.device, -(-batch // tuning.images), bands)
    groups = programs // bands
    rows = -(-height // bands) + (2 if bands > 1 else 0)
    pixels = -(-tuning.images * rows * width // tuning.block_m) * tuning.block_m
    whole = groups * tuning.images * height * width
    return programs, [
        x.new_empty(images * whole * channels, dtype=torch.float32),
        x.new_empty(2 * packed.parts * whole * padded_channels(channels), dtype=packed.w1.dtype),
        x.new_empty(9 * programs * channels * pixels, dtype=torch.float32),
        x.new_empty(
            packed.parts * programs * tuning.block_m * padded_width(packed.hidden),
            dtype=packed.w1.dtype,
        ),
        x.new_zeros(groups, dtype=torch.int32),
        x.new_empty(sums * programs * next_power_of_2(tuning.images), dtype=torch.float32),
    ]
