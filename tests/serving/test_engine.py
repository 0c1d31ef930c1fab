"""The engine's turn, step by step, with a scripted pool."""

from __future__ import annotations

import time
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codedinv.errors import CodedInvError, DeadlineExceeded
from codedinv.schemes import build_scheme
from codedinv.serving import Policy, Prediction
from codedinv.serving import actions as act
from codedinv.serving.versions import build_served
from codedinv.workers import Died, Result, TaskError
from tests.serving.helpers import wait_until
from tests.serving.linear_model import LinearModel
from tests.serving.scripted import Stepped

HANGS_SOON = Policy(hang_timeout_s=1.0, release="grace", grace_s=60.0)


def test_a_result_that_came_while_the_loop_was_away_is_given_and_nobody_is_killed() -> None:
    server = Stepped(policy=HANGS_SOON)
    future = server.submit(server.model.queries(1)[0], deadline_s=2.0)
    server.turn()
    server.pool.answer(server.model)
    # As after SIGCONT: five seconds have gone, and the first poll reports nothing.
    server.turn(after_s=5.0, is_blind=True)
    assert future.result(0).source == "exact"
    assert server.counts["stalls"] == 1
    assert server.counts["hangs"] == 0


def test_workers_are_not_blamed_for_the_time_that_the_loop_was_away() -> None:
    server = Stepped(policy=HANGS_SOON)
    future = server.submit(server.model.queries(1)[0])
    server.turn()
    server.turn(after_s=5.0)
    server.turn(after_s=0.5)
    assert server.counts["hangs"] == 0
    server.pool.answer(server.model)
    server.turn()
    assert future.result(0).source == "exact"


def test_a_worker_that_hangs_while_the_loop_is_there_is_killed() -> None:
    server = Stepped(policy=HANGS_SOON)
    server.submit(server.model.queries(1)[0])
    server.turn()
    for _ in range(15):
        server.turn(after_s=0.1)
    assert server.counts["hangs"] == 1
    assert len(server.pool.retired) == 1


def test_a_wait_that_was_asked_for_is_no_stall() -> None:
    server = Stepped()
    for _ in range(5):
        again = server.turn()
        server.turn(after_s=max(0.0, again - server.now))
    assert server.counts["stalls"] == 0


def test_a_bug_in_the_core_ends_every_query_and_the_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Stepped()
    queries = server.model.queries(2)
    known = server.submit(queries[0])
    server.turn()
    bug = ZeroDivisionError("a bug")

    def break_down(_: Any) -> Any:
        raise bug

    monkeypatch.setattr(server.engine._core, "take", break_down)
    unknown = server.submit(queries[1])
    server.turn()
    for future in (known, unknown):
        with pytest.raises(CodedInvError, match="a bug") as caught:
            future.result(0)
        assert caught.value.__cause__ is bug
    assert server.engine.finished
    server.engine.shut_down()
    assert server.pool.is_closed
    stats = server.engine.admission.ask().stats()
    assert stats.failed["error"] == stats.accepted == 1
    with pytest.raises(CodedInvError, match="a bug"):
        server.submit(queries[0])


def test_a_pool_that_cannot_send_costs_the_worker_and_not_the_query() -> None:
    server = Stepped(policy=Policy(restart_backoff_s=30.0, restart_backoff_max_s=30.0))
    send, broken = server.pool.send, []

    def send_or_raise(worker: int, *rest: Any) -> None:
        if not broken:
            broken.append(worker)
        if worker in broken:
            raise OSError("no route")
        send(worker, *rest)

    server.pool.send = send_or_raise  # type: ignore[method-assign]
    future = server.submit(server.model.queries(1)[0])
    server.turn()
    server.pool.answer(server.model)
    server.turn()
    assert future.result(0).source == "exact"
    assert server.counts["deaths"] == 1


# ---- fallback and corrections


def test_a_fallback_answers_from_the_query_itself() -> None:
    model = LinearModel()
    seen: list[np.ndarray] = []

    def fallback(queries: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(queries)
        return {"label": queries.reshape(len(queries), -1)[:, :10], "count": queries[:, 0, 0, :3]}

    server = Stepped(model, Policy(release="deadline"), served=_served(model, fallback))
    query = model.queries(1)[0]
    future = server.submit(query, deadline_s=0.5)
    server.turn()
    for _ in range(30):
        server.turn(after_s=0.02)
    prediction = future.result(0)
    assert prediction.source == "fallback"
    assert prediction.degraded
    np.testing.assert_array_equal(prediction.outputs["label"], query.ravel()[:10])
    assert seen[0].shape == (1, *model.input_shape)


def test_a_fallback_that_raises_is_a_missed_deadline() -> None:
    model = LinearModel()

    def fallback(queries: np.ndarray) -> Any:
        raise RuntimeError("no light")

    server = Stepped(model, Policy(release="deadline"), served=_served(model, fallback))
    future = server.submit(model.queries(1)[0], deadline_s=0.2)
    server.turn()
    for _ in range(20):
        server.turn(after_s=0.02)
    with pytest.raises(DeadlineExceeded, match="no light"):
        future.result(0)
    stats = server.engine.snapshot().stats()
    assert stats.failed["error"] == stats.accepted == 1
    assert stats.answered["fallback"] == 0


def test_the_exact_answer_after_a_fallback_is_told_as_a_correction() -> None:
    model = LinearModel()
    told: list[tuple[int, Prediction]] = []
    constant = {"label": np.zeros(10), "count": np.ones(3)}
    server = Stepped(
        model,
        Policy(release="deadline"),
        served=_served(model, constant),
        on_correction=lambda query, prediction: told.append((query, prediction)),
    )
    query = model.queries(1)
    future = server.submit(query[0], deadline_s=0.2)
    server.turn()
    for _ in range(20):
        server.turn(after_s=0.02)
    assert future.result(0).source == "fallback"
    np.testing.assert_array_equal(future.result(0).outputs["count"], np.ones(3))
    server.pool.answer(model)
    server.turn()
    wait_until(lambda: told)
    ((query_id, prediction),) = told
    assert query_id == future.result(0).query_id
    assert prediction.source == "exact"
    assert prediction.latency > 0
    np.testing.assert_allclose(prediction.outputs["label"], model.outputs(query)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("fallback", "message"),
    [
        ("light", "has no light model"),
        ({"label": np.zeros(10)}, r"expected outputs of \['label', 'count'\], got \['label'\]"),
        (7, "expected 'light', a callable or a mapping"),
    ],
)
def test_a_fallback_that_does_not_fit_is_refused(fallback: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_served(LinearModel(), "invertible", fallback)


def test_a_models_light_model_is_its_fallback() -> None:
    model = LinearModel()
    model.light = lambda x: {"label": x.reshape(len(x), -1)[:, :10], "count": x[:, 0, 0, :3]}  # type: ignore[attr-defined]
    served = build_served(model, "invertible", None)
    assert served.fallback is not None
    assert served.fallback(model.queries(2))["count"].shape == (2, 3)


def _served(model: LinearModel, fallback: Any) -> Any:
    return build_served(model, "invertible", fallback, verify=True)


# ---- what the core asks of the shell


def _do(server: Stepped, *actions: act.Action) -> list[Any]:
    """The actions are done; returns the events that they were answered with."""
    told: list[Any] = []
    take = server.engine._core.take

    def scripted(event: Any) -> list[act.Action]:
        told.append(event)
        return []

    server.engine._core.take = scripted  # type: ignore[method-assign]
    for action in actions:
        server.engine._do[type(action)](action)
        while server.engine._replies:
            told.append(server.engine._replies.popleft())
    server.engine._core.take = take  # type: ignore[method-assign]
    return told


def test_a_cancelled_attempt_is_taken_back_from_its_worker() -> None:
    server = Stepped()
    _do(server, act.Cancel(3, 1, 77))
    assert server.pool.cancelled == [(3, 1, 77)]


class Alarm:
    """What a consistency check says."""

    def __init__(self, alarm: bool, slot: int | None) -> None:
        self.alarm, self.slot = alarm, slot


def _verified(check: Any) -> Stepped:
    model = LinearModel()
    model.consistency = check  # type: ignore[attr-defined]
    return Stepped(model, Policy(verify=True), served=_served(model, None))


def test_a_full_group_is_checked_by_the_models_own_statistic() -> None:
    syndromes: list[np.ndarray] = []

    def check(syndrome: np.ndarray, scale: np.ndarray) -> Alarm:
        assert scale.shape == (1,)
        syndromes.append(syndrome)
        return Alarm(float(np.abs(syndrome).max()) > 1e-3, 2)

    server = _verified(check)
    model = server.model
    queries = model.queries(4)
    results = [*model.embed(queries), *model.embed(model.encode(queries[np.newaxis])[0])]
    sound = [act.Absorb(10, 0, slot, result) for slot, result in enumerate(results)]
    (told,) = _do(server, *sound, act.Inspect(10, 0, True))
    assert (told.group, told.alarm) == (10, False)
    assert syndromes[0].shape == (1, *model.embedding_shape)
    wrong = [act.Absorb(11, 0, slot, result + (slot == 2)) for slot, result in enumerate(results)]
    (told,) = _do(server, *wrong, act.Inspect(11, 0, True))
    assert (told.group, told.alarm, told.slot) == (11, True, 2)
    (told,) = _do(server, act.Inspect(11, 0, False))
    assert not told.alarm, "a group with anchors is not judged"
    assert server.engine.snapshot().stats().groups_checked == 2


def test_a_check_that_raises_is_told_and_harms_nobody() -> None:
    def check(*_: Any) -> Alarm:
        raise ValueError("not calibrated")

    server = _verified(check)
    model = server.model
    queries = model.queries(4)
    results = [*model.embed(queries), *model.embed(model.encode(queries[np.newaxis])[0])]
    absorbed = [act.Absorb(10, 0, slot, result) for slot, result in enumerate(results)]
    (told,) = _do(server, *absorbed, act.Inspect(10, 0, True))
    assert not told.alarm
    assert "not calibrated" in (server.engine.snapshot().stats().last_error or "")


def test_copies_check_each_other() -> None:
    model = LinearModel()
    served = build_served(model, "replication", None, verify=True)
    server = Stepped(model, Policy(verify=True), served=served, workers=3)
    z = model.embed(model.queries(1))[0]
    absorbed = [act.Absorb(10, 0, 0, z), act.Absorb(10, 0, 1, z * np.float32(1 + 1e-6))]
    (told,) = _do(server, *absorbed, act.Inspect(10, 0, True))
    assert not told.alarm
    (told,) = _do(
        server, act.Absorb(11, 0, 0, z), act.Absorb(11, 0, 1, z + 0.1), act.Inspect(11, 0, True)
    )
    assert told.alarm


def test_a_second_run_is_compared_with_all_before_it() -> None:
    server = _verified(lambda *_: Alarm(False, None))
    z = server.model.embed(server.model.queries(1))[0]
    told = _do(
        server,
        act.Absorb(10, 0, 1, z + 1),
        act.Compare(10, 0, 1, 1, z),
        act.Compare(10, 0, 1, 2, z * np.float32(1 + 1e-6)),
        act.Compare(10, 0, 1, 3, z + 1),
    )
    assert [(t.run, t.agrees) for t in told] == [(1, ()), (2, (1,)), (3, (0,))]


# ---- a caller cancels


def test_a_cancelled_future_leaves_the_backlog_and_frees_its_place() -> None:
    server = Stepped(policy=Policy(max_queue=1), workers=1)
    first = server.submit(server.model.queries(1)[0])
    assert first.cancel()
    second = server.submit(server.model.queries(1)[0])
    server.turn()
    assert server.engine.snapshot().stats().failed["cancelled"] == 1
    server.pool.answer(server.model)
    server.turn()
    server.pool.answer(server.model)
    server.turn()
    assert second.result(0).source == "exact"
    assert isinstance(first, Future)
    assert first.cancelled()


def test_a_future_cancelled_just_before_its_answer_ends_once() -> None:
    server = Stepped()
    future = server.submit(server.model.queries(1)[0])
    server.turn()
    server.pool.answer(server.model)
    take = server.engine.admission.take

    def cancelled_meanwhile(query: int) -> Any:
        pending = take(query)
        assert future.cancel()
        return pending

    server.engine.admission.take = cancelled_meanwhile  # type: ignore[method-assign]
    server.turn()
    assert future.cancelled()
    assert wait([future], 0).not_done == set(), "those that wait were not told"
    assert server.engine.failure is None


def test_a_decoder_that_takes_no_result_fails_only_what_it_should_recover() -> None:
    model = LinearModel()
    scheme = build_scheme("invertible", model)

    class Closed:
        def push(self, slot: int, embedding: Any) -> None:
            raise ZeroDivisionError("no room")

        def recover(self) -> Any:
            raise AssertionError("asked although it took nothing")

        def residual(self) -> Any: ...
        def reset(self) -> None: ...

    served = build_served(model, replace(scheme, decoder=Closed), None)
    server = Stepped(model, Policy(always_encode=True, hang_timeout_s=60.0), served=served)
    queries = model.queries(4)
    futures = [server.submit(q) for q in queries]
    server.turn()
    del server.pool.sent[0]  # the first query's task never ends
    until = time.monotonic() + 30
    while not futures[0].done() and time.monotonic() < until:
        server.pool.answer(model)
        server.turn()
        time.sleep(0.001)  # the encoder has a thread of its own
    with pytest.raises(CodedInvError, match="no room"):
        futures[0].result(0)
    assert [f.result(0).source for f in futures[1:]] == ["exact"] * 3


def test_results_of_one_turn_may_differ_in_their_dtypes() -> None:
    """Of a pool of one's own, whose first worker computes in integers, say."""
    server = Stepped()
    queries = server.model.queries(4)
    futures = [server.submit(query) for query in queries]
    server.turn()
    server.pool.answer(server.model)
    worker, generation, task, embedding = server.pool.messages[0]
    rounded = np.rint(embedding).astype(np.int64)
    server.pool.messages[0] = Result(worker, generation, task, rounded)
    others = [message.embedding for message in server.pool.messages[1:4]]
    server.turn()
    expected = server.model.head(np.stack([rounded.astype(np.float32), *others]), "label")
    for future, row in zip(futures, expected, strict=True):
        np.testing.assert_allclose(future.result(0).outputs["label"], row, atol=1e-5)


def test_a_result_that_holds_no_real_numbers_is_its_workers_error() -> None:
    server = Stepped()
    futures = [server.submit(query) for query in server.model.queries(2)]
    server.turn()
    server.pool.answer(server.model)
    worker, generation, task, embedding = server.pool.messages[0]
    of_no_use = embedding.astype(np.complex64)
    server.pool.messages[0] = Result(worker, generation, task, of_no_use)
    for _ in range(3):
        server.turn()
        server.pool.answer(server.model)
    assert server.counts["task_errors"] == 1
    assert [future.result(0).source for future in futures] == ["exact"] * 2


def test_nothing_is_sent_to_a_worker_whose_death_was_told_in_the_same_turn() -> None:
    """A probe that was passed makes the next one, which is sent at the end of the turn."""
    server = Stepped(policy=Policy(quarantine_after=1, probe_interval_s=0.01))
    server.submit(server.model.queries(1)[0])
    server.turn()
    server.pool.answer(server.model)
    server.turn()
    server.submit(server.model.queries(1)[0])
    server.turn()
    worker, generation, task, *_ = server.pool.sent.pop()
    server.pool.messages.append(TaskError(worker, generation, task, "a fault"))
    server.turn()
    server.pool.answer(server.model)
    server.turn(after_s=0.02)
    (probe,) = [sent for sent in server.pool.sent if sent[0] == worker]
    server.pool.answer(server.model)
    server.pool.messages.append(Died(worker, generation, "killed"))
    server.turn()
    assert probe[1] == generation
    assert server.counts["probes"] == 2
    assert server.pool.sent == []
