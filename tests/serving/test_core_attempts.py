"""Hedges, cancellations, audits, quarantine, stalls and reloads, step by step on virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.policy import Policy
from tests.serving.checks import Watcher
from tests.serving.test_core import CODED, Story

UNCODED = Plan(k=1, n=1, needed=1)


def with_fallback(**policy: Any) -> Story:
    story = Story(**policy)
    core = Core(CODED, story.core.policy, 3, has_fallback=True)
    story.core, story.watcher = core, Watcher(core)
    story.tell(ev.Opened)
    for restart in story.of(act.Restart):
        story.tell(ev.WorkerReady, restart.worker, restart.generation)
    return story


# ---- attempts


def test_a_query_that_takes_long_is_sent_to_a_second_worker_and_the_first_result_wins() -> None:
    story = Story(UNCODED, workers=2, hedge_after=0.5).submit(1).wait_until(0.5)
    (hedge,) = story.of(act.Dispatch)
    assert hedge.worker == 1
    story.answer(1)
    (resolved,) = story.of(act.Resolve)
    assert (resolved.source, resolved.result) == ("hedged", "f(query 1)")
    story.answer(0)
    assert not story.of(act.Resolve)
    assert story.core.counts["late_results"] == 1
    assert story.core.groups == {}


def test_a_slot_is_lost_only_with_its_last_attempt() -> None:
    story = Story(UNCODED, workers=2, hedge_after=0.5, retries=0).submit(1).wait_until(0.5)
    story.die(0)
    assert not story.ends()
    story.answer(1)
    assert story.of(act.Resolve)[0].source == "hedged"


def test_the_losing_attempt_is_called_off_while_it_waits_at_its_worker() -> None:
    story = Story(UNCODED, workers=2, hedge_after=0.5, tied=True, in_flight=2)
    story.submit(1).submit(2)  # one on each
    first, second = story.sent[0], story.sent[1]
    story.wait_until(0.5)  # each is hedged behind the other
    hedges = {d.worker: d for d in story.of(act.Dispatch)}
    story.sent[0] = first
    story.answer(0)
    (cancel,) = story.of(act.Cancel)
    assert cancel == act.Cancel(1, second.generation, hedges[1].task)
    story.tell(ev.TaskDropped, cancel.worker, cancel.generation, cancel.task)
    assert not story.core.fleet.workers[1].outstanding.get(cancel.task)


def test_no_hedge_without_budget() -> None:
    story = Story(UNCODED, workers=2, hedge_after=0.5, max_extra_load=0.0)
    for query in range(10):
        story.submit(query).wait_until(story.now + 0.6)
        for worker in list(story.core.fleet.workers[0].outstanding and [0]):
            story.answer(worker)
        if story.core.fleet.workers[1].outstanding:
            story.answer(1)
    assert story.core.counts["hedges"] == 10, "what the bucket held at the start"
    story.submit(99).wait_until(story.now + 5.0)
    assert story.core.counts["hedges"] == 10


def test_a_cancelled_query_leaves_the_backlog() -> None:
    story = Story(UNCODED, workers=1).submit(1).submit(2).tell(ev.Cancelled, 2)
    assert story.of(act.Fail)[0].failure == "cancelled"
    assert story.core.waiting() == 0
    story.answer(0)
    assert not story.of(act.Dispatch)


def test_a_parity_that_cannot_be_made_is_lost_and_exact_answers_go_on() -> None:
    story = Story().submit(1).submit(2).tell(ev.EncodeFailed, 0, "out of memory")
    story.die(0)
    assert story.sent[2].payload == "query 1", "what no parity covers is sent again"
    story.answer(1).answer(2)
    assert [type(end).__name__ for end in story.ends().values()] == ["Resolve", "Resolve"]


# ---- deadlines with a fallback


def test_the_best_answer_there_is_is_given_just_before_the_deadline() -> None:
    story = with_fallback(release="deadline", deadline_margin_s=0.1)
    story.submit(1, deadline=1.0).submit(2, deadline=1.0).encoded()
    story.answer(0)
    story.wait_until(0.95)
    (resolved,) = story.of(act.Resolve)
    assert (resolved.query, resolved.source) == (2, "fallback")


def test_the_exact_result_of_a_query_that_was_answered_otherwise_is_a_correction() -> None:
    story = with_fallback(release="deadline", deadline_margin_s=0.1)
    story.submit(1, deadline=1.0).submit(2, deadline=1.0).encoded()
    story.wait_until(0.95).answer(0)
    assert story.of(act.Correct) == [act.Correct(1, 0, "f(query 1)")]
    assert not story.of(act.Resolve)


def test_what_would_be_unrecoverable_gets_the_fallback() -> None:
    story = with_fallback(retries=0).submit(1).submit(2).encoded().die(0).die(1)
    assert {r.source for r in story.of(act.Resolve)} == {"fallback"}


# ---- audits


def verified(plan: Plan = CODED, workers: int = 4) -> Story:
    """A full group whose results are all in, just before its inspection is answered."""
    story = Story(plan, workers=workers, verify=True)
    story.inspected = lambda inspect: []  # type: ignore[method-assign]
    for query in range(plan.k):
        story.submit(query)
    story.encoded()
    for worker in range(plan.n):
        story.answer(worker)
    assert story.of(act.Inspect) == [act.Inspect(0, 0, True)]
    return story


def finish_audit(story: Story, liars: set[int]) -> tuple[list[act.Kill], list[act.Correct]]:
    """Runs an audit to its end; liars' results agree with nobody's."""
    by = {0: {slot: story.core.groups[0].answerers[slot] for slot in range(story.plan.n)}}
    runs: dict[int, list[int]] = {s: [w[0]] for s, w in by[0].items() if w is not None}
    kills: list[act.Kill] = []
    corrections: list[act.Correct] = []
    waiting = story.of(act.Dispatch)
    while waiting:
        d = waiting.pop(0)
        story.tell(ev.ResultArrived, d.worker, d.generation, d.task, f"again {d.payload}")
        waiting += story.of(act.Dispatch)
        for compare in story.of(act.Compare):
            so_far = runs[compare.slot]
            honest = d.worker not in liars
            agrees = tuple(i for i, w in enumerate(so_far) if honest and w not in liars)
            so_far.append(d.worker)
            story.tell(ev.Compared, compare.group, compare.slot, compare.run, agrees)
            kills += story.of(act.Kill)
            corrections += story.of(act.Correct)
            waiting += story.of(act.Dispatch)
    return kills, corrections


@pytest.mark.parametrize("liar", [0, 1, 2, 3])
def test_an_audit_finds_the_worker_that_lies(liar: int) -> None:
    """Worker 3 had no part in the group: if it lies in the audit, it is found too."""
    story = verified()
    story.tell(ev.Inspected, 0, True, None)
    kills, corrections = finish_audit(story, {liar})
    assert {k.worker for k in kills} == ({liar} if liar < 3 or kills else set())
    assert [c.query for c in corrections] == ([liar] if liar < 2 else [])
    assert story.core.groups == {}


def test_a_false_alarm_convicts_nobody() -> None:
    story = verified()
    story.tell(ev.Inspected, 0, True, None)
    kills, corrections = finish_audit(story, set())
    assert (kills, corrections) == ([], [])
    assert story.core.counts["audits"] == 1


def test_with_two_parities_only_the_suspect_is_run_again() -> None:
    story = verified(Plan(k=2, n=4, needed=2), workers=5)
    story.tell(ev.Inspected, 0, True, 1)
    assert [d.payload for d in story.of(act.Dispatch)] == ["query 1"]
    kills, _ = finish_audit(story, {1})
    assert [k.worker for k in kills] == [1]


def test_a_wrong_answer_is_corrected_though_its_workers_conviction_ends_the_audit() -> None:
    """The last worker that another slot could be run by is the one that is convicted."""
    story = verified()
    story.tell(ev.Inspected, 0, True, None)
    assert {w: story.sent[w].payload for w in (3, 0, 1)} == {
        3: "query 0",
        0: "query 1",
        1: "parity 0",
    }

    def answered(worker: int, agrees: tuple[int, ...]) -> None:
        """A worker has done its run, which agrees with these before it."""
        story.answer(worker)
        (compare,) = story.of(act.Compare)
        story.tell(ev.Compared, compare.group, compare.slot, compare.run, agrees)

    answered(3, ())  # query 0: worker 3 and the first one differ,
    answered(1, (0,))
    answered(2, ())  # so does worker 2,
    assert story.sent[1].payload == "query 0"  # and worker 1 is the last one to ask
    answered(0, ())
    (last,) = story.of(act.Dispatch)
    assert last.payload == "query 1"
    answered(last.worker, (1,))  # worker 1 was wrong about query 1
    assert [kill.worker for kill in story.of(act.Kill)] == [1]
    assert [correct.query for correct in story.of(act.Correct)] == [1]
    assert story.core.groups == {}


def test_a_convict_is_probed_before_it_gets_queries_again() -> None:
    story = verified()
    story.tell(ev.Inspected, 0, True, None)
    finish_audit(story, {1})
    story.wait_until(story.now + 1.0)
    (restart,) = story.of(act.Restart)
    story.tell(ev.WorkerReady, restart.worker, restart.generation)
    for _ in range(3):
        assert not story.core.fleet.workers[1].takes_tasks
        (probe,) = story.of(act.Dispatch)
        assert probe.worker == 1
        story.tell(ev.ResultArrived, 1, probe.generation, probe.task, "right")
    assert story.core.fleet.workers[1].takes_tasks


# ---- quarantine


def test_a_worker_that_fails_task_after_task_is_kept_from_the_traffic() -> None:
    story = Story(UNCODED, workers=2)
    story.submit(0).submit(1).answer(1)  # something that worked, to probe with
    story.fail(0)
    assert story.sent[1].payload == "query 0", "a retry goes elsewhere"
    story.submit(2).fail(0).answer(1).answer(1)
    story.submit(3)
    while 0 in {d.worker for d in story.of(act.Dispatch)}:
        story.fail(0).answer(1).submit(4)
    assert story.core.counts["quarantines"] == 1
    assert story.core.counts["task_errors"] == 3
    story.answer(1).submit(5).submit(6)
    assert {d.worker for d in story.of(act.Dispatch)} <= {1}


def test_at_most_half_of_the_workers_are_in_quarantine() -> None:
    story = Story(UNCODED, workers=4, quarantine_after=1, retries=0)
    for query in range(4):
        story.submit(query)
    for worker in range(4):
        story.fail(worker)
    assert sum(w.probation is not None for w in story.core.fleet) == 2


# ---- stalls


def test_a_front_end_that_was_away_kills_no_worker() -> None:
    story = Story(UNCODED, workers=1, hang_timeout_s=5.0).submit(1)
    story.now = 60.0
    story.tell(ev.Stalled, 59.0).tell(ev.Timer)
    assert not story.of(act.Kill)
    assert story.wait_until(66.0).of(act.Kill), "five seconds of its own it has, no more"


# ---- reloads


def reloaded(story: Story, plan: Plan | None = None) -> Story:
    return story.tell(ev.ReloadRequested, 1, plan or story.plan)


def test_a_reload_starts_the_spare_first_and_then_replaces_worker_by_worker() -> None:
    story = reloaded(Story(UNCODED, workers=2))
    assert story.of(act.Restart) == [act.Restart(2, 1, 1)]
    story.tell(ev.WorkerReady, 2, 1)
    assert story.of(act.Kill) == [act.Kill(0, 1, "replaced")]
    assert story.of(act.Restart) == [act.Restart(0, 2, 1)]
    story.tell(ev.WorkerReady, 0, 2)
    assert story.of(act.Restart) == [act.Restart(1, 2, 1)]
    story.tell(ev.WorkerReady, 1, 2)
    assert story.of(act.Kill) == [act.Kill(2, 1, "replaced")]
    assert story.of(act.Reloaded) == [act.Reloaded(1)]


def test_a_worker_finishes_its_task_before_it_is_replaced() -> None:
    story = Story(UNCODED, workers=1).submit(1)
    reloaded(story).tell(ev.WorkerReady, 1, 1)
    assert not story.of(act.Kill)
    story.submit(2)
    assert [d.worker for d in story.of(act.Dispatch)] == [1]
    story.answer(0)
    assert story.of(act.Resolve)[0].version == 0
    assert act.Kill(0, 1, "replaced") in story.of(act.Kill)


def test_queries_that_wait_for_the_old_version_move_on_to_the_new_one() -> None:
    story = Story(UNCODED, workers=1).submit(1).submit(2)
    reloaded(story).tell(ev.WorkerReady, 1, 1)
    (dispatch,) = story.of(act.Dispatch)
    assert (dispatch.worker, dispatch.payload) == (1, "query 2")
    assert story.answer(1).of(act.Resolve)[0].version == 1


def test_a_version_that_cannot_start_leaves_the_old_one_alone() -> None:
    story = reloaded(Story(UNCODED, workers=2))
    story.tell(ev.WorkerDied, 2, 1, "no such file")
    assert story.of(act.ReloadFailed) == [act.ReloadFailed(1, "no such file")]
    story.submit(1).answer(0)
    assert story.of(act.Resolve)[0].version == 0
    reloaded(story)
    assert story.of(act.Restart) == [act.Restart(2, 2, 1)]


# ---- guided copies and groups of alike queries

GUIDED = Plan(k=3, n=4, needed=3, recovered="fallback", guided=True)


def guided(**policy: Any) -> Story:
    story = with_fallback(**policy)
    core = Core(GUIDED, story.core.policy, 4, has_fallback=True)
    story.core, story.watcher, story.plan = core, Watcher(core), GUIDED
    story.tell(ev.Opened)
    for restart in story.of(act.Restart):
        story.tell(ev.WorkerReady, restart.worker, restart.generation)
    for query, doubt in ((1, 0.1), (2, 0.9), (3, 0.5)):
        story.tell(ev.Submitted, query, f"query {query}", None, 0, doubt)
    return story


def test_the_copy_goes_to_the_most_doubtful_query_and_answers_it() -> None:
    story = guided()
    assert not story.of(act.Encode)
    assert story.sent[3].payload == "query 2"
    story.answer(3)
    (resolved,) = story.of(act.Resolve)
    assert (resolved.query, resolved.source) == (2, "hedged")


def test_who_is_late_without_a_copy_gets_the_light_models_answer_and_then_the_exact_one() -> None:
    story = guided().answer(3).answer(2)
    story.answer(1)
    (resolved,) = story.of(act.Resolve)
    assert (resolved.query, resolved.source) == (1, "fallback")
    assert story.answer(0).of(act.Correct) == [act.Correct(1, 0, "f(query 1)")]


def test_a_plan_of_fallbacks_needs_a_fallback() -> None:
    with pytest.raises(ValueError, match="no fallback"):
        Core(GUIDED, Policy(), 4)


def test_queries_of_a_bucket_are_grouped_with_each_other() -> None:
    story = Story(workers=6)
    for query, bucket in ((1, 7), (2, 8), (3, 7)):
        story.tell(ev.Submitted, query, f"query {query}", None, bucket)
    assert [e.members for e in story.of(act.Encode)] == [("query 1", "query 3")]


def test_what_a_bucket_does_not_fill_in_time_is_merged_with_other_buckets() -> None:
    story = Story(workers=6)
    story.tell(ev.Submitted, 1, "query 1", None, 7).answer(0)
    story.tell(ev.Submitted, 2, "query 2", None, 8)
    assert not story.of(act.Encode)
    story.wait_until(1.0)
    assert [e.members for e in story.of(act.Encode)] == [("query 1", "query 2")]
    assert [(a.slot, a.result) for a in story.of(act.Absorb)] == [(0, "f(query 1)")]
    assert story.core.counts["groups_partial"] == 0


def test_the_results_of_a_merged_group_still_find_their_queries() -> None:
    story = Story(workers=6)
    story.tell(ev.Submitted, 1, "query 1", None, 7)
    story.tell(ev.Submitted, 2, "query 2", None, 8).wait_until(1.0).encoded(0)
    story.answer(1)
    assert [(r.query, r.result) for r in story.of(act.Resolve)] == [(2, "f(query 2)")]
    story.die(0)
    assert not story.of(act.Resolve)
    story.answer(2)
    assert [(r.query, r.source) for r in story.of(act.Resolve)] == [(1, "reconstructed")]
