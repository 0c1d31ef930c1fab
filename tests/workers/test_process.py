"""Worker processes: what goes over the wire, and what does not get stuck in it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from codedinv.workers import (
    BackboneSpec,
    Died,
    Dropped,
    Message,
    ProcessPool,
    Ready,
    Result,
    TaskError,
)
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import spec_of

Listen = Callable[..., list[Message]]
StartPool = Callable[..., ProcessPool]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """Queries and embeddings of 80 kB: they go through shared memory."""
    model = LinearModel(k=2, input_shape=(1, 200, 100), embedding_shape=(1, 200, 100))
    return model.saved(tmp_path_factory.mktemp("large") / "bundle")


@pytest.mark.parametrize(
    ("input_shape", "embedding_shape"),
    [
        ((1, 200, 100), (1, 200, 100)),  # 80 kB both ways
        ((3, 224, 224), (3 * 224, 224)),  # 602 kB both ways
    ],
)
def test_large_arrays_go_through_shared_memory_unchanged(
    start_pool: StartPool,
    listen: Listen,
    tmp_path: Path,
    input_shape: tuple[int, ...],
    embedding_shape: tuple[int, ...],
) -> None:
    model = LinearModel(k=2, input_shape=input_shape, embedding_shape=embedding_shape)
    pool = start_pool(spec_of(model.saved(tmp_path / "bundle")), in_flight=2)
    queries = model.queries(6)
    for task in range(0, 6, 2):
        pool.send(0, 1, task, "backbone", queries[task])
        pool.send(0, 1, task + 1, "backbone", queries[task + 1])
        for result in listen(pool, 2):
            assert isinstance(result, Result)
            expected = model.embed(queries[[result.task]])[0]
            np.testing.assert_allclose(result.embedding, expected, rtol=1e-6)


def test_more_tasks_than_slots_of_memory_wait_for_one(
    start_pool: StartPool, listen: Listen, large: LinearModel
) -> None:
    pool = start_pool(spec_of(large), in_flight=2)
    queries = large.queries(9)
    for task, query in enumerate(queries):
        pool.send(0, 1, task, "backbone", query)
    pool.cancel(0, 1, 7)
    results = listen(pool, 9)
    assert [r.task for r in results if isinstance(r, Result)] == [0, 1, 2, 3, 4, 5, 6, 8]
    assert Dropped(0, 1, 7) in results
    for result in results:
        if isinstance(result, Result):
            expected = large.embed(queries[[result.task]])[0]
            np.testing.assert_allclose(result.embedding, expected, rtol=1e-6)


def test_slots_of_dropped_and_failed_tasks_are_used_again(
    start_pool: StartPool, listen: Listen, large: LinearModel
) -> None:
    pool = start_pool(spec_of(large), in_flight=3)
    queries = large.queries(3)
    for _ in range(4):
        pool.pause(0)
        for task, query in enumerate(queries):
            pool.send(0, 1, task, "backbone", query)
        pool.cancel(0, 1, 2)
        pool.resume(0)
        assert {m.task: type(m) for m in listen(pool, 3)}[2] is Dropped
        pool.fail(0, "out of order")
        pool.poll(0.0)
        for task, query in enumerate(queries):
            pool.send(0, 1, task, "backbone", query)
        assert [type(m) for m in listen(pool, 3)] == [TaskError] * 3
        pool.fail(0, "")


@pytest.mark.parametrize("in_flight", [300, 600])
def test_a_worker_that_does_not_read_is_neither_killed_nor_waited_for(
    start_pool: StartPool, linear: LinearModel, listen: Listen, in_flight: int
) -> None:
    pool = start_pool(in_flight=in_flight)
    (pid,) = pool.pids()
    queries = linear.queries(3)
    assert pid is not None
    pool.pause(0)
    for task in range(1500):  # 300 of them fill the socket
        pool.send(0, 1, task, "backbone", queries[task % 3])
    for task in range(1000, 1400):
        pool.cancel(0, 1, task)
    pool.resume(0)
    messages = listen(pool, 1500)
    results = [m for m in messages if isinstance(m, Result)]
    assert {m.task for m in messages if isinstance(m, Dropped)} == set(range(1000, 1400))
    assert [r.task for r in results] == [*range(1000), *range(1400, 1500)]
    expected = linear.embed(queries)
    for result in results:
        np.testing.assert_allclose(result.embedding, expected[result.task % 3], atol=1e-5)
    assert pool.pids() == [pid]


def test_a_cancellation_overtakes_every_task_that_has_not_begun(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool(in_flight=600)
    query = linear.queries(1)[0]
    pool.pause(0)
    for task in range(600):
        pool.send(0, 1, task, "backbone", query)
    for task in range(1, 600):
        pool.cancel(0, 1, task)
    pool.resume(0)
    messages = listen(pool, 600)
    assert [m.task for m in messages if isinstance(m, Result)] == [0]
    assert {m.task for m in messages if isinstance(m, Dropped)} == set(range(1, 600))


def test_messages_that_fill_the_socket_wait_and_keep_their_order(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    pool.pause(0)
    for number in range(3000):  # 270 of them fill it
        pool.fail(0, f"error {number}")
    pool.poll(0.0)
    pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
    pool.poll(0.1)
    pool.resume(0)
    assert listen(pool, 1) == [TaskError(0, 1, 7, "RuntimeError: error 2999")]


def test_tasks_that_wait_end_with_the_worker(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool(in_flight=8)
    pool.pause(0)
    for task in range(1000):
        pool.send(0, 1, task, "backbone", linear.queries(1)[0])
    pool.kill(0)
    (died,) = listen(pool, 1)
    assert isinstance(died, Died)
    pool.send(0, 1, 1000, "backbone", linear.queries(1)[0])
    assert pool.poll(0.1) == []
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]


def test_a_kill_ends_the_wait_for_messages(start_pool: StartPool) -> None:
    pool = start_pool(workers=2)
    for worker in range(2):
        pool.kill(worker)
        started = time.monotonic()
        (died,) = pool.poll(1e5)
        assert time.monotonic() - started < 100, "measured at 2 ms; nothing else ends the wait"
        assert isinstance(died, Died)
        assert died.worker == worker
        assert died.reason.startswith("ended")


def test_a_death_by_a_signal_without_a_name_is_told(start_pool: StartPool, listen: Listen) -> None:
    pool = start_pool()
    (pid,) = pool.pids()
    assert pid is not None
    os.kill(pid, signal.SIGRTMIN + 2)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # so that its status is there
    assert listen(pool, 1) == [Died(0, 1, f"ended by signal {signal.SIGRTMIN + 2}")]


@pytest.mark.parametrize("unread", [False, True])
def test_results_sent_before_a_death_are_not_lost(
    start_pool: StartPool, linear: LinearModel, listen: Listen, unread: bool
) -> None:
    pool = start_pool(in_flight=16)
    queries = linear.queries(8)
    for task, query in enumerate(queries):
        pool.send(0, 1, task, "backbone", query)
    select.select([pool], [], [])
    time.sleep(0.3)  # for the other seven, where processors are free
    pool.pause(0)
    time.sleep(0.1)
    if unread:  # tasks that it never reads reset the connection
        for task, query in enumerate(queries):
            pool.send(0, 1, 8 + task, "backbone", query)
    (pid,) = pool.pids()
    assert pid is not None
    pool.kill(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    pool.send(0, 1, 99, "backbone", queries[0])  # finds the connection broken
    *results, died = pool.poll(10.0)
    assert isinstance(died, Died)
    assert len(results) > 0
    assert [m.task for m in results if isinstance(m, Result)] == list(range(len(results)))


def test_results_of_others_come_before_a_death(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool(workers=3)
    query = linear.queries(1)[0]
    for generation, wait_s in enumerate((0.3, 1.0, 5.0, 20.0), start=1):
        pid = pool.pids()[0]
        assert pid is not None
        pool.kill(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        for worker in (1, 2):
            pool.send(worker, 1, 1, "backbone", query)
        time.sleep(wait_s)  # the first will do where processors are free
        messages = pool.poll(0.0)
        if len(messages) == 3:
            assert [type(m) for m in messages] == [Result, Result, Died]
            return
        listen(pool, 3 - len(messages))
        pool.start(0, generation + 1)
        listen(pool, 1)
    pytest.fail("never were all three there at once")


# ---- what is loaded


def test_models_of_different_embeddings_are_refused(spec: BackboneSpec) -> None:
    models = {"backbone": spec, "light": replace(spec, embedding_shape=(16,))}
    with pytest.raises(ValueError, match="expected embeddings of one shape"):
        ProcessPool(models, 1)


@pytest.mark.parametrize(
    ("workers", "in_flight", "message"),
    [(0, 1, "workers: expected 1"), (1, 0, "in_flight: expected 1")],
)
def test_numbers_out_of_range_are_refused(
    spec: BackboneSpec, workers: int, in_flight: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessPool(spec, workers, in_flight)


def test_a_backbone_that_does_not_load_says_why(spec: BackboneSpec, listen: Listen) -> None:
    pool = ProcessPool(replace(spec, folder="/nowhere"), 1)
    pool.start(0, 1)
    (died,) = listen(pool, 1)
    pool.close(1.0)
    assert isinstance(died, Died)
    assert "/nowhere/backbone.onnx is missing" in died.reason


def test_a_backbone_of_another_shape_is_refused(spec: BackboneSpec, listen: Listen) -> None:
    pool = ProcessPool({"light": replace(spec, embedding_shape=(16,))}, 1)
    pool.start(0, 1)
    (died,) = listen(pool, 1)
    pool.close(1.0)
    assert isinstance(died, Died)
    assert "light: expected embeddings (16,), got (4, 2, 2)" in died.reason


def test_an_onnx_worker_has_no_torch_one_thread_and_little_memory(start_pool: StartPool) -> None:
    pool = start_pool()
    (pid,) = pool.pids()
    process = psutil.Process(pid)
    mapped = "\n".join(m.path for m in process.memory_maps())
    assert "onnxruntime" in mapped
    assert "torch" not in mapped
    assert process.memory_info().rss < 200e6
    assert process.environ()["OMP_NUM_THREADS"] == "1"


def test_a_worker_can_run_on_torch(
    small_bundle: Path, start_pool: StartPool, listen: Listen
) -> None:
    from codedinv.model import CodedModel

    model = CodedModel.load(small_bundle)
    shapes = tuple(model.input_shape), tuple(model.embedding_shape)
    query = np.random.default_rng(0).random((1, *shapes[0]), np.float32)
    spec = BackboneSpec.of(small_bundle, *shapes, runtime="torch", hashes=model.hashes)
    pool = start_pool(spec)
    pool.send(0, 1, 1, "backbone", query[0])
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    np.testing.assert_allclose(result.embedding, model.embed(query)[0], atol=1e-4)
