"""Properties of cost that hold on any machine; the figures themselves are in benchmarks/."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from codedinv import Code, StreamingDecoder
from codedinv.coding import _decoder


def seconds_per_push(decoder: StreamingDecoder, row: np.ndarray, k: int) -> float:
    decoder.reset()
    push = decoder.push
    start = time.perf_counter()
    for slot in range(k):
        push(slot, row)
    return (time.perf_counter() - start) / k


def test_a_push_costs_the_same_for_100_data_slots_as_for_2() -> None:
    row = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
    few, many = [StreamingDecoder(Code.uniform(k), 30_000) for k in (2, 100)]
    # The least of many interleaved runs: what the machine does besides only ever adds.
    pairs = [(seconds_per_push(few, row, 2), seconds_per_push(many, row, 100)) for _ in range(300)]
    best_of_few, best_of_many = (min(times) for times in zip(*pairs, strict=True))
    assert best_of_many < 1.5 * best_of_few


@pytest.mark.parametrize("name", _decoder.instruction_sets())
def test_every_instruction_set_passes_the_decoder_tests(name: str) -> None:
    program = (
        "import numpy as np; from codedinv import Code, StreamingDecoder\n"
        "from codedinv.coding import _decoder, reference\n"
        f"assert _decoder.instruction_set() == {name!r}\n"
        "rng = np.random.default_rng(0); code = Code.mds(4, 2)\n"
        "for dtype in ('float64', 'float32', 'float16', 'bfloat16'):\n"
        "    decoder = StreamingDecoder(code, 1001, dtype)\n"
        "    results = rng.normal(size=(6, 1001)).astype(decoder.dtype)\n"
        "    for slot in (1, 5, 4, 3): decoder.push(slot, results[slot])\n"
        "    wanted = reference.recover(code, {slot: results[slot] for slot in (1, 5, 4, 3)})\n"
        "    tolerance = dict(float64=1e-14, float32=1e-5, float16=1e-2, bfloat16=5e-2)[dtype]\n"
        "    for slot, row in decoder.recover().items():\n"
        "        error = abs(row.astype(float) - wanted[slot]).max() / abs(wanted[slot]).max()\n"
        "        assert error < tolerance, (dtype, error)\n"
    )
    environment = {**os.environ, "CODEDINV_ISA": name}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def test_an_unknown_instruction_set_is_refused() -> None:
    program = "from codedinv import Code, StreamingDecoder; StreamingDecoder(Code.uniform(2), 1)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CODEDINV_ISA": "mmx"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "'baseline', got 'mmx'" in done.stderr


@pytest.mark.parametrize("poll", [lambda d: d.ready, lambda d: d.missing])
def test_asking_how_far_it_is_never_waits_for_a_push(
    poll: Callable[[StreamingDecoder], Any],
) -> None:
    """Waiting would hold the GIL too, and stop every thread of the process."""
    decoder = StreamingDecoder(Code.mds(4, 4), 1 << 23)
    row = np.ones(1 << 23, np.float32)
    state = {"pushing": False}

    def push() -> None:
        state["pushing"] = True
        decoder.push(0, row)
        state["pushing"] = False

    # A push of 32 MiB into 128 MiB takes tens of milliseconds and an answer a microsecond; a
    # machine may be too busy to run both threads at once, but not every time.
    for _ in range(20):
        decoder.reset()
        thread = threading.Thread(target=push)
        thread.start()
        answers = 0
        while thread.is_alive():
            poll(decoder)
            answers += state["pushing"]
        thread.join()
        if answers > 100:
            return
    pytest.fail(f"{answers} answers during a push")


def test_threads_may_push_to_one_decoder() -> None:
    """Rows of 256 KiB, so that the GIL is released and the pushes truly overlap."""
    rng = np.random.default_rng(5)
    k = 12
    z = rng.normal(size=(k, 65_536)).astype(np.float32)
    results = [*z, z.mean(axis=0)]
    decoder = StreamingDecoder(Code.uniform(k), 65_536)
    refusals: list[ValueError] = []

    def work(slots: range) -> None:
        for slot in slots:
            try:
                decoder.push(slot, results[slot])
            except ValueError as error:
                refusals.append(error)

    # Each slot is pushed by two threads; one of the two must be refused.
    threads = [threading.Thread(target=work, args=(range(k + 1),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == k + 1
    assert decoder.residual()[0] < 1e-6
