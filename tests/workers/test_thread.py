"""Worker threads behave as worker processes do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from codedinv.workers import Died, Message, Ready, Result, TaskError, ThreadPool

Listen = Callable[..., list[Message]]


@pytest.fixture
def pool(listen: Listen) -> Iterator[ThreadPool]:
    """One worker that doubles."""
    pool = ThreadPool(lambda x: 2 * x, workers=1)
    pool.start(0, 1)
    assert listen(pool, 1) == [Ready(0, 1)]
    yield pool
    pool.close(5.0)


def send(pool: ThreadPool, generation: int = 1) -> None:
    pool.send(0, generation, 7, "backbone", np.ones(3, np.float32))


def test_a_worker_returns_the_embedding(pool: ThreadPool, listen: Listen) -> None:
    send(pool)
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    assert (result.worker, result.generation, result.task) == (0, 1, 7)
    np.testing.assert_array_equal(result.embedding, 2 * np.ones(3))


def test_a_killed_worker_is_dead_once_and_silent(pool: ThreadPool, listen: Listen) -> None:
    pool.slow(0, 0.2)
    send(pool)
    pool.kill(0)
    pool.kill(0)
    assert listen(pool, 1) == [Died(0, 1, "killed")]
    assert pool.poll(0.4) == []


def test_a_crash_a_failure_and_a_hang(pool: ThreadPool, listen: Listen) -> None:
    pool.fail(0, "out of order")
    send(pool)
    assert listen(pool, 1) == [TaskError(0, 1, 7, "RuntimeError: out of order")]
    pool.fail(0, "")
    pool.crash(0)
    send(pool)
    assert listen(pool, 1) == [Died(0, 1, "crashed")]
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]
    pool.hang(0)
    send(pool, generation=2)
    assert pool.poll(0.1) == []
    pool.retire(0, 2)
    assert listen(pool, 1) == [Died(0, 2, "retired")]


def test_noise_changes_the_result(pool: ThreadPool, listen: Listen) -> None:
    pool.corrupt(0, 1.0)
    send(pool)
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    assert not np.array_equal(result.embedding, 2 * np.ones(3))


def test_what_is_sent_to_an_older_generation_is_dropped(pool: ThreadPool) -> None:
    send(pool, generation=0)
    assert pool.poll(0.1) == []


def test_close_ends_all_threads(listen: Listen) -> None:
    pool = ThreadPool(lambda x: x, workers=3)
    for worker in range(3):
        pool.start(worker, 1)
    listen(pool, 3)
    pool.hang(1)
    pool.send(1, 1, 1, "backbone", np.ones(3, np.float32))
    pool.close(5.0)
    assert not [t for t in threading.enumerate() if t.name.startswith("codedinv-worker")]
