"""Whether kernels can run something, and whether they should."""

from __future__ import annotations

import logging
from bisect import bisect_left
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from . import tuning
from .shapes import Stage
from .tuning import INTERPRETER, Card

logger = logging.getLogger(__name__)

# Of the other's time: at most this where neither was measured.
MARGIN = 0.9
# Times the largest measured batch.
FURTHEST = 2


@cache
def say_once(message: str) -> None:
    """Logs a message at its first occurrence."""
    logger.info(message)


def card_of(device: torch.device) -> Card:
    """What tuning needs to know of a device; INTERPRETER for the CPU."""
    if device.type != "cuda":
        return INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    return Card(properties.name, properties.multi_processor_count, capability)


def unsupported(x: Tensor, hidden: int) -> str | None:
    """Why the kernels cannot take x [B, C, H, W] with `hidden` channels; None if they can."""
    if find_spec("triton") is None:
        return "triton is not installed"
    from .launch import interpreting

    if x.device.type != "cuda" and not interpreting():
        return f"device {x.device.type} (kernels run on cuda)"
    if x.device.type == "cuda":
        reason = unsupported_card(x.device)
        if reason is not None:
            return reason
    if x.dtype not in tuning.DTYPES:
        return f"dtype {x.dtype}"
    channels, height, width = x.shape[1:]
    if channels > tuning.LARGEST_CHANNELS or hidden > tuning.LARGEST_HIDDEN:
        return (
            f"{channels} channels with {hidden} hidden (at most {tuning.LARGEST_CHANNELS} and "
            f"{tuning.LARGEST_HIDDEN})"
        )
    if not 0 < height * width <= tuning.LARGEST_PIXELS:
        return f"{height}x{width} pixels (at most {tuning.LARGEST_PIXELS})"
    return None


def unsupported_card(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device that torch calls cuda; None if they can."""
    if torch.version.hip is not None:
        return "ROCm (the kernels have instructions of NVIDIA GPUs)"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "compute capability below 8.0"
    return None


def kernels_apply(x: Tensor, hidden: int) -> bool:
    """Whether kernels take x; says once why not, where they cannot."""
    reason = unsupported(x, hidden)
    if reason is not None:
        say_once(f"codedinv.kernels falls back to torch: {reason}")
    return reason is None and x.shape[0] > 0


def measured_faster(kernel: str, stage: Stage, dtype: torch.dtype, batch: int, card: Card) -> bool:
    """Whether a receipt shows the kernel to beat the best other way to run this on this card.

    At a measured batch its time must be below that of every other form, graphs and compiled ones
    included. Between two measured batches both times are taken to grow linearly from one to the
    other, and the kernel must keep a tenth of a margin. Up to twice the largest measured batch the
    same margin must hold there, for a full card's times grow alike; beyond that, and below the
    smallest, nothing is known. Where the kernel failed its time is None: nothing is known beside
    that batch either.

    Args:
        kernel: "forward" or "inversion", after "on_chip " for the kernels of cuda/.
        stage, dtype, batch: the call.
        card: where.
    """
    rows = tuning.measured_entry(card, kernel, stage, dtype).get("times", [])
    index = bisect_left(rows, batch, key=lambda row: row["batch"])
    if index < len(rows) and rows[index]["batch"] == batch:
        return rows[index]["ours"] is not None and bool(rows[index]["ours"] < rows[index]["other"])
    if not rows or index == 0 or batch > FURTHEST * rows[-1]["batch"]:
        return False
    below, above = rows[index - 1], rows[min(index, len(rows) - 1)]
    if below["ours"] is None or above["ours"] is None:
        return False
    width = above["batch"] - below["batch"]
    share = (batch - below["batch"]) / width if width else 0.0
    ours, other = (below[key] + share * (above[key] - below[key]) for key in ("ours", "other"))
    return bool(ours < MARGIN * other)
