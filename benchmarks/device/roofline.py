"""What the card can do at most, and the floor under a time that follows from it."""

from __future__ import annotations

import json
from functools import partial

import torch

from codedinv.kernels import testing

from .options import Options
from .receipts import Receipt
from .timing import Timer

# Products of half-precision numbers that one product of the kernels is made of.
PRODUCTS = {torch.float32: 6, torch.bfloat16: 1, torch.float16: 1}


def measure_ceilings(options: Options) -> None:
    """Copy bandwidth and matrix rates of this card; seconds, so always measured again."""
    out, timer = Receipt("ceilings", options, tuned=False), Timer(options.rehearse)
    out.results = []
    side = 64 if options.rehearse else 8192
    words = 1 << (10 if options.rehearse else 30)
    source = torch.randn(words, device=testing.DEVICE)
    target = torch.empty_like(source)
    ms = timer(lambda: target.copy_(source))
    out.add({"what": "copy_gb_s", "value": 8 * words / ms / 1e6})
    for name, dtype, tf32 in (
        ("bf16_tflops", torch.bfloat16, False),
        ("tf32_tflops", torch.float32, True),
        ("fp32_tflops", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device=testing.DEVICE, dtype=dtype) for _ in range(2))
        ms = timer(partial(torch.matmul, a, b))
        out.add({"what": name, "value": 2 * side**3 / ms / 1e9})
    torch.backends.cuda.matmul.allow_tf32 = False


def floor_ms(options: Options, batch: int, passes: float) -> float | None:
    """Least time of `passes` forwards by the measured ceilings; None before they are measured."""
    receipts = (json.loads(path.read_text()) for path in options.out.glob("ceilings-*.json"))
    here = [found["results"] for found in receipts if found["rehearsal"] == options.rehearse]
    if not here:
        return None
    ceilings = {row["what"]: row["value"] for row in here[0]}
    flops = 2 * options.network.macs * batch * passes * PRODUCTS[options.dtype]
    first = options.network.stages[0][0]
    pixels = batch * first.channels * first.height * first.width
    moved = 2 * pixels * torch.finfo(options.dtype).bits // 8
    seconds = max(flops / (ceilings["bf16_tflops"] * 1e12), moved / (ceilings["copy_gb_s"] * 1e9))
    return round(1e3 * seconds, 5)
