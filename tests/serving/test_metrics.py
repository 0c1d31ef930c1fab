"""Latency quantiles in bounded memory, and counts of one moment."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codedinv.schemes.scheme import Plan
from codedinv.serving import CodedServer, Policy, Stats
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.histogram import Histogram
from codedinv.serving.metrics import Metrics, Quantiles
from tests.serving.linear_model import LinearModel


@given(st.lists(st.floats(1e-6, 2000.0), min_size=1, max_size=200), st.floats(0.0, 1.0))
def test_a_quantile_is_within_one_percent_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    rank = max(1, math.ceil(q * len(values)))
    (got,) = histogram.quantiles((q,))
    assert got == pytest.approx(sorted(values)[rank - 1], rel=0.01)


def test_the_median_of_many_latencies() -> None:
    latencies = np.random.default_rng(0).lognormal(-5, 1, 20_000)
    histogram = Histogram()
    for latency in latencies:
        histogram.record(latency)
    quantiles = Quantiles.of(histogram)
    for q, got in ((0.5, quantiles.p50), (0.99, quantiles.p99), (0.999, quantiles.p999)):
        assert got == pytest.approx(np.quantile(latencies, q), rel=0.02)
    assert quantiles.max == latencies.max()
    assert quantiles.count == 20_000


def test_values_off_the_scale_count_at_its_ends() -> None:
    histogram = Histogram()
    for value in (0.0, 1e-12, 1e12):
        histogram.record(value)
    assert histogram.count == 3
    middle, greatest = histogram.quantiles((0.5, 1.0))
    assert middle < 2e-6
    assert greatest > 2000


def test_counts_below_a_bound_and_the_sum() -> None:
    histogram = Histogram()
    for value in (0.001, 0.004, 0.1, 3.0):
        histogram.record(value)
    assert histogram.at_most([0.0005, 0.002, 0.05, 1.0, 100.0]) == [0, 1, 2, 3, 4]
    assert histogram.sum == pytest.approx(3.105)
    assert Histogram.total([histogram, histogram.copy()]).sum == pytest.approx(6.21)


def test_waits_for_workers_and_for_groups_are_measured() -> None:
    core = Core(Plan(k=2, n=3, needed=2), Policy(group_wait_s=0.5, in_flight=1), 1)
    core.handle(ev.Opened(0.0))
    core.handle(ev.WorkerReady(0.0, 0, 1))
    sent = core.handle(ev.Submitted(1.0, 0, "a", None))
    (task,) = [action.task for action in sent if hasattr(action, "task")]
    core.handle(ev.Submitted(1.25, 1, "b", None))
    core.handle(ev.ResultArrived(2.25, 0, 1, task, "z"))
    assert core.queue_wait.count == 2
    assert core.queue_wait.sum == pytest.approx(0.0 + 1.0)
    assert core.group_wait.count == 1
    assert core.group_wait.sum == pytest.approx(0.25)


def test_an_empty_histogram_has_no_quantiles() -> None:
    quantiles = Quantiles.of(Histogram())
    assert quantiles.count == 0
    assert math.isnan(quantiles.p50)
    assert math.isnan(quantiles.max)


def test_all_latencies_are_those_of_every_source() -> None:
    metrics = Metrics(workers=2)
    for source, latency in (("exact", 0.01), ("exact", 0.02), ("fallback", 0.5)):
        metrics.answered(source, latency)  # type: ignore[arg-type]
    core = Core(Plan(1, 1, 1), Policy(), 2)
    latency = metrics.snapshot(core, overloaded=0).stats().latency
    assert {name: q.count for name, q in latency.items()} == {"all": 3, "exact": 2, "fallback": 1}
    assert latency["all"].max == 0.5
    assert latency["all"].p50 == pytest.approx(0.02, rel=0.01)


def test_a_snapshot_does_not_change_with_what_comes_after() -> None:
    metrics = Metrics(workers=2)
    core = Core(Plan(1, 1, 1), Policy(), 2)
    metrics.answered("exact", 0.01)
    core.handle(ev.Opened(0.0))
    snapshot = metrics.snapshot(core, overloaded=0)
    core.handle(ev.Submitted(0.1, 0, None, None))
    metrics.answered("exact", 0.01)
    metrics.failed_answer("exact")
    stats = snapshot.stats()
    assert (stats.accepted, stats.latency["all"].count, stats.failed["error"]) == (0, 1, 0)


def test_the_spare_is_left_out_until_it_is_used() -> None:
    metrics = Metrics(workers=2)
    core = Core(Plan(1, 1, 1), Policy(), 2)
    core.handle(ev.Opened(0.0))
    assert metrics.snapshot(core, overloaded=0).stats().workers == ("starting", "starting")
    for worker in range(2):
        core.handle(ev.WorkerReady(0.1, worker, 1))
    core.handle(ev.Submitted(0.2, 0, None, None))
    core.handle(ev.ReloadRequested(0.3, 1, Plan(1, 1, 1)))
    states = metrics.snapshot(core, overloaded=0).stats().workers
    assert sorted(states) == ["busy", "ready", "starting"]


@pytest.mark.parametrize("readers", [1, 4])
def test_the_counts_of_every_snapshot_add_up(linear: LinearModel, readers: int) -> None:
    wrong: list[Stats] = []
    stop = threading.Event()

    def read(server: CodedServer) -> None:
        while not stop.is_set():
            s = server.stats()
            ended = sum(s.answered.values()) + sum(s.failed.values())
            if s.accepted != s.queued + s.outstanding + ended:
                wrong.append(s)

    with CodedServer(linear, backend="thread") as server:
        threads = [threading.Thread(target=read, args=(server,)) for _ in range(readers)]
        for thread in threads:
            thread.start()
        futures = [server.submit(q) for q in linear.queries(600)]
        futures[5].cancel()
        for future in futures:
            if not future.cancelled():
                future.result(60)
        stop.set()
        for thread in threads:
            thread.join(30)
        last = server.stats()
    assert wrong == []
    assert last.accepted == 600
    assert server.stats().accepted == 600, "stats of a closed server are its last"
