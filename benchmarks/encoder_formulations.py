"""What an encoder's layers cost in ONNX Runtime, one change at a time.

    python benchmarks/encoder_formulations.py [--rounds 15]

Untrained encoders for k = 4 and 10, exported as a bundle's are, called for 256 coding groups on one
thread beside the backbone of the bundle `fashion-mnist` for 256 queries. Calls alternate; a ratio
is the median of the rounds', of CPU times. Multiply-accumulates are over the backbone's too.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from receipt import cpu_name, write_receipt

from codedinv import CodedModel
from codedinv.coding import Code
from codedinv.model.export import to_onnx
from codedinv.nn import Encoder, EncoderConfig, macs

BATCH = 256
Call = Callable[[], Any]


def formulations(k: int) -> dict[str, dict[str, Any]]:
    """Settings of the encoders compared, by what they are called in docs/performance.md."""
    before = {"input_channels": 12 if k == 4 else 6, "width": 24, "blocks": 2}
    silu = {**before, "activation": "silu"}
    sixteen = {**silu, "input_channels": 16}
    separable = {**sixteen, "separable": True, "width": 48}
    return {
        "before: 3x3 of 24, ELU": before,
        "SiLU": silu,
        "SiLU, 3x3 of 32": {**silu, "width": 32},
        "SiLU, 3x3 of 16, 16 features": {**sixteen, "width": 16},
        "SiLU, separable of 48, 16 features": separable,
        "the same, margin of 2": {**separable, "margin": 2},
        "the same, margin of 0": {**separable, "margin": 0},
        "margin of 2, 3 blocks": {**separable, "margin": 2, "blocks": 3},
        "margin of 2, 32 features": {**separable, "margin": 2, "input_channels": 32},
        "margin of 2, separable of 64": {**separable, "margin": 2, "width": 64},
    }


def measure(k: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each formulation."""
    model = CodedModel.load("fashion-mnist", runtime="torch")
    query = torch.rand(BATCH, *model.input_shape)
    group = torch.rand(BATCH, k, *model.input_shape)
    rows = tuple(tuple(row) for row in Code.uniform(k).coefficients.tolist())
    encoders = {
        name: Encoder(EncoderConfig(tuple(model.input_shape), rows, **settings))
        for name, settings in formulations(k).items()
    }
    backbone = _call(model.modules.backbone, query)
    calls = {name: _call(encoder, group) for name, encoder in encoders.items()}
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        one = _seconds(backbone)
        for name, call in calls.items():
            ratios[name].append(_seconds(call) / one)
    work = macs(model.modules.backbone, query[:1])
    return [
        {
            "k": k, "encoder": name, **formulations(k)[name],
            "encoder_over_backbone": round(float(np.median(ratios[name])), 4),
            "macs_over_backbone": round(macs(encoder, group[:1]) / work, 4),
        }
        for name, encoder in encoders.items()
    ]  # fmt: skip


def _call(module: torch.nn.Module, example: torch.Tensor) -> Call:
    content, _ = to_onnx(module, example[:3], "x", "y")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    x = example.numpy()
    session.run(None, {"x": x})
    return lambda: session.run(None, {"x": x})


def _seconds(call: Call) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = [row for k in (4, 10) for row in measure(k, options.rounds)]
    for row in rows:
        print(f"k = {row['k']:2}  {row['encoder']:36} {row['encoder_over_backbone']:6.1%} "
              f"of the time, {row['macs_over_backbone']:6.1%} of the work")  # fmt: skip
    write_receipt("formulations", {"bars": [], "rows": rows}, cpu_name())
    return 0


if __name__ == "__main__":
    sys.exit(main())
