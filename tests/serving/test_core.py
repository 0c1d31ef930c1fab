"""A query's life, step by step, on virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.policy import Policy
from tests.serving.checks import Watcher

A = TypeVar("A")

CODED = Plan(k=2, n=3, needed=2)


class Story:
    """A core with workers that are ready, told event by event; every step is checked."""

    def __init__(self, plan: Plan = CODED, workers: int | None = None, **policy: Any) -> None:
        policy = {"group_wait_s": 1.0, "hang_timeout_s": 100.0, "deadline_s": None} | policy
        self.plan = plan
        self.core = Core(plan, Policy(**policy), workers or plan.n)
        self.watcher = Watcher(self.core)
        self.now = 0.0
        self.actions: list[act.Action] = []  # of the last event
        self.sent: dict[int, act.Dispatch] = {}  # worker -> its latest task
        self.tell(ev.Opened)
        for restart in self.of(act.Restart):
            self.tell(ev.WorkerReady, restart.worker, restart.generation)

    def tell(self, kind: Callable[..., Any], *values: Any) -> Story:
        self.actions = self.watcher.handle(kind(self.now, *values))
        for inspect in self.of(act.Inspect):
            self.actions = self.actions + self.inspected(inspect)
        self.sent.update({d.worker: d for d in self.of(act.Dispatch)})
        return self

    def inspected(self, inspect: act.Inspect) -> list[act.Action]:
        """Finds nothing wrong with a group."""
        return self.watcher.handle(ev.Inspected(self.now, inspect.group, False, None))

    def of(self, kind: type[A]) -> list[A]:
        return [a for a in self.actions if isinstance(a, kind)]

    def submit(self, query: int, deadline: float | None = None) -> Story:
        return self.tell(ev.Submitted, query, f"query {query}", deadline)

    def encoded(self, group: int = 0) -> Story:
        parities = tuple(f"parity {j}" for j in range(self.plan.n - self.plan.k))
        return self.tell(ev.Encoded, group, parities)

    def answer(self, worker: int) -> Story:
        d = self.sent[worker]
        return self.tell(ev.ResultArrived, worker, d.generation, d.task, f"f({d.payload})")

    def fail(self, worker: int) -> Story:
        d = self.sent[worker]
        return self.tell(ev.TaskFailed, worker, d.generation, d.task, "bad")

    def die(self, worker: int) -> Story:
        generation = self.core.fleet.workers[worker].generation
        return self.tell(ev.WorkerDied, worker, generation, "killed")

    def wait_until(self, at: float) -> Story:
        """Lets time pass, ringing every timer that was asked for."""
        collected: list[act.Action] = []
        while (armed := self.watcher.armed) is not None and armed <= at:
            self.now = max(self.now, armed)
            collected += self.tell(ev.Timer).actions
        self.now, self.actions = at, collected
        return self

    def ends(self) -> dict[int, Any]:
        return self.watcher.ended


def test_a_query_is_sent_at_once_and_does_not_wait_for_its_group() -> None:
    story = Story().submit(1)
    assert [d.payload for d in story.of(act.Dispatch)] == ["query 1"]
    story.answer(0)
    (resolved,) = story.of(act.Resolve)
    assert (resolved.source, resolved.result) == ("exact", "f(query 1)")


def test_a_full_group_closes_and_its_parity_goes_to_the_third_worker() -> None:
    story = Story().submit(1).submit(2)
    assert story.of(act.Encode) == [act.Encode(0, 0, ("query 1", "query 2"))]
    story.encoded()
    (parity,) = story.of(act.Dispatch)
    assert (parity.worker, parity.payload) == (2, "parity 0")


def test_a_partial_group_closes_after_its_wait_with_anchors_that_cost_no_worker() -> None:
    story = Story().submit(1).wait_until(1.0)
    assert story.of(act.Encode) == [act.Encode(0, 0, ("query 1", None))]
    story.encoded()
    (parity,) = story.of(act.Dispatch)
    story.answer(parity.worker)
    (resolved,) = story.of(act.Resolve)
    assert resolved.source == "reconstructed"


def test_a_group_whose_queries_are_all_answered_is_not_encoded() -> None:
    story = Story().submit(1).answer(0).submit(2).answer(1)
    assert not story.of(act.Encode)
    assert story.core.counts["groups_not_encoded"] == 0
    story = Story().submit(1).answer(0).wait_until(1.0)
    assert not story.of(act.Encode)
    assert story.core.counts["groups_not_encoded"] == 1


def test_always_encode_sends_the_parity_although_nobody_waits_for_it() -> None:
    story = Story(always_encode=True).submit(1).answer(0).wait_until(1.0).encoded()
    (parity,) = story.of(act.Dispatch)
    story.answer(parity.worker)
    assert story.of(act.Inspect) == [act.Inspect(0, 0, False)]


def test_eager_gives_the_reconstructed_answer_as_soon_as_k_results_are_in() -> None:
    story = Story().submit(1).submit(2).encoded().answer(2).answer(1)
    sources = {r.query: r.source for r in story.of(act.Resolve)}
    assert sources == {2: "exact", 1: "reconstructed"}


def test_a_late_result_reaches_nobody_but_the_corruption_check() -> None:
    story = Story().submit(1).submit(2).encoded().answer(2).answer(1).answer(0)
    assert not story.of(act.Resolve)
    assert story.of(act.Absorb) == [act.Absorb(0, 0, 0, "f(query 1)")]
    assert story.of(act.Inspect) == [act.Inspect(0, 0, True)]
    assert story.core.counts["late_results"] == 1


def test_grace_prefers_an_exact_answer_that_is_only_a_little_late() -> None:
    story = Story(release="grace", grace_s=0.5).submit(1).submit(2).encoded().answer(2).answer(1)
    assert [r.query for r in story.of(act.Resolve)] == [2]
    story.now = 0.4
    story.answer(0)
    assert [r.source for r in story.of(act.Resolve)] == ["exact"]


def test_grace_ends() -> None:
    story = Story(release="grace", grace_s=0.5).submit(1).submit(2).encoded().answer(2).answer(1)
    story.wait_until(0.5)
    assert [(r.query, r.source) for r in story.of(act.Resolve)] == [(1, "reconstructed")]


def test_grace_is_not_given_to_a_query_whose_own_result_is_lost() -> None:
    story = Story(release="grace", grace_s=0.5).submit(1).submit(2).encoded().die(0)
    story.answer(2).answer(1)
    assert {r.query: r.source for r in story.of(act.Resolve)} == {2: "exact", 1: "reconstructed"}


def test_deadline_waits_for_the_exact_answer_until_just_before_the_deadline() -> None:
    story = Story(release="deadline", deadline_margin_s=0.1)
    story.submit(1, deadline=2.0).submit(2, deadline=2.0).encoded().answer(2).answer(1)
    assert [r.query for r in story.of(act.Resolve)] == [2]
    story.wait_until(1.89)
    assert not story.of(act.Resolve)
    story.wait_until(1.9)
    assert [(r.query, r.source) for r in story.of(act.Resolve)] == [(1, "reconstructed")]


def test_a_query_without_any_answer_at_its_deadline_fails() -> None:
    story = Story().submit(1, deadline=2.0).wait_until(2.0)
    assert [f.failure for f in story.of(act.Fail)] == ["deadline_exceeded"]


def test_an_answer_in_hand_is_given_even_if_the_deadlines_timer_rings_late() -> None:
    story = Story(release="deadline").submit(1, deadline=2.0).submit(2).encoded().answer(1)
    story.answer(2)
    story.now = 2.1
    story.tell(ev.Timer)
    assert [(r.query, r.source) for r in story.of(act.Resolve)] == [(1, "reconstructed")]


def test_a_result_after_the_deadline_is_not_an_answer() -> None:
    story = Story().submit(1, deadline=2.0).wait_until(2.0)
    assert not story.answer(0).of(act.Resolve)


def test_a_query_whose_deadline_is_over_before_a_worker_is_free_costs_no_worker() -> None:
    story = Story(workers=1).submit(1).submit(2, deadline=2.0).wait_until(2.0).answer(0)
    assert "query 2" not in [d.payload for d in story.of(act.Dispatch)]


def test_a_dead_workers_tasks_are_erasures_at_once_and_the_code_covers_them() -> None:
    story = Story().submit(1).submit(2).encoded().answer(1).die(0)
    assert not story.of(act.Dispatch), "the parity is on its way: nothing is sent again"
    story.answer(2)
    assert [(r.query, r.source) for r in story.of(act.Resolve)] == [(1, "reconstructed")]


def test_what_the_code_does_not_cover_is_sent_again() -> None:
    story = Story(workers=4).submit(1).submit(2).encoded().die(0).die(1)
    again = [d.payload for d in story.of(act.Dispatch)]
    assert again == ["query 1"], "with it and the parity, query 2 can be reconstructed"
    story.answer(story.of(act.Dispatch)[0].worker).answer(2)
    assert {q: r.source for q, r in story.ends().items()} == {1: "exact", 2: "reconstructed"}


def test_a_query_lost_while_its_group_is_open_is_sent_again_without_waiting() -> None:
    story = Story().submit(1).die(0)
    assert [(d.worker, d.payload) for d in story.of(act.Dispatch)] == [(1, "query 1")]


def test_a_task_error_is_an_erasure_and_leaves_the_worker_alone() -> None:
    story = Story().submit(1).submit(2).encoded().fail(0)
    assert story.core.fleet.workers[0].state == "ready"
    story.answer(1).answer(2)
    assert story.ends()[1].source == "reconstructed"


def test_a_query_that_can_never_be_answered_ends_unrecoverable() -> None:
    uncoded = Plan(k=1, n=1, needed=1)
    story = Story(plan=uncoded, retries=2).submit(1)
    for _ in range(2):
        story.fail(0)
        assert len(story.of(act.Dispatch)) == 1
    story.fail(0)
    (failed,) = story.of(act.Fail)
    assert failed.failure == "unrecoverable"
    assert "lost 3 times" in failed.reason


def test_retries_come_before_queries_that_wait() -> None:
    story = Story(plan=Plan(k=1, n=1, needed=1), workers=2).submit(1).submit(2).submit(3).die(0)
    story.answer(1)
    assert [d.payload for d in story.of(act.Dispatch)] == ["query 1"]


def test_a_dead_worker_is_restarted_with_growing_backoff() -> None:
    story = Story(restart_backoff_s=1.0, restart_backoff_max_s=3.0)
    waits = []
    for _ in range(4):
        died_at = story.now
        story.die(0)
        while not (restarts := story.of(act.Restart)):
            story.wait_until(story.now + 0.5)
        waits.append(story.now - died_at)
        story.tell(ev.WorkerReady, 0, restarts[0].generation)
    assert waits == [1.0, 2.0, 3.0, 3.0]


def test_a_finished_task_forgives_earlier_deaths() -> None:
    story = Story(workers=1, restart_backoff_s=1.0).die(0).wait_until(1.0)
    story.tell(ev.WorkerReady, 0, 2).submit(1).answer(0).die(0).wait_until(story.now + 1.0)
    assert story.of(act.Restart) == [act.Restart(0, 3, 0)]


def test_a_hung_worker_is_killed_and_its_task_sent_elsewhere() -> None:
    story = Story(hang_timeout_s=5.0).submit(1).wait_until(1.0).encoded()
    story.wait_until(4.9)
    assert not story.of(act.Kill)
    story.wait_until(5.0)
    assert [(k.worker, k.generation) for k in story.of(act.Kill)] == [(0, 1)]


def test_a_slow_worker_that_makes_progress_is_not_taken_for_hung() -> None:
    story = Story(plan=Plan(k=1, n=1, needed=1), hang_timeout_s=5.0)
    for query in range(3):
        story.submit(query).wait_until(story.now + 4.0).answer(0)
        assert not story.of(act.Kill)


def test_a_worker_that_never_gets_ready_is_killed_and_tried_again() -> None:
    story = Story(start_timeout_s=5.0, restart_backoff_s=1.0).die(0).wait_until(1.0)
    assert story.of(act.Restart) == [act.Restart(0, 2, 0)]
    story.wait_until(6.0)
    assert [(k.worker, k.generation) for k in story.of(act.Kill)] == [(0, 2)]


def test_the_word_of_a_dead_generation_does_not_count() -> None:
    story = Story(restart_backoff_s=0.5).submit(1).die(0).answer(0)
    assert not story.of(act.Resolve)
    assert story.core.counts["stale_results"] == 1
    story.wait_until(0.5).tell(ev.WorkerReady, 0, 1)
    assert story.core.fleet.workers[0].state == "starting"


def test_a_slow_worker_is_not_fed_further() -> None:
    story = Story(plan=Plan(k=1, n=1, needed=1), workers=2, in_flight=1)
    for query in range(20):
        story.submit(query)
    for _ in range(10):
        story.answer(1)
    assert len(story.core.fleet.workers[0].outstanding) == 1


def test_two_in_flight_are_given_only_when_no_worker_is_idle() -> None:
    story = Story(plan=Plan(k=1, n=1, needed=1), workers=2, in_flight=2)
    workers = []
    for query in range(4):
        workers += [d.worker for d in story.submit(query).of(act.Dispatch)]
    assert sorted(workers[:2]) == [0, 1]
    assert sorted(workers[2:]) == [0, 1]


def test_slots_of_a_group_share_a_worker_only_when_too_few_are_alive() -> None:
    story = Story(in_flight=2).die(2).submit(1).submit(2).encoded()
    assert len(story.of(act.Dispatch)) == 1, "two workers must do for three slots"
    story = Story(in_flight=3, workers=3)
    story.submit(1).submit(2).encoded()
    assert len({d.worker for d in story.sent.values()}) == 3


def test_the_queue_is_bounded() -> None:
    story = Story(max_queue=2).submit(1).submit(2).submit(3)
    assert story.of(act.Reject) == [act.Reject(3, "overloaded")]
    story.answer(0).submit(4)
    assert not story.of(act.Reject)


def test_a_parity_that_nobody_needs_any_more_is_not_sent() -> None:
    story = Story(workers=2).submit(1).submit(2).encoded().answer(0)
    assert [d.payload for d in story.of(act.Dispatch)] == ["parity 0"]
    story = Story(workers=1).submit(1).submit(2).answer(0).encoded().answer(0)
    assert not story.of(act.Dispatch)
    assert story.core.groups == {}


def test_no_parity_is_made_while_data_waits_for_a_worker() -> None:
    story = Story(workers=1).submit(1).submit(2)
    assert not story.of(act.Encode)
    assert story.answer(0).of(act.Encode)


def test_a_lost_query_makes_its_parity_come_before_data_that_waits() -> None:
    story = Story(workers=3).submit(1).submit(2).encoded().submit(3).submit(4)
    assert {w: d.payload for w, d in story.sent.items()} == {
        0: "query 1",
        1: "query 2",
        2: "parity 0",
    }
    story = Story(workers=2, group_wait_s=9.0).submit(1).submit(2).submit(3)
    story.die(0)
    story.encoded()
    story.answer(1)
    assert story.sent[1].payload == "parity 0"


def test_replicas_are_exact_whichever_comes_first() -> None:
    story = Story(plan=Plan(k=1, n=2, needed=1, recovered="exact"), release="grace")
    story.submit(1).encoded().answer(1)
    (resolved,) = story.of(act.Resolve)
    assert (resolved.source, resolved.result) == ("exact", None)


def test_closing_refuses_the_new_finishes_the_old_and_says_when_it_is_done() -> None:
    story = Story().submit(1).tell(ev.CloseRequested, 10.0)
    assert not story.of(act.Drained)
    assert story.submit(2).of(act.Reject) == [act.Reject(2, "closed")]
    story.encoded().answer(0)
    assert len(story.of(act.Drained)) == 1


def test_closing_does_not_wait_longer_than_it_was_told() -> None:
    story = Story().submit(1).tell(ev.CloseRequested, 10.0).encoded().wait_until(10.0)
    assert [f.failure for f in story.of(act.Fail)] == ["closed"]
    assert len(story.of(act.Drained)) == 1


def test_a_turn_looks_for_work_to_send_once_however_many_events_it_takes() -> None:
    story = Story()
    for query in range(3):
        taken = story.watcher.take(ev.Submitted(0.0, query, f"query {query}", None))
        assert not any(isinstance(action, act.Dispatch | act.SetTimer) for action in taken)
    sent = story.core.conclude()
    assert [a.payload for a in sent if isinstance(a, act.Dispatch)] == [
        "query 0",
        "query 1",
        "query 2",
    ]
    assert len([a for a in sent if isinstance(a, act.SetTimer)]) <= 1


def test_an_event_costs_the_same_with_ten_thousand_workers() -> None:
    """Counted in picks, not in seconds: a dispatch looks at one idle worker, not at all."""
    story = Core(Plan(k=1, n=1, needed=1), Policy(), 10_000)
    story.handle(ev.Opened(0.0))
    for worker in range(10_000):
        story.handle(ev.WorkerReady(0.0, worker, 1))
    looked_at = 0

    class Counted(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            nonlocal looked_at
            for item in super().items():
                looked_at += 1
                yield item

    story.fleet._rooms[0][0] = Counted(story.fleet._rooms[0][0])  # type: ignore[call-overload]
    for query in range(100):
        story.handle(ev.Submitted(0.0, query, "query", None))
    assert looked_at == 100


@pytest.mark.parametrize("workers", [0, -1])
def test_a_core_without_workers_is_refused(workers: int) -> None:
    with pytest.raises(ValueError, match="workers: expected 1 or more"):
        Core(CODED, Policy(), workers)
