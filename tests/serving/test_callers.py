"""Whatever one caller does, the others get their answers: callbacks, heads, encoders, decoders."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, as_completed, wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codedinv.errors import CodedInvError
from codedinv.schemes import invertible
from codedinv.serving import CodedServer, Policy, Prediction
from codedinv.serving.futures import CallbackThread
from tests.serving.helpers import check_answers, next_workers, wait_until
from tests.serving.linear_model import LinearModel

Serve = Callable[..., CodedServer]
PATIENT = Policy(hang_timeout_s=60.0)
EXACT = Policy(release="grace", grace_s=60.0)


# ---- callbacks


def _raise(_: Any) -> None:
    raise RuntimeError("careless")


@pytest.mark.parametrize("callback", [lambda f: sys.exit(1), _raise])
def test_a_callback_that_raises_harms_nobody(
    serve: Serve, linear: LinearModel, callback: Callable[[Any], None]
) -> None:
    server = serve(backend="thread", policy=EXACT)
    queries = linear.queries(12)
    futures = [server.submit(q) for q in queries]
    later: list[int] = []
    for i, future in enumerate(futures):
        future.add_done_callback(callback)
        future.add_done_callback(lambda _, i=i: later.append(i))
    check_answers([f.result(30) for f in futures], linear.outputs(queries))
    wait_until(lambda: len(later) == 12)
    check_answers([server.submit(queries[0]).result(30)], linear.outputs(queries[:1]))


def test_a_callback_that_blocks_holds_up_neither_answers_nor_callbacks_nor_close(
    linear: LinearModel,
) -> None:
    release = threading.Event()
    called: list[int] = []
    server = CodedServer(linear, backend="thread", policy=EXACT)
    try:
        queries = linear.queries(6)
        blocked = server.submit(queries[0])
        blocked.add_done_callback(lambda _: release.wait(60))
        blocked.result(30)
        futures = [server.submit(q) for q in queries]
        for i, future in enumerate(futures):
            future.add_done_callback(lambda _, i=i: called.append(i))
        check_answers([f.result(30) for f in futures], linear.outputs(queries))
        wait_until(lambda: sorted(called) == list(range(6)))
        closer = threading.Thread(target=server.close, daemon=True)
        closer.start()
        closer.join(30)
        assert not closer.is_alive()
    finally:
        release.set()
        server.close()


def test_a_callback_may_ask_the_server_for_answers_and_close_it(linear: LinearModel) -> None:
    server = CodedServer(linear, backend="thread", policy=EXACT)
    query = linear.queries(1)[0]
    seen: list[Any] = []
    done = threading.Event()

    def callback(_: Future[Prediction]) -> None:
        seen.append(server.predict(query))
        seen.append(server.stats().answered["exact"])
        server.close()
        done.set()

    server.submit(query).add_done_callback(callback)
    assert done.wait(60)
    assert seen[0].source == "exact"
    assert seen[1] == 2


def test_callbacks_run_one_after_another_in_the_order_of_their_futures() -> None:
    thread = CallbackThread()
    order: list[int] = []
    busy = threading.Lock()

    def callback(i: int) -> None:
        assert busy.acquire(blocking=False), "two at once"
        order.append(i)
        busy.release()

    for i in range(500):
        thread.post(callback, i)
    wait_until(lambda: len(order) == 500)
    assert order == list(range(500))


def test_the_callback_thread_ends_when_there_is_nothing_to_do() -> None:
    thread = CallbackThread()
    names: list[str] = []
    thread.post(lambda: names.append(threading.current_thread().name))
    wait_until(lambda: names)
    runner = [t for t in threading.enumerate() if t.name == "codedinv-callbacks"]
    for t in runner:
        t.join(30)
        assert not t.is_alive()
    thread.post(lambda: names.append("again"))
    wait_until(lambda: "again" in names)


# ---- cancellation


def test_a_cancelled_future_is_done_for_all_who_wait(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread", policy=PATIENT, workers=1, scheme="uncoded")
    server.pool.hang(0)
    queries = linear.queries(3)
    futures = [server.submit(q) for q in queries]
    called = threading.Event()
    futures[0].add_done_callback(lambda _: called.set())
    threading.Timer(0.05, lambda: [f.cancel() for f in futures]).start()
    assert wait(futures, 30).not_done == set()
    assert set(as_completed(futures, 30)) == set(futures)
    assert called.wait(30)
    assert all(f.cancelled() for f in futures)
    wait_until(lambda: server.stats().failed["cancelled"] == 3)


def test_a_cancelled_query_frees_its_place_in_the_queue(serve: Serve, linear: LinearModel) -> None:
    policy = replace(PATIENT, max_queue=2)
    server = serve(backend="thread", policy=policy, workers=1, scheme="uncoded")
    server.pool.slow(0, 0.2)
    query = linear.queries(1)[0]
    server.submit(query)
    assert server.submit(query).cancel()
    assert server.submit(query).result(30).source == "exact"
    assert server.stats().overloaded == 0


def test_an_answer_that_is_there_cannot_be_cancelled(serve: Serve, linear: LinearModel) -> None:
    future = serve(backend="thread").submit(linear.queries(1)[0])
    prediction = future.result(30)
    assert not future.cancel()
    assert future.result(0) is prediction
    assert prediction.query_id == future.query_id


def test_cancelling_and_answering_at_once_ends_every_future_once(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread")
    ends: list[int] = []
    futures = []
    for i, query in enumerate(linear.queries(400)):
        future = server.submit(query)
        future.add_done_callback(lambda _, i=i: ends.append(i))
        futures.append(future)
        if i >= 2:
            futures[i - 2].cancel()
    wait(futures, 60)
    wait_until(lambda: len(ends) == 400)
    assert sorted(ends) == list(range(400))
    stats = server.stats()
    assert stats.accepted == 400
    assert stats.queued + stats.outstanding == 0
    assert server._engine.failure is None


# ---- what the scheme and the model do


def _with_encoder(model: LinearModel, encode: Callable[[Any], Any]) -> Any:
    return replace(invertible(model), encode=encode)


def test_a_slow_encoder_holds_up_no_exact_answer(serve: Serve, linear: LinearModel) -> None:
    started = threading.Event()
    slow = threading.Event()

    def encode(queries: np.ndarray) -> np.ndarray:
        if len(queries) and queries.any():  # not when it is tried out
            started.set()
            assert slow.wait(60)
        return linear.encode(queries)

    server = serve(backend="thread", policy=EXACT, scheme=_with_encoder(linear, encode))
    for worker in range(5):
        server.pool.slow(worker, 0.02)
    queries = linear.queries(40)
    try:
        predictions = server.predict(queries)
        assert started.is_set()
    finally:
        slow.set()
    check_answers(predictions, linear.outputs(queries))


def test_an_encoder_that_hangs_does_not_hang_close(linear: LinearModel) -> None:
    forever = threading.Event()

    def encode(queries: np.ndarray) -> np.ndarray:
        if queries.any():
            forever.wait(60)
        return linear.encode(queries)

    server = CodedServer(linear, backend="thread", scheme=_with_encoder(linear, encode))
    queries = linear.queries(8)
    check_answers([server.submit(q).result(30) for q in queries], linear.outputs(queries))
    began = time.monotonic()
    server.close()
    assert time.monotonic() - began < 20
    forever.set()


def test_the_encoder_thread_ends_with_the_server(linear: LinearModel) -> None:
    before = set(threading.enumerate())
    with CodedServer(linear, backend="thread", policy=Policy(always_encode=True)) as server:
        server.predict(linear.queries(8))
        assert any(t.name == "codedinv-encoder" for t in set(threading.enumerate()) - before)
    wait_until(lambda: not set(threading.enumerate()) - before)


@pytest.mark.parametrize(
    "bad",
    [
        lambda model, x: 1 / 0,
        lambda model, x: sys.exit(3),
        lambda model, x: model.encode(x) * np.nan,
        lambda model, x: model.encode(x)[..., :2],
        lambda model, x: np.repeat(model.encode(x), 2, axis=1),
    ],
    ids=["raises", "exits", "NaN", "smaller", "too many"],
)
def test_what_the_encoder_cannot_make_is_lost_and_counted_and_no_answer_with_it(
    serve: Serve, linear: LinearModel, bad: Callable[[LinearModel, Any], Any]
) -> None:
    def encode(queries: np.ndarray) -> Any:
        return bad(linear, queries) if queries.any() else linear.encode(queries)

    policy = replace(EXACT, always_encode=True)
    server = serve(backend="process", policy=policy, scheme=_with_encoder(linear, encode))
    queries = linear.queries(12)
    check_answers(server.predict(queries), linear.outputs(queries))
    wait_until(lambda: server.stats().encode_errors == server.stats().groups >= 3)
    assert "encoder" in (server.stats().last_error or "")
    check_answers(server.predict(queries), linear.outputs(queries))


def test_an_encoder_that_cannot_work_is_told_at_the_start(linear: LinearModel) -> None:
    scheme = _with_encoder(linear, lambda x: np.repeat(linear.encode(x), 2, axis=1))
    with pytest.raises(ValueError, match=r"encoder: expected parities \(1, 1, 1, 4, 4\)"):
        CodedServer(linear, backend="thread", scheme=scheme)


def test_a_head_that_fails_one_query_fails_no_other(serve: Serve) -> None:
    model = LinearModel()
    poison = model.queries(1, seed=99)[0]
    mark = model.embed(poison[np.newaxis])[0]
    head = model.head

    def picky(z: np.ndarray, task: str | None = None) -> np.ndarray:
        if any(np.allclose(row, mark, atol=1e-4) for row in z):
            raise ZeroDivisionError("a bug in the head")
        return head(z, task)

    model.head = picky  # type: ignore[method-assign]
    server = serve(model, backend="thread", policy=EXACT, workers=9)
    for worker in range(9):
        server.pool.slow(worker, 0.05)  # so that several answers come at once
    queries = model.queries(8)
    model.head = picky  # type: ignore[method-assign]
    futures = [server.submit(q) for q in [*queries[:4], poison, *queries[4:]]]
    bad = futures.pop(4)
    with pytest.raises(CodedInvError, match="a bug in the head") as caught:
        bad.result(30)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    model.head = head  # type: ignore[method-assign]
    check_answers([f.result(30) for f in futures], model.outputs(queries))
    stats = server.stats()
    assert stats.failed["error"] == 1
    assert stats.accepted == 9 == sum(stats.answered.values()) + sum(stats.failed.values())


def test_a_head_that_loses_rows_of_a_batch_is_asked_one_by_one(serve: Serve) -> None:
    model = LinearModel()
    head = model.head
    model.head = lambda z, task=None: head(z[:1], task)  # type: ignore[method-assign]
    server = serve(model, backend="thread", policy=EXACT, scheme="uncoded", workers=8)
    for worker in range(8):
        server.pool.slow(worker, 0.05)
    queries = model.queries(16)
    predictions = server.predict(queries)
    model.head = head  # type: ignore[method-assign]
    check_answers(predictions, model.outputs(queries))


def test_a_decoder_that_raises_fails_only_what_it_should_have_recovered(
    serve: Serve, linear: LinearModel
) -> None:
    base = invertible(linear)

    class Singular:
        def __init__(self) -> None:
            self._decoder = base.decoder()
            self.push, self.residual = self._decoder.push, self._decoder.residual
            self.reset = self._decoder.reset

        def recover(self) -> Any:
            raise ZeroDivisionError("singular")

    scheme = replace(base, decoder=Singular)
    server = serve(backend="thread", policy=PATIENT, scheme=scheme)
    server.pool.hang(next_workers(server, 2)[1])
    queries = linear.queries(4)
    futures = [server.submit(q) for q in queries]
    with pytest.raises(CodedInvError, match="singular"):
        futures.pop(1).result(30)
    check_answers([f.result(30) for f in futures], linear.outputs(queries[[0, 2, 3]]))
    assert server.stats().failed["error"] == 1


def test_a_head_that_hangs_does_not_hang_close(
    linear: LinearModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codedinv.serving.runners._PATIENCE_S", 0.5)
    forever = threading.Event()
    model = LinearModel()
    head = model.head

    def hangs(z: np.ndarray, task: str | None = None) -> np.ndarray:
        if z.any():
            forever.wait(60)
        return head(z, task)

    model.head = hangs  # type: ignore[method-assign]
    server = CodedServer(model, backend="thread", policy=replace(PATIENT, drain_timeout_s=0.2))
    future = server.submit(model.queries(1)[0])
    server.close()
    with pytest.raises(CodedInvError, match="did not come to its end"):
        future.result(0)
    forever.set()


@pytest.mark.parametrize("what", ["queries", "embeddings"])
def test_anchors_that_are_not_finite_are_refused(what: str) -> None:
    model = LinearModel()
    setattr(model.anchors, what, getattr(model.anchors, what) * np.nan)
    with pytest.raises(ValueError, match=f"anchors: expected finite {what}"):
        CodedServer(model, backend="thread")


def test_a_slot_that_wants_a_model_nobody_has_is_refused(linear: LinearModel) -> None:
    base = invertible(linear)
    plan = replace(base.plan, models=("backbone",) * 4 + ("parity",))
    with pytest.raises(ValueError, match=r"slots want \['parity'\]"):
        CodedServer(linear, scheme=replace(base, plan=plan))
