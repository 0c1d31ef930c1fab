"""Open-loop traffic and its tally, with servers whose behaviour is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codedinv.errors import Overloaded
from codedinv.experiments.tally import Degraded, Tally, extra_calls
from codedinv.experiments.traffic import Answer, Record, poisson_arrivals, send

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
    answers = send(server, QUERIES, ARRIVALS, record, timeout_s=0.5)
    assert [a.query for a in answers] == [0, 1, 2, 3, 4]
    assert [a.source for a in answers] == ["exact", None, None, None, "exact"]
    errors = [type(a.error) for a in answers]
    assert errors == [type(None), RuntimeError, Overloaded, TimeoutError, type(None)]
    assert 0.05 <= answers[4].latency_s < 0.5


def test_a_stalled_server_is_charged_for_the_queries_that_arrived_meanwhile() -> None:
    answers = send(Script(stall, *[answer] * 4), QUERIES, ARRIVALS, Record(5))
    for number in range(5):
        assert answers[number].latency_s >= 0.2 - ARRIVALS[number] - 0.005


def test_what_follows_a_query_happens_when_it_is_sent() -> None:
    happened: list[tuple[int, int]] = []
    record = Record(5)
    send(
        Script(*[answer] * 5), QUERIES, ARRIVALS, record,
        lambda number: happened.append((number, record.sent)),
    )  # fmt: skip
    assert happened == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)]


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
    answers = send(Script(*deeds), QUERIES, ARRIVALS, Record(5))
    tally = Tally.of(answers, np.array([1, 1, 2, 0, 0]))
    assert (tally.sent, tally.answered, tally.lost) == (5, 4, 1)
    assert tally.by_source == {"exact": 3, "reconstructed": 1}
    assert tally.accuracy == pytest.approx({"exact": 200 / 3, "reconstructed": 100.0, "all": 75.0})
    assert tally.latency_ms["p50"] <= tally.latency_ms["p99.9"] <= tally.latency_ms["max"]


def given(*latencies_s: float | None, sources: Sequence[str] = ()) -> list[Answer]:
    """Answers of class 0 after so many seconds; None: lost."""
    sources = sources or ["exact"] * len(latencies_s)
    outputs = np.array([1.0, 0.0, 0.0], np.float32)
    return [
        Answer(i, 0.0, 9.0, None, None)
        if latency is None
        else Answer(i, 0.0, latency, source, outputs)
        for i, (latency, source) in enumerate(zip(latencies_s, sources, strict=True))
    ]


def test_late_is_answered_after_50_ms_and_lost_is_not_late() -> None:
    tally = Tally.of(given(0.001, 0.0499, 0.0501, 0.3, None), np.zeros(5, np.int64))
    assert (tally.late, tally.lost, tally.answered) == (2, 1, 4)
    assert tally.latency_ms["p50"] == pytest.approx(50.1)
    assert tally.latency_ms["max"] == pytest.approx(300.0)


def test_a_quantile_is_a_latency_that_few_enough_exceed() -> None:
    latencies = [0.001 * i for i in range(1, 1201)]
    found = Tally.of(given(*latencies), np.zeros(1200, np.int64)).latency_ms
    assert sum(1e3 * latency > found["p99"] + 1e-6 for latency in latencies) == 11
    assert sum(1e3 * latency > found["p99.9"] + 1e-6 for latency in latencies) == 1


def test_extra_work_is_every_backbone_call_beyond_one_per_query() -> None:
    before = {"accepted": 40, "parity_queries": 6, "hedges": 1, "retries": 0, "probes": 2}
    after = {"accepted": 240, "parity_queries": 46, "hedges": 11, "retries": 4, "probes": 8}
    found = extra_calls(before, after)
    assert found == pytest.approx(
        {"all": 0.3, "parity_queries": 0.2, "hedges": 0.05, "retries": 0.02, "probes": 0.03}
    )
    with pytest.raises(ValueError, match="more queries accepted"):
        extra_calls(after, after)


def test_degraded_answers_are_counted_beside_what_else_could_have_been_said() -> None:
    says = {"exact": [0, 1, 1, 0, 2], "light": [0, 0, 2, 1, 2]}
    model: Any = SimpleNamespace(
        heads={"label": None},
        embed=lambda x: x,
        head=lambda z: np.eye(3)[[says["exact"][int(v)] for v in z[:, 0]]],
        light=lambda x: {"label": np.eye(3)[[says["light"][int(v)] for v in x[:, 0]]]},
    )
    sources = ["exact", "reconstructed", "fallback", "hedged", "reconstructed"]
    answers = given(0.1, 0.1, 0.1, 0.1, 0.1, sources=sources)
    queries = np.arange(5, dtype=np.float32)[:, None]
    truth = np.array([0, 0, 2, 0, 2])
    found = Degraded.of(answers, model, queries, truth)
    assert found == Degraded(count=3, right=1, exact_right=1, light_right=3)
    assert Degraded.of(answers[:1], model, queries, truth) == Degraded(0, 0, 0, 0)
    model.light = None
    assert Degraded.of(answers, model, queries, truth).light_right is None


def test_a_tally_of_nothing_is_empty() -> None:
    tally = Tally.of([], np.zeros(0, np.int64))
    assert (tally.answered, tally.accuracy, tally.latency_ms) == (0, {}, {})
