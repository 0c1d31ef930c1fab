"""CodedServer with real workers: threads and processes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codedinv.errors import (
    CodedInvError,
    DeadlineExceeded,
    Overloaded,
    ServerClosed,
    Unrecoverable,
)
from codedinv.schemes import invertible
from codedinv.serving import CodedServer, Policy, Prediction
from tests.serving.helpers import check_answers, next_workers, wait_until
from tests.serving.linear_model import LinearModel

Serve = Callable[..., CodedServer]
PATIENT = Policy(hang_timeout_s=60.0)
EXACT = Policy(release="grace", grace_s=60.0)  # eager may reconstruct on a busy machine


def test_every_query_of_a_batch_gets_its_own_answer(
    serve: Serve, linear: LinearModel, backend: str
) -> None:
    queries = linear.queries(60)
    predictions = serve(backend=backend).predict(queries)
    check_answers(predictions, linear.outputs(queries))


def test_a_single_query_gives_one_prediction_with_an_output_per_task(
    serve: Serve, linear: LinearModel
) -> None:
    prediction = serve(backend="thread", policy=EXACT).predict(linear.queries(1)[0])
    assert isinstance(prediction, Prediction)
    assert list(prediction.outputs) == ["label", "count"]
    assert prediction.outputs["label"].shape == (10,)
    assert prediction.outputs["count"].shape == (3,)
    assert prediction.outputs["label"].dtype == np.float32
    assert prediction.source == "exact"
    assert not prediction.degraded
    assert 0 < prediction.latency < 30


def test_a_query_on_a_hung_worker_is_reconstructed_exactly(
    serve: Serve, linear: LinearModel, backend: str
) -> None:
    server = serve(backend=backend, policy=PATIENT)
    server.pool.hang(next_workers(server, 3)[2])
    queries = linear.queries(4)
    predictions = server.predict(queries)
    check_answers(predictions, linear.outputs(queries))
    assert [p.source for p in predictions].count("reconstructed") == 1
    assert [p.degraded for p in predictions].count(True) == 1


def test_a_lone_query_on_a_hung_worker_is_reconstructed_from_anchors(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread", policy=PATIENT)
    server.pool.hang(*next_workers(server))
    query = linear.queries(1)
    prediction = server.predict(query[0])
    check_answers([prediction], linear.outputs(query))
    assert prediction.source == "reconstructed"


def test_two_parities_cover_two_hung_workers(serve: Serve, tmp_path: Path) -> None:
    model = LinearModel(k=4, r=2).saved(tmp_path / "bundle")
    server = serve(model, backend="thread", policy=PATIENT)
    for worker in next_workers(server, 2):
        server.pool.hang(worker)
    queries = model.queries(4)
    predictions = server.predict(queries)
    check_answers(predictions, model.outputs(queries))
    assert [p.source for p in predictions].count("reconstructed") == 2


def test_a_hung_worker_is_killed_and_back_again(
    serve: Serve, linear: LinearModel, backend: str
) -> None:
    server = serve(backend=backend, policy=Policy(hang_timeout_s=1.0, restart_backoff_s=0.01))
    server.pool.hang(*next_workers(server))
    queries = linear.queries(8)
    check_answers(server.predict(queries), linear.outputs(queries))
    wait_until(lambda: server.stats().hangs >= 1)
    wait_until(lambda: set(server.stats().workers) == {"ready"})
    assert server.stats().restarts >= 1
    check_answers(server.predict(queries), linear.outputs(queries))


def test_a_killed_worker_costs_no_answer(serve: Serve, linear: LinearModel, backend: str) -> None:
    server = serve(backend=backend, policy=Policy(restart_backoff_s=0.01))
    queries = linear.queries(400)
    futures = []
    for i, query in enumerate(queries):
        futures.append(server.submit(query))
        if i in (100, 250):
            server.pool.kill(i % 5)
    check_answers([f.result(60) for f in futures], linear.outputs(queries))
    wait_until(lambda: server.stats().restarts == server.stats().deaths >= 1)


def test_a_crash_on_a_task_is_covered(serve: Serve, linear: LinearModel, backend: str) -> None:
    server = serve(backend=backend)
    server.pool.crash(3)
    queries = linear.queries(40)
    check_answers(server.predict(queries), linear.outputs(queries))
    wait_until(lambda: server.stats().deaths == 1)


def test_slowed_workers_are_not_waited_for(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread", policy=PATIENT)
    server.pool.slow(4, 20.0)
    queries = linear.queries(200)
    started = time.monotonic()
    check_answers(server.predict(queries), linear.outputs(queries))
    assert time.monotonic() - started < 15


def test_grace_waits_for_the_exact_answer_that_eager_would_not(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread", policy=replace(PATIENT, release="grace", grace_s=30.0))
    server.pool.slow(*next_workers(server), 0.2)
    predictions = server.predict(linear.queries(4))
    assert {p.source for p in predictions} == {"exact"}


def test_deadline_gives_the_best_answer_in_time(
    serve: Serve, linear: LinearModel, backend: str
) -> None:
    server = serve(backend=backend, policy=replace(PATIENT, release="deadline"))
    server.pool.hang(*next_workers(server))
    query = linear.queries(1)
    prediction = server.submit(query[0], deadline=1.0).result(30)
    check_answers([prediction], linear.outputs(query))
    assert prediction.source == "reconstructed"
    assert prediction.latency > 0.5


def test_a_deadline_that_nothing_can_meet_is_a_typed_error(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread", policy=PATIENT, workers=1)
    server.pool.hang(0)
    future = server.submit(linear.queries(1)[0], deadline=0.1)
    with pytest.raises(DeadlineExceeded):
        future.result(30)
    assert server.stats().failed["deadline_exceeded"] == 1


def test_a_result_that_is_not_finite_is_an_erasure(serve: Serve, linear: LinearModel) -> None:
    class Sick(LinearModel):
        def embed(self, x: np.ndarray) -> np.ndarray:
            z = super().embed(x)
            return np.full_like(z, np.nan) if x[0, 0, 0, 0] == 0.5 else z

    server = serve(Sick(), backend="thread", policy=replace(EXACT, retries=1, group_wait_s=30.0))
    queries = linear.queries(4)
    queries[1, 0, 0, 0] = 0.5
    predictions = server.predict(queries)
    check_answers(predictions, linear.outputs(queries))
    assert [p.source for p in predictions] == ["exact", "reconstructed", "exact", "exact"]


def test_a_query_that_nobody_can_answer_fails_alone(serve: Serve, linear: LinearModel) -> None:
    class Picky(LinearModel):
        def embed(self, x: np.ndarray) -> np.ndarray:
            if x[0, 0, 0, 0] == 0.5:
                raise RuntimeError("I do not like this one")
            return super().embed(x)

    server = serve(Picky(), backend="thread", scheme="uncoded", workers=2)
    queries = linear.queries(4)
    queries[1, 0, 0, 0] = 0.5
    futures = [server.submit(q) for q in queries]
    with pytest.raises(Unrecoverable):
        futures.pop(1).result(30)
    check_answers([f.result(30) for f in futures], linear.outputs(queries[[0, 2, 3]]))
    assert "I do not like this one" in (server.stats().last_error or "")


@pytest.mark.parametrize("scheme", ["uncoded", "replication"])
def test_other_schemes_serve_through_the_same_server(
    serve: Serve, linear: LinearModel, scheme: str
) -> None:
    server = serve(backend="thread", scheme=scheme, workers=3, policy=Policy(hang_timeout_s=1.0))
    server.pool.hang(1)
    queries = linear.queries(40)
    predictions = server.predict(queries)
    check_answers(predictions, linear.outputs(queries))
    assert {p.source for p in predictions} == {"exact"}


def test_replicas_hide_a_hung_worker(serve: Serve, linear: LinearModel, backend: str) -> None:
    server = serve(backend=backend, scheme="replication", workers=3, policy=PATIENT)
    server.pool.hang(*next_workers(server))
    query = linear.queries(1)
    assert server.submit(query[0]).result(30).source == "exact"


# ---- a caller's mistakes


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.zeros((1, 4, 5), np.float32), r"x: expected shape \(1, 4, 4\), got \(1, 4, 5\)"),
        (np.zeros((1, 4, 4), np.float64), "x: expected dtype float32 or float16, got float64"),
        (np.zeros((1, 4, 4), np.uint8), "x: expected dtype float32 or float16, got uint8"),
        (np.full((1, 4, 4), np.nan, np.float32), "x: expected finite values"),
        (np.full((1, 4, 4), np.inf, np.float32), "x: expected finite values"),
    ],
)
def test_a_bad_query_is_refused_and_touches_nobody_else(
    serve: Serve, linear: LinearModel, query: np.ndarray, message: str
) -> None:
    server = serve(backend="thread")
    good = linear.queries(3)
    futures = [server.submit(good[0]), server.submit(good[1])]
    with pytest.raises(ValueError, match=message):
        server.submit(query)
    futures.append(server.submit(good[2]))
    check_answers([f.result(30) for f in futures], linear.outputs(good))


def test_one_bad_query_in_a_batch_is_refused_before_any_is_sent(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread")
    queries = linear.queries(3)
    queries[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        server.predict(queries)
    assert server.stats().accepted == 0


def test_float16_lists_and_tensors_are_taken(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread")
    query = linear.queries(1).astype(np.float16)
    expected = linear.outputs(query.astype(np.float32))
    for x in (query[0], query[0].tolist(), torch.from_numpy(query[0]), query[0][:, ::-1][:, ::-1]):
        check_answers([server.predict(x)], expected)


def test_a_query_may_be_changed_once_it_is_submitted(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread", policy=PATIENT)
    server.pool.slow(*next_workers(server), 0.2)
    query = linear.queries(1)
    expected = linear.outputs(query)
    future = server.submit(query[0])
    query[:] = 7.0
    check_answers([future.result(30)], expected)


@pytest.mark.parametrize("deadline", [0.0, -1.0, float("nan"), float("inf")])
def test_a_deadline_must_be_a_positive_number(
    serve: Serve, linear: LinearModel, deadline: float
) -> None:
    with pytest.raises(ValueError, match="deadline: expected"):
        serve(backend="thread").submit(linear.queries(1)[0], deadline=deadline)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: expected"),
        ({"workers": 2.5}, "workers: expected"),
        ({"backend": "magic"}, "backend: expected 'process', 'thread' or 'ray', got 'magic'"),
        ({"scheme": "magic"}, "scheme: expected one of .*, got 'magic'"),
    ],
)
def test_bad_options_are_named(linear: LinearModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodedServer(linear, **options)


# ---- load


def test_a_full_queue_refuses_with_overloaded_and_recovers(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread", policy=replace(PATIENT, max_queue=8), scheme="uncoded")
    for worker in range(len(server.stats().workers)):
        server.pool.slow(worker, 0.3)
    query = linear.queries(1)[0]
    futures = [server.submit(query) for _ in range(8)]
    with pytest.raises(Overloaded):
        server.submit(query)
    assert server.stats().overloaded == 1
    for future in futures:
        future.result(30)
    server.submit(query).result(30)


def test_a_batch_larger_than_the_queue_is_served_as_room_comes_free(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread", policy=Policy(max_queue=8))
    queries = linear.queries(100)
    check_answers(server.predict(queries), linear.outputs(queries))
    check_answers(asyncio.run(server.predict_async(queries)), linear.outputs(queries))


def test_many_callers_at_once_get_their_own_answers(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread")
    wrong: list[int] = []

    def call(seed: int) -> None:
        queries = linear.queries(50, seed)
        try:
            check_answers(server.predict(queries), linear.outputs(queries))
        except AssertionError:
            wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []
    assert server.stats().accepted == 300


def test_asyncio_callers_do_not_block_their_loop(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread")
    queries = linear.queries(30)

    async def main() -> list[Prediction]:
        return await asyncio.gather(*(server.predict_async(q) for q in queries))

    check_answers(asyncio.run(main()), linear.outputs(queries))


# ---- the end


def test_close_drains(linear: LinearModel, backend: str) -> None:
    server = CodedServer(linear, backend=backend, policy=PATIENT)
    for worker in range(5):
        server.pool.slow(worker, 0.05)
    queries = linear.queries(20)
    futures = [server.submit(q) for q in queries]
    server.close()
    assert all(f.done() for f in futures)
    check_answers([f.result() for f in futures], linear.outputs(queries))
    with pytest.raises(ServerClosed):
        server.submit(queries[0])


def test_close_is_idempotent_and_can_be_called_from_several_threads(linear: LinearModel) -> None:
    server = CodedServer(linear, backend="thread")
    closers = [threading.Thread(target=server.close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(30)
        assert not closer.is_alive()
    server.close()
    assert server.stats().accepted == 0


def test_close_ends_what_cannot_be_drained(linear: LinearModel, backend: str) -> None:
    policy = replace(PATIENT, drain_timeout_s=0.2, deadline_s=None)
    server = CodedServer(linear, backend=backend, workers=1, policy=policy)
    server.pool.hang(0)
    future = server.submit(linear.queries(1)[0])
    server.close()
    with pytest.raises(ServerClosed):
        future.result(0)


def test_a_callback_may_use_the_server_and_even_close_it(linear: LinearModel) -> None:
    server = CodedServer(linear, backend="thread", policy=EXACT)
    seen: list[Any] = []
    called = threading.Event()

    def callback(future: Future[Prediction]) -> None:
        seen.append(server.stats().answered["exact"])
        seen.append(server.submit(linear.queries(1)[0]))
        server.close()
        called.set()

    server.submit(linear.queries(1)[0]).add_done_callback(callback)
    assert called.wait(30)
    server.close()
    assert seen[0] == 1
    assert seen[1].result(0).source == "exact"


def test_a_backbone_that_cannot_be_loaded_is_told_at_the_start(tmp_path: Path) -> None:
    model = LinearModel().saved(tmp_path / "bundle")
    (tmp_path / "bundle" / "backbone.onnx").write_bytes(b"not a network")
    with pytest.raises(CodedInvError, match=r"no worker could be started.*backbone\.onnx"):
        CodedServer(model, workers=2)


def test_a_model_that_was_never_saved_is_served_by_processes_too(serve: Serve) -> None:
    model = LinearModel()
    queries = model.queries(8)
    check_answers(serve(model, workers=2).predict(queries), model.outputs(queries))


def test_a_scheme_object_is_taken_as_it_is(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread", scheme=invertible(linear), policy=EXACT)
    assert server.scheme.redundancy == 1.25
    assert server.predict(linear.queries(1)[0]).source == "exact"


def test_stats_add_up_and_are_plain(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread")
    server.predict(linear.queries(50))
    stats = server.stats()
    assert stats.accepted == 50
    assert stats.queued + stats.outstanding + sum(stats.failed.values()) == 0
    assert sum(stats.answered.values()) == 50
    assert stats.latency["all"].count == 50
    assert stats.to_dict()["latency"]["all"]["p50"] <= stats.latency["all"].max
    assert len(stats.to_dict()["workers"]) == 5
    json.dumps(stats.to_dict())
