"""Every fault does what it says, to processes as to threads."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from codedinv.workers import Died, Pool, ProcessPool, Ready, Result, TaskError, ThreadPool
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import StartAny, backbone_of, listen


def ask(pool: Pool, query: np.ndarray) -> np.ndarray:
    """What worker 0 answers, once the faults given to it are there."""
    pool.poll(0.0)
    pool.send(0, 1, 7, "backbone", query)
    (result,) = listen(pool, 1)
    assert isinstance(result, Result), result
    return result.embedding


def test_a_killed_worker_is_dead_once_and_silent(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    pool.hang(0)
    pool.poll(0.0)
    pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
    pool.kill(0)
    pool.kill(0)
    (died,) = listen(pool, 1)
    assert isinstance(died, Died)
    assert pool.poll(0.2) == []


def test_a_worker_that_crashes_on_a_task_is_told_as_dead(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.crash(0)
    pool.poll(0.0)
    pool.send(0, 1, 1, "backbone", linear.queries(1)[0])
    assert isinstance(listen(pool, 1)[0], Died)


def test_a_hung_worker_says_nothing_until_it_is_killed(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.hang(0)
    pool.poll(0.0)
    pool.send(0, 1, 1, "backbone", linear.queries(1)[0])
    assert pool.poll(0.2) == []
    pool.kill(0)
    assert isinstance(listen(pool, 1)[0], Died)
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]


def test_a_delay_lasts_until_it_is_taken_back(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    query = linear.queries(1)[0]
    pool.slow(0, 0.4)
    started = time.monotonic()
    ask(pool, query)
    assert time.monotonic() - started >= 0.4
    pool.slow(0, 1e6)
    pool.poll(0.0)
    pool.slow(0, 0.0)
    ask(pool, query)


def test_noise_changes_the_result_and_its_end_mends_it(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    query = linear.queries(1)
    right = linear.embed(query)[0]
    pool.corrupt(0, 0.5)
    assert np.abs(ask(pool, query[0]) - right).max() > 0.1
    pool.corrupt(0, 0.0)
    np.testing.assert_allclose(ask(pool, query[0]), right, atol=1e-5)


def test_a_task_that_fails_leaves_the_worker_alive(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    query = linear.queries(1)[0]
    for message, kind in (("out of order", TaskError), ("", Result)):
        pool.fail(0, message)
        pool.poll(0.0)
        pool.send(0, 1, 7, "backbone", query)
        (answer,) = listen(pool, 1)
        assert isinstance(answer, kind)
        assert getattr(answer, "reason", "").endswith(message)


def test_a_stuck_worker_repeats_its_last_answer(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    queries = linear.queries(3)
    first = ask(pool, queries[0])
    pool.stick(0)
    np.testing.assert_array_equal(ask(pool, queries[1]), first)
    pool.stick(0, False)
    np.testing.assert_allclose(ask(pool, queries[2]), linear.embed(queries)[2], atol=1e-5)


def test_a_worker_that_is_stuck_before_its_first_answer_repeats_that(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    queries = linear.queries(2)
    pool.stick(0)
    first = ask(pool, queries[0])
    np.testing.assert_allclose(first, linear.embed(queries)[0], atol=1e-5)
    np.testing.assert_array_equal(ask(pool, queries[1]), first)


@pytest.mark.parametrize("bit", [23, 30, 31])
def test_one_bit_of_one_element_is_flipped(
    start_any: StartAny, linear: LinearModel, bit: int
) -> None:
    pool = start_any()
    query = linear.queries(1)[0]
    sound = ask(pool, query)
    pool.flip(0, bit)
    flipped = ask(pool, query)
    different = (sound.view(np.uint32) ^ flipped.view(np.uint32)).reshape(-1)
    assert sorted(different)[-2:] == [0, 1 << bit]
    pool.flip(0, None)
    np.testing.assert_array_equal(ask(pool, query), sound)


def test_an_impostor_answers_with_another_bundles_backbone(
    start_any: StartAny, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_any()
    query = linear.queries(1)
    assert other.folder is not None
    pool.impersonate(0, other.folder)
    np.testing.assert_allclose(ask(pool, query[0]), other.embed(query)[0], atol=1e-5)
    if isinstance(pool, ThreadPool):
        pool.impersonate(0, backbone_of(other))
        np.testing.assert_allclose(ask(pool, query[0]), other.embed(query)[0], atol=1e-5)
    else:
        with pytest.raises(TypeError, match="expected a bundle's folder"):
            pool.impersonate(0, backbone_of(other))
    pool.impersonate(0, None)
    np.testing.assert_allclose(ask(pool, query[0]), linear.embed(query)[0], atol=1e-5)


def test_an_impostor_that_cannot_be_loaded_fails_its_tasks(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.impersonate(0, "/nowhere")
    pool.poll(0.0)
    pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
    (failed,) = listen(pool, 1)
    assert isinstance(failed, TaskError)
    assert "/nowhere/backbone.onnx" in failed.reason


def test_a_paused_worker_answers_when_it_goes_on(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    query = linear.queries(1)
    pool.pause(0)
    pool.send(0, 1, 7, "backbone", query[0])
    assert pool.poll(0.3) == []
    pool.resume(0)
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    np.testing.assert_allclose(result.embedding, linear.embed(query)[0], atol=1e-5)


def test_a_thread_can_be_paused_in_the_middle_of_a_task() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def backbone(x: np.ndarray) -> np.ndarray:
        begun.set()
        may_end.wait()
        return x

    pool = ThreadPool(backbone, 1)
    pool.start(0, 1)
    pool.send(0, 1, 7, "backbone", np.ones(3, np.float32))
    assert listen(pool, 1) == [Ready(0, 1)]
    begun.wait()
    pool.pause(0)
    may_end.set()
    assert pool.poll(0.2) == []
    pool.resume(0)
    assert isinstance(listen(pool, 1)[0], Result)
    pool.close(5.0)


def test_a_paused_worker_can_be_killed_and_its_successor_runs(
    start_any: StartAny, linear: LinearModel
) -> None:
    pool = start_any()
    pool.pause(0)
    pool.kill(0)
    assert isinstance(listen(pool, 1)[0], Died)
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]
    pool.send(0, 2, 7, "backbone", linear.queries(1)[0])
    assert isinstance(listen(pool, 1)[0], Result)


def test_a_restarted_worker_is_sound(start_any: StartAny, linear: LinearModel) -> None:
    pool = start_any()
    pool.fail(0, "out of order")
    pool.retire(0, 1)
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]
    pool.send(0, 2, 7, "backbone", linear.queries(1)[0])
    assert isinstance(listen(pool, 1)[0], Result)


def test_numbers_that_no_fault_can_have_are_refused(start_any: StartAny) -> None:
    pool = start_any()
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="delay_s"):
            pool.slow(0, value)
        with pytest.raises(ValueError, match="noise"):
            pool.corrupt(0, value)
    for bit in (-1, 32):
        with pytest.raises(ValueError, match=r"bit: expected 0..31 or None"):
            pool.flip(0, bit)
    assert isinstance(pool, ProcessPool | ThreadPool)
