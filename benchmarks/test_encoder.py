"""Encoder, backbone and head by pytest-benchmark: `pytest benchmarks/test_encoder.py`.

Interleaved ratios and the verdicts on the bars are made by benchmarks/encoder.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from codedinv import CodedModel

sys.path.insert(0, str(Path(__file__).parent))

from encoder_networks import BATCHES, BUNDLES, PARTS, NotAvailable, inputs, load


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("runtime", ["torch eager", "onnx fp32", "onnx int8"])
@pytest.mark.parametrize("k", BUNDLES)
def test_a_call(benchmark: BenchmarkFixture, k: int, runtime: str, batch: int, part: str) -> None:
    benchmark.group = f"k = {k}, batch {batch}, {runtime}"
    try:
        call = load(k, runtime).calls[part]
    except NotAvailable as error:
        pytest.skip(str(error))
    example = inputs(CodedModel.load(BUNDLES[k]), batch)[part]
    benchmark.pedantic(call, (example,), rounds=5, warmup_rounds=1)
