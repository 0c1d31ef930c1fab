"""What every launch needs: strides, the device, how many programs to start."""

from __future__ import annotations

import contextlib
from functools import cache

import torch
from torch import Tensor
from triton import knobs

from .packing import PackedBlocks, padded_width
from .tuning import StageTuning

# Programs per multiprocessor of a persistent grid. Two 4-warp programs at 255 registers fill the
# register file; more only wait, and each one's scratch competes for L2.
PROGRAMS_PER_MULTIPROCESSOR = 2
# Under the interpreter programs run one after another; two are enough to test the persistent loop.
INTERPRETED_PROGRAMS = 2


def interpreting() -> bool:
    """Whether this process runs kernels in Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(knobs.runtime.interpret)


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs_on(device: torch.device, tasks: int) -> int:
    """Programs to launch for `tasks` independent tasks; each takes every so-manieth."""
    if device.type != "cuda":
        return max(1, min(tasks, INTERPRETED_PROGRAMS))
    return max(1, min(tasks, PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(device)))


def pixel_strides(x: Tensor) -> tuple[int, int, int]:
    """(image, pixel, channel) strides of x [B, C, H, W], whose rows follow one another."""
    return x.stride(0), x.stride(3), x.stride(1)


def has_pixel_stride(x: Tensor) -> bool:
    """Whether one stride leads from any pixel to the next, also across rows (NCHW and NHWC do)."""
    return x.stride(2) == x.shape[3] * x.stride(3)


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes x's GPU current for a launch; nothing to do on the CPU."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def inner_scratch(hidden: Tensor, packed: PackedBlocks, tuning: StageTuning) -> Tensor:
    """Scratch for the first hidden layer: none of its own where it stays in registers."""
    fused = tuning.block_n == padded_width(packed.hidden)
    return hidden if fused else torch.empty_like(hidden)
