"""Open-loop traffic and its tally, with servers whose behaviour is known."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codedinv.errors import Overloaded
from codedinv.experiments.tally import Tally
from codedinv.experiments.traffic import Record, poisson_arrivals, send

QUERIES = np.zeros((5, 1, 2, 2), np.float32)
ARRIVALS = np.array([0.00, 0.02, 0.04, 0.06, 0.08])


def prediction(source: str = "exact", answer: int = 0) -> Any:
    return SimpleNamespace(outputs={"label": np.eye(3, dtype=np.float32)[answer]}, source=source)


class Script:
    """A server that does with the i-th query what the i-th function says."""

    def __init__(self, *deeds: Any) -> None:
        self._deeds = list(deeds)

    def submit(self, x: np.ndarray) -> Future[Any]:
        future: Future[Any] = Future()
        self._deeds.pop(0)(future)
        return future


def answer(future: Future[Any]) -> None:
    future.set_result(prediction())


def fail(future: Future[Any]) -> None:
    future.set_exception(RuntimeError("lost"))


def never(future: Future[Any]) -> None:
    pass


def refuse(future: Future[Any]) -> None:
    raise Overloaded("full")


def answer_later(future: Future[Any]) -> None:
    threading.Timer(0.05, answer, [future]).start()


def stall(future: Future[Any]) -> None:
    time.sleep(0.2)
    answer(future)


def test_every_query_ends_in_one_answer_in_its_place() -> None:
    record = Record(5)
    server = Script(answer, fail, refuse, never, answer_later)
    answers = send(server, QUERIES, ARRIVALS, record, {}, timeout_s=0.5)
    assert [a.query for a in answers] == [0, 1, 2, 3, 4]
    assert [a.source for a in answers] == ["exact", None, None, None, "exact"]
    errors = [type(a.error) for a in answers]
    assert errors == [type(None), RuntimeError, Overloaded, TimeoutError, type(None)]
    assert 0.05 <= answers[4].latency_s < 0.5


def test_a_stalled_server_is_charged_for_the_queries_that_arrived_meanwhile() -> None:
    answers = send(Script(stall, *[answer] * 4), QUERIES, ARRIVALS, Record(5), {})
    for number in range(5):
        assert answers[number].latency_s >= 0.2 - ARRIVALS[number] - 0.005


def test_events_happen_after_their_query() -> None:
    happened: list[int] = []
    record = Record(5)
    events = {2: [lambda: happened.append(record.sent)]}
    send(Script(*[answer] * 5), QUERIES, ARRIVALS, record, events)
    assert happened == [3]


def test_arrivals_are_poisson() -> None:
    gaps = np.diff(poisson_arrivals(20_000, 50.0, np.random.default_rng(0)), prepend=0.0)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.03)  # as large as the mean: exponential
    with pytest.raises(ValueError, match="rate"):
        poisson_arrivals(1, 0.0, np.random.default_rng(0))


def test_a_tally_counts_sources_accuracy_and_losses() -> None:
    deeds = [
        lambda f: f.set_result(prediction("exact", 1)),
        lambda f: f.set_result(prediction("exact", 2)),
        lambda f: f.set_result(prediction("reconstructed", 2)),
        fail,
        lambda f: f.set_result(prediction("exact", 0)),
    ]
    answers = send(Script(*deeds), QUERIES, ARRIVALS, Record(5), {})
    tally = Tally.of(answers, np.array([1, 1, 2, 0, 0]))
    assert (tally.sent, tally.answered, tally.lost) == (5, 4, 1)
    assert tally.by_source == {"exact": 3, "reconstructed": 1}
    assert tally.accuracy == pytest.approx({"exact": 200 / 3, "reconstructed": 100.0, "all": 75.0})
    assert tally.latency_ms["p50"] <= tally.latency_ms["p99.9"] <= tally.latency_ms["max"]


def test_a_tally_of_nothing_is_empty() -> None:
    tally = Tally.of([], np.zeros(0, np.int64))
    assert (tally.answered, tally.accuracy, tally.latency_ms) == (0, {}, {})
