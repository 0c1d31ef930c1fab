"""What a pool promises, of processes as of threads."""

from __future__ import annotations

import gc
import math
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from codedinv.errors import CodedInvError
from codedinv.workers import (
    BackboneSpec,
    Died,
    Dropped,
    Message,
    Pool,
    ProcessPool,
    Ready,
    Result,
    TaskError,
    ThreadPool,
)
from codedinv.workers.pool import Task
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import StartAny, backbone_of, listen, spec_of


def send(pool: Pool, query: np.ndarray, task: int = 7, generation: int = 1) -> None:
    pool.send(0, generation, task, "backbone", query)


def ask(pool: Pool, query: np.ndarray, model: str = "backbone") -> np.ndarray:
    """Sends one task to worker 0 and returns its embedding."""
    pool.send(0, 1, 7, model, query)
    (result,) = listen(pool, 1)
    assert isinstance(result, Result), result
    return result.embedding


def models_for(pool: Pool, model: LinearModel, name: str = "backbone") -> dict[str, object]:
    return {name: spec_of(model) if isinstance(pool, ProcessPool) else backbone_of(model)}


# ---- tasks


def test_a_worker_returns_the_embedding(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    query = linear.queries(1)
    pool.send(0, 1, 42, "backbone", query[0])
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    assert (result.worker, result.generation, result.task) == (0, 1, 42)
    np.testing.assert_allclose(result.embedding, linear.embed(query)[0], atol=1e-5)


def test_each_task_runs_the_model_that_it_names(
    start_any: StartAny, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_any({"backbone": linear, "parity": other})
    query = linear.queries(1)
    for name, model in (("parity", other), ("backbone", linear)):
        np.testing.assert_allclose(ask(pool, query[0], name), model.embed(query)[0], atol=1e-5)


def test_an_unknown_model_is_an_error_and_never_another_model(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.send(0, 1, 7, "no-such-model", linear.queries(1)[0])
    reason = "model: expected one of ['backbone'], got 'no-such-model'"
    assert pool.poll(20.0) == [TaskError(0, 1, 7, reason)]
    ask(pool, linear.queries(1)[0])


def test_tasks_sent_at_once_end_each_for_itself(
    start_any: StartAny, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_any({"backbone": linear, "parity": other})
    queries = linear.queries(40)  # more than a worker has in hand
    models = {"backbone": linear, "parity": other, "no-such-model": None}
    tasks = [Task(i, list(models)[i % 3], query) for i, query in enumerate(queries)]
    pool.send_many(0, 1, tasks)
    ends = {message.task: message for message in listen(pool, 40)}
    assert len(ends) == 40
    for (task, name, _), query in zip(tasks, queries, strict=True):
        end, model = ends[task], models[name]
        if model is None:
            assert isinstance(end, TaskError)
            continue
        assert isinstance(end, Result), end
        np.testing.assert_allclose(end.embedding, model.embed(query[None])[0], atol=1e-5)


def test_tasks_sent_at_once_to_a_generation_that_is_gone_are_not_heard_of(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.send_many(0, 9, [Task(i, "backbone", query) for i, query in enumerate(linear.queries(3))])
    assert pool.poll(0.1) == []
    ask(pool, linear.queries(1)[0])


def test_a_cancelled_task_that_waits_is_dropped(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    pool.pause(0)
    for task, query in enumerate(linear.queries(3)):
        send(pool, query, task)
    for task in (2, 2, 99):
        pool.cancel(0, 1, task)
    pool.resume(0)
    messages = listen(pool, 3)
    assert {m.task: type(m) for m in messages} == {0: Result, 1: Result, 2: Dropped}
    pool.cancel(0, 1, 0)
    assert pool.poll(0.1) == []


def test_a_cancelled_task_that_runs_ends_as_ever(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    for running_s in (0.2, 1.0, 5.0, 20.0):  # the first will do where processors are free
        pool.slow(0, running_s)
        pool.poll(0.0)
        send(pool, linear.queries(1)[0])
        time.sleep(running_s / 2)
        pool.cancel(0, 1, 7)
        (end,) = listen(pool, 1)
        assert pool.poll(0.1) == []
        if isinstance(end, Result):
            return
    pytest.fail("a cancelled task always ended as dropped")


def test_nothing_is_heard_after_a_death(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    query = linear.queries(1)[0]
    pool.hang(0)
    pool.poll(0.0)
    send(pool, query, 1)
    send(pool, query, 2)
    pool.kill(0)
    pool.cancel(0, 1, 2)
    pool.send(0, 1, 3, "no-such-model", query)
    messages = listen(pool, 1)
    while not isinstance(messages[-1], Died):
        messages += listen(pool, 1)
    assert pool.poll(0.3) == []


def test_a_cancellation_for_another_generation_is_ignored(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.slow(0, 0.2)
    pool.poll(0.0)
    for task, query in enumerate(linear.queries(2)):
        send(pool, query, task)
    pool.cancel(0, 2, 1)
    assert [type(m) for m in listen(pool, 2)] == [Result, Result]


# ---- versions


def test_workers_of_two_versions_run_side_by_side(
    start_any: StartAny, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_any(workers=2)
    pool.provide(1, models_for(pool, other))
    pool.retire(1, 1)
    pool.start(1, 2, version=1)
    assert listen(pool, 1) == [Ready(1, 2)]
    pool.forget(0)
    query = linear.queries(1)
    for worker, model in ((0, linear), (1, other)):
        pool.send(worker, 1 + worker, 7, "backbone", query[0])
        (result,) = listen(pool, 1)
        assert isinstance(result, Result)
        np.testing.assert_allclose(result.embedding, model.embed(query)[0], atol=1e-5)


def test_a_version_has_models_of_its_own(
    start_any: StartAny, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_any()
    pool.provide(1, models_for(pool, linear, "renamed"))
    pool.start(0, 2, version=1)
    assert listen(pool, 1) == [Ready(0, 2)]
    pool.send(0, 2, 7, "backbone", linear.queries(1)[0])
    assert isinstance(listen(pool, 1)[0], TaskError)


def test_a_version_that_is_not_provided_is_refused(
    start_any: StartAny, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_any()
    with pytest.raises(ValueError, match=r"version: expected one of \[0\], got 3"):
        pool.start(0, 2, version=3)
    pool.provide(3, models_for(pool, other))
    pool.forget(3)
    pool.forget(3)
    with pytest.raises(ValueError, match="version"):
        pool.start(0, 2, version=3)


def test_a_version_cannot_change(
    start_any: StartAny, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_any()
    with pytest.raises(ValueError, match="version: 0 is taken by other models"):
        pool.provide(0, models_for(pool, other))
    with pytest.raises(ValueError, match="models: expected at least one"):
        pool.provide(1, {})


def test_a_pool_that_is_refused_leaves_no_descriptor(spec: BackboneSpec) -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    refused = []
    for make in (
        lambda: ProcessPool({}, 1),
        lambda: ProcessPool(spec, 0),
        lambda: ProcessPool({"backbone": spec, "light": replace(spec, embedding_shape=(1,))}, 1),
        lambda: ThreadPool({}, 1),
        lambda: ThreadPool(lambda x: x, 0),
    ):
        with pytest.raises(ValueError) as error:
            make()
        refused.append(error)  # and with it the half-made pool
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(TypeError, match="expected a callable for 'backbone', got 3"):
        ThreadPool(3, 1)  # type: ignore[arg-type]


# ---- workers


def test_an_index_that_was_never_started_is_vacant(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    spare: Pool = type(pool)(models_for(pool, linear), workers=3)  # type: ignore[arg-type]
    try:
        spare.start(1, 1)
        assert listen(spare, 1) == [Ready(1, 1)]
        pids = spare.pids()
        assert (pids[0], pids[2]) == (None, None)
        spare.send(0, 1, 7, "backbone", linear.queries(1)[0])
        spare.cancel(0, 1, 7)
        spare.retire(0, 1)
        spare.kill(2)
        assert spare.poll(0.1) == []
    finally:
        spare.close(5.0)


@pytest.mark.parametrize("worker", [2, 9, -1])
def test_an_index_out_of_range_is_refused_by_every_method(
    spec: BackboneSpec, linear: LinearModel, worker: int
) -> None:
    for pool in (ProcessPool(spec, 2), ThreadPool(backbone_of(linear), 2)):
        refuses_index(pool, worker)
        pool.close(1.0)


def refuses_index(pool: ProcessPool | ThreadPool, worker: int) -> None:
    query = np.zeros((1, 4, 4), np.float32)
    calls: list[Callable[[], object]] = [
        lambda: pool.start(worker, 2),
        lambda: pool.send(worker, 1, 1, "backbone", query),
        lambda: pool.cancel(worker, 1, 1),
        lambda: pool.retire(worker, 1),
        lambda: pool.kill(worker),
        lambda: pool.slow(worker, 1.0),
        lambda: pool.hang(worker),
        lambda: pool.crash(worker),
        lambda: pool.fail(worker, "no"),
        lambda: pool.corrupt(worker, 1.0),
        lambda: pool.stick(worker),
        lambda: pool.flip(worker),
        lambda: pool.impersonate(worker, "/nowhere"),
        lambda: pool.pause(worker),
        lambda: pool.resume(worker),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"worker: expected 0..1, got {worker}"):
            call()
    assert pool.poll(0.05) == []


def test_nothing_more_is_heard_of_a_retired_worker(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any(workers=2)
    query = linear.queries(1)[0]
    send(pool, query)
    pool.send(0, 1, 8, "no-such-model", query)  # told by the next poll
    time.sleep(0.2)
    pool.retire(0, 1)
    assert pool.poll(0.2) == []
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]


def test_a_new_generation_ends_the_old_one(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    pool.hang(0)
    pool.poll(0.0)
    send(pool, linear.queries(1)[0])
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]
    send(pool, linear.queries(1)[0], generation=2)
    assert isinstance(listen(pool, 1)[0], Result)


def test_a_backbone_that_calls_exit_fails_its_task_and_no_other(
    linear: LinearModel,
) -> None:
    for error in (SystemExit(3), KeyboardInterrupt(), GeneratorExit()):

        def backbone(x: np.ndarray, error: BaseException = error) -> np.ndarray:
            if x[0] < 0:
                raise error
            return x

        pool = ThreadPool(backbone, 1)
        pool.start(0, 1)
        pool.send(0, 1, 1, "backbone", np.array([-1], np.float32))
        pool.send(0, 1, 2, "backbone", np.array([1], np.float32))
        ready, failed, result = listen(pool, 3)
        pool.close(5.0)
        assert isinstance(ready, Ready)
        assert isinstance(failed, TaskError)
        assert failed.reason.startswith(type(error).__name__)
        assert isinstance(result, Result)


# ---- waiting


def test_any_timeout_can_be_waited(start_any: StartAny) -> None:
    pool = start_any()
    for timeout_s in (1e5, 3e6, 1e9, 1e300, math.inf, None):
        timer = threading.Timer(0.05, pool.wake)
        timer.start()
        assert pool.poll(timeout_s) == []
        timer.join()


def test_hanging_and_slowness_take_any_number(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any(workers=2)
    query = linear.queries(1)[0]
    pool.slow(0, 1e300)
    pool.hang(1)
    pool.poll(0.0)
    for worker in range(2):
        pool.send(worker, 1, 7, "backbone", query)
    assert pool.poll(0.3) == []
    for worker in range(2):
        pool.kill(worker)
    assert {type(m) for m in listen(pool, 2)} == {Died}


def test_a_wake_ends_a_poll_and_is_never_lost(start_any: StartAny) -> None:
    pool = start_any()
    for _ in range(3):
        pool.wake()
        started = time.monotonic()
        assert pool.poll(20.0) == []
        assert time.monotonic() - started < 10


def test_the_descriptor_is_readable_when_poll_has_something(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any(workers=2)
    query = linear.queries(1)[0]
    listener = select.poll()
    listener.register(pool.fileno(), select.POLLIN)

    def heard() -> list[Message]:
        assert listener.poll(100_000), "nothing became readable"
        assert listener.poll(100_000), "not level-triggered"
        return pool.poll(0.0)

    backlog: list[Message] = []

    def next_message() -> Message:
        until = time.monotonic() + 100
        while not backlog:
            assert time.monotonic() < until
            backlog.extend(heard())
        return backlog.pop(0)

    assert listener.poll(50) == []
    pool.wake()
    assert heard() == []
    assert listener.poll(50) == []
    send(pool, query)
    assert isinstance(next_message(), Result)
    send(pool, query, 8)
    pool.send(0, 1, 9, "no-such-model", query)
    assert {type(next_message()), type(next_message())} == {TaskError, Result}
    pool.kill(1)
    assert isinstance(next_message(), Died)
    pool.start(1, 2)
    assert isinstance(next_message(), Ready)
    pool.pause(0)
    send(pool, query, 10)
    send(pool, query, 11)
    pool.cancel(0, 1, 11)
    pool.resume(0)
    assert {type(next_message()), type(next_message())} == {Dropped, Result}


# ---- ends


def test_close_may_be_called_twice_and_nothing_comes_after_it(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.close(5.0)
    pool.close(5.0)
    pool.wake()
    send(pool, linear.queries(1)[0])
    pool.kill(0)
    pool.slow(0, 1.0)
    assert pool.poll(1.0) == []
    assert pool.pids() == [None]


def test_a_forked_copy_does_no_harm_and_says_so(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any(workers=2)
    query = linear.queries(1)[0]
    pid = os.fork()
    if pid == 0:
        flaws = 0
        try:
            pool.wake()
            calls: list[Callable[[], object]] = [
                lambda: pool.poll(0.1),
                lambda: send(pool, query),
                lambda: pool.cancel(0, 1, 1),
                lambda: pool.retire(0, 1),
                lambda: pool.start(0, 2),
                lambda: pool.kill(0),
                lambda: pool.pause(0),
                lambda: pool.hang(0),
            ]
            for call in calls:
                try:
                    call()
                    flaws += 1
                except CodedInvError as error:
                    flaws += f"belongs to process {os.getppid()}" not in str(error)
            pool.close(5.0)
        except BaseException:
            flaws = 99
        finally:
            os._exit(flaws)
    assert os.waitpid(pid, 0)[1] == 0
    for worker in range(2):
        pool.send(worker, 1, 7, "backbone", query)
    assert [type(m) for m in listen(pool, 2)] == [Result, Result]
