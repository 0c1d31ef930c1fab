"""Everything at once, with real processes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from random import Random

import numpy as np
import psutil
import pytest

from codedinv.serving import CodedServer, Policy, Prediction
from tests.serving.linear_model import LinearModel

SEED = 20


def test_three_kills_and_two_hangs_in_5000_queries_cost_no_answer(linear: LinearModel) -> None:
    """k = 4, six workers: 5,000 right answers, none twice, no process left."""
    queries = linear.queries(5_000)
    expected = linear.outputs(queries)
    answers: Counter[int] = Counter()
    outstanding = threading.Semaphore(200)
    policy = Policy(hang_timeout_s=1.0, restart_backoff_s=0.05)
    random = Random(SEED)
    times, victims = random.sample(range(300, 4_500), 5), random.sample(range(6), 5)
    faults = dict(zip(times, zip(victims, "kkkhh", strict=True), strict=True))

    with CodedServer(linear, workers=6, policy=policy) as server:
        futures: list[Future[Prediction]] = []
        for i, query in enumerate(queries):
            if i in faults:
                victim, kind = faults[i]
                (server.pool.kill if kind == "k" else server.pool.hang)(victim)
            outstanding.acquire()
            future = server.submit(query)
            future.add_done_callback(lambda _, i=i: (answers.update([i]), outstanding.release()))
            futures.append(future)
        predictions = [future.result(60) for future in futures]
        _wait_for_restarts(server, 5)
        stats = server.stats()
        pids = server.pool.pids()

    outputs = np.stack([p.outputs["label"] for p in predictions])
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    assert answers == Counter(range(5_000)), f"seed {SEED}"
    assert stats.accepted == sum(stats.answered.values()) == 5_000
    assert stats.hangs >= 2
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)


def _ready(server: CodedServer) -> list[int]:
    states = server.stats().workers
    return [i for i, state in enumerate(states) if state in ("ready", "busy")] or [0]


def _wait_for_restarts(server: CodedServer, count: int) -> None:
    until = time.monotonic() + 60
    while server.stats().restarts < count:
        assert time.monotonic() < until, server.stats()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["invertible", "replication", "uncoded"])
def test_a_kill_every_half_second_for_a_minute(linear: LinearModel, scheme: str) -> None:
    random = Random(SEED)
    policy = Policy(hang_timeout_s=1.0, restart_backoff_s=0.05, retries=5)
    with CodedServer(linear, workers=6, policy=policy, scheme=scheme) as server:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            queries = linear.queries(200, seed=random.randrange(10**6))
            futures = [server.submit(q) for q in queries]
            victim = random.choice(_ready(server))
            random.choice([server.pool.kill, server.pool.crash, server.pool.hang])(victim)
            outputs = np.stack([f.result(60).outputs["label"] for f in futures])
            np.testing.assert_allclose(outputs, linear.outputs(queries), atol=1e-4)
            time.sleep(0.5)
