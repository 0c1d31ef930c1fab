"""Futures that make their condition when somebody looks: whoever waits is told, once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, as_completed, wait
from typing import Any

import numpy as np
import pytest

from codedinv.serving import Prediction
from codedinv.serving.futures import CallbackThread, PredictionFuture

ANSWER = Prediction({"label": np.zeros(1, np.float32)}, "exact", 0.0, 0)


def made(count: int) -> list[PredictionFuture]:
    """Futures whose queries somebody has taken already, to end them."""
    callbacks = CallbackThread()
    return [PredictionFuture(i, lambda _: False, callbacks) for i in range(count)]


def test_a_future_that_ended_before_anybody_looked_is_like_any_other() -> None:
    (future,) = made(1)
    future.end(ANSWER)
    assert future.done()
    assert not future.cancelled()
    assert not future.cancel()
    assert future.result() is future.result(0) is ANSWER
    assert future.exception() is None
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    assert told.wait(5)
    assert wait([future]).done == {future}


def test_a_future_that_ended_in_an_error_raises_it_for_all() -> None:
    (future,) = made(1)
    future.end(ValueError("why"))
    for _ in range(2):
        with pytest.raises(ValueError, match="why"):
            future.result()


def test_a_cancelled_future_takes_no_answer() -> None:
    (future,) = made(1)
    assert future.cancel()
    future.end(ANSWER)
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result(0)


@pytest.mark.parametrize(
    "look",
    [
        lambda futures: [f.result(30) for f in futures],
        lambda futures: wait(futures, 30).done == set(futures) or pytest.fail("wait"),
        lambda futures: list(as_completed(futures, 30)),
        lambda futures: _wait_one_by_one(set(futures)),
        lambda futures: _wait_for_callbacks(futures),
    ],
    ids=["result", "wait", "as_completed", "first_completed", "callbacks"],
)
def test_whoever_looks_while_futures_end_is_told(
    look: Callable[[list[PredictionFuture]], object],
) -> None:
    for _ in range(20):
        futures = made(50)
        begin = threading.Barrier(2)

        def end(
            futures: list[PredictionFuture] = futures, begin: threading.Barrier = begin
        ) -> None:
            begin.wait()
            for future in futures:
                future.end(ANSWER)

        thread = threading.Thread(target=end)
        thread.start()
        begin.wait()
        look(futures)
        thread.join()
        assert all(future.result(0) is ANSWER for future in futures)


def _wait_one_by_one(left: set[PredictionFuture]) -> None:
    while left:
        done, left = wait(left, 30, FIRST_COMPLETED)  # type: ignore[assignment]
        assert done


def _wait_for_callbacks(futures: list[PredictionFuture]) -> None:
    called = threading.Semaphore(0)
    for future in futures:
        future.add_done_callback(lambda _: called.release())
    for _ in futures:
        assert called.acquire(timeout=30)


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While another thread makes the condition of a future, for as long as the test takes."""
    (future,) = made(1)
    begun, go_on = threading.Event(), threading.Event()
    condition = threading.Condition

    def slowly(*arguments: Any) -> threading.Condition:
        if threading.current_thread() is thread:
            begun.set()
            go_on.wait(30)
        return condition(*arguments)

    thread = threading.Thread(target=future.done)
    with monkeypatch.context() as patched:
        patched.setattr("codedinv.serving.futures.threading.Condition", slowly)
        thread.start()
        assert begun.wait(30)
    yield
    go_on.set()
    thread.join()


@pytest.mark.usefixtures("at_work")
def test_a_future_that_is_given_its_condition_holds_up_no_other() -> None:
    """A signal's handler, for one, may wait for the server."""
    (other,) = made(1)
    thread = threading.Thread(target=other.end, args=(ANSWER,), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.usefixtures("at_work")
def test_a_process_forked_meanwhile_can_make_futures_of_its_own() -> None:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(5)  # which ends it, if it hangs
        made(1)[0].done()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
