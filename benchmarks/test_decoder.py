"""A push and a recovery, by pytest-benchmark: `pytest benchmarks/test_decoder.py`.

Interleaved ratios and the verdicts on the bars are made by benchmarks/decoder.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from codedinv import Code, StreamingDecoder
from codedinv.coding.reference import OnlineDecoder

LENGTHS = (784, 3072, 65_536)
ROUNDS = 500


def random_row(length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(size=length).astype(np.float32)


def time_pushes(benchmark: BenchmarkFixture, decoder: Any, k: int, row: np.ndarray) -> None:
    slots = iter(())

    def next_slot() -> tuple[tuple[int, np.ndarray], dict[str, Any]]:
        nonlocal slots
        slot = next(slots, None)
        if slot is None:
            decoder.reset()
            slots = iter(range(k))
            slot = next(slots)
        return (slot, row), {}

    benchmark.pedantic(decoder.push, setup=next_slot, rounds=ROUNDS, warmup_rounds=20)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("k", [2, 10, 100])
def test_push(benchmark: BenchmarkFixture, k: int, length: int) -> None:
    benchmark.group = f"push, {length} fp32"
    time_pushes(benchmark, StreamingDecoder(Code.uniform(k), length), k, random_row(length))


@pytest.mark.parametrize("length", LENGTHS)
def test_push_to_the_numpy_online_decoder(benchmark: BenchmarkFixture, length: int) -> None:
    benchmark.group = f"push, {length} fp32"
    time_pushes(benchmark, OnlineDecoder(Code.uniform(10), (length,)), 10, random_row(length))


@pytest.mark.parametrize("k", [2, 10, 100])
def test_recover(benchmark: BenchmarkFixture, k: int) -> None:
    benchmark.group = "recover one of k, 3072 fp32"
    decoder = StreamingDecoder(Code.uniform(k), 3072)
    row = random_row(3072)
    for slot in range(1, k + 1):
        decoder.push(slot, row)
    recovered = benchmark(decoder.recover)
    # k equal roundings in one direction, each amplified k times.
    np.testing.assert_allclose(recovered[0], row, atol=k**2 * 2.0**-23)
