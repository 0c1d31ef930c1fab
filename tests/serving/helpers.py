"""What several test modules of the server need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from codedinv.serving import CodedServer, Prediction


def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.005)


def next_workers(server: CodedServer, count: int = 1) -> list[int]:
    """The workers that the next queries will go to: of those that are idle, the longest so."""
    fleet, chosen = server._engine._core.fleet, []
    for _ in range(count):
        worker = fleet.pick(0, (), chosen)
        assert worker is not None
        chosen.append(worker.index)
    return chosen


def check_answers(predictions: list[Prediction], expected: np.ndarray) -> None:
    for prediction, row in zip(predictions, expected, strict=True):
        np.testing.assert_allclose(prediction.outputs["label"], row, atol=1e-4)
