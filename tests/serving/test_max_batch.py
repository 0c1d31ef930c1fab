"""Servers whose workers make batches: the same answers, and the same promises on a bad day."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codedinv.model import CodedModel
from codedinv.serving import CodedServer, Policy
from tests.serving.helpers import check_answers, next_workers, wait_until
from tests.serving.linear_model import LinearModel

Serve = Callable[..., CodedServer]
PATIENT = Policy(hang_timeout_s=60.0)


def held(server: CodedServer, worker: int) -> int:
    """Tasks at a worker."""
    return len(server._engine._core.fleet.workers[worker].outstanding)


@pytest.mark.parametrize("scheme", ["invertible", "replication", "uncoded"])
def test_every_query_gets_its_own_answer(
    serve: Serve, linear: LinearModel, backend: str, scheme: str
) -> None:
    server = serve(backend=backend, scheme=scheme, max_batch=8)
    queries = linear.queries(300)
    check_answers(server.predict(queries), linear.outputs(queries))


def test_a_worker_may_hold_a_batch_that_runs_and_one_that_waits(serve: Serve) -> None:
    assert serve(backend="thread", max_batch=8).policy.in_flight == 16
    assert serve(backend="thread", max_batch=8, policy=Policy(in_flight=40)).policy.in_flight == 40
    assert serve(backend="thread").policy.in_flight == 1


@pytest.mark.parametrize("scheme", ["invertible", "uncoded"])
def test_a_sigkill_in_the_middle_of_a_batch_costs_no_answer(
    serve: Serve, linear: LinearModel, backend: str, scheme: str
) -> None:
    server = serve(backend=backend, scheme=scheme, max_batch=8, policy=PATIENT)
    (victim,) = next_workers(server)
    server.pool.hang(victim)
    queries = linear.queries(200)
    futures = [server.submit(query) for query in queries]
    wait_until(lambda: held(server, victim) >= 9)  # a batch and more, or it hangs with fewer
    server.pool.kill(victim)
    check_answers([future.result(60) for future in futures], linear.outputs(queries))
    stats = server.stats()
    assert stats.deaths == 1
    assert sum(stats.answered.values()) == stats.accepted == 200


def test_parities_made_by_workers_come_in_batches_too(small_bundle: Path) -> None:
    model = CodedModel.load(small_bundle)
    random = np.random.default_rng(0)
    queries = random.random((64, *model.input_shape), np.float32)
    policy = Policy(always_encode=True, release="grace", grace_s=60.0)
    with CodedServer(model, scheme="worker-encoded", max_batch=4, policy=policy) as server:
        answers = server.predict_batch(queries)
        assert server.stats().task_errors == 0
    expected = model.head(model.embed(queries))
    for answer, row in zip(answers, expected, strict=True):
        np.testing.assert_allclose(next(iter(answer.outputs.values())), row, atol=1e-4)


def test_workers_on_torch_answer_as_those_on_onnx_runtime(small_bundle: Path) -> None:
    model = CodedModel.load(small_bundle)
    queries = np.random.default_rng(0).random((40, *model.input_shape), np.float32)
    with CodedServer(model, 2, scheme="uncoded", runtime="torch", max_batch=8) as server:
        answers = server.predict_batch(queries)
    for answer, row in zip(answers, model.head(model.embed(queries)), strict=True):
        np.testing.assert_allclose(next(iter(answer.outputs.values())), row, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "max_batch: expected an integer from 1 to 64, got 0"),
        ({"max_batch": 65}, "max_batch: expected an integer from 1 to 64, got 65"),
        ({"max_queue_delay_us": -1}, "max_queue_delay_us: expected an integer from 0"),
        ({"max_batch": 8, "workers": ["http://127.0.0.1:9"]}, "max_batch and max_queue_delay_us"),
        ({"max_batch": 8, "backend": "ray"}, "max_batch and max_queue_delay_us"),
        ({"runtime": "onnx", "backend": "thread"}, "devices and runtime: expected with worker pro"),
        ({"runtime": "tensorrt"}, "runtime: expected 'auto', 'onnx' or 'torch'"),
    ],
)
def test_what_cannot_be_is_refused(
    linear: LinearModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CodedServer(linear, **options)
