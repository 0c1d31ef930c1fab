"""Ordinary bad days on virtual time: overload, erring and slow workers, redeploys, stalls.

The figures are the bars of the design, on a fleet of five; a real server adds its own microseconds
but decides the same.
"""

from __future__ import annotations

from random import Random

import pytest

from codedinv.schemes import Plan
from codedinv.serving import events as ev
from codedinv.serving.policy import Policy
from tests.serving.simulator import CODED, REPLICATED, UNCODED, Outcome, Simulation

CAPACITY = 250.0  # queries/s of five workers at 20 ms


def twenty_ms(random: Random, worker: int, now: float) -> float:
    return 0.02 * random.uniform(0.95, 1.05)


def ten_ms(random: Random, worker: int, now: float) -> float:
    return 0.01 * random.uniform(0.9, 1.1)


def overload(plan: Plan, times: float, seed: int) -> Outcome:
    simulation = Simulation(plan, Policy(), service=twenty_ms, seed=seed)
    return simulation.run(times * CAPACITY, 20.0, 0.1)


@pytest.mark.parametrize("times", [0.5, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0, 3.0])
def test_goodput_stays_at_capacity_under_overload_and_coding_costs_none(times: float) -> None:
    uncoded = overload(UNCODED, times, seed=1)
    coded = overload(CODED, times, seed=1)
    least = 0.9 * min(times * CAPACITY, CAPACITY)
    assert uncoded.goodput >= least
    assert coded.goodput >= least
    assert coded.goodput >= 0.97 * uncoded.goodput


def test_what_cannot_come_in_time_is_not_computed() -> None:
    outcome = overload(UNCODED, 2.0, seed=2)
    assert outcome.tasks <= 1.02 * outcome.answers


def test_a_burst_is_not_given_up_while_it_can_be_served() -> None:
    """Eight queries at once on four workers, with time for two rounds."""
    simulation = Simulation(UNCODED, Policy(), workers=4, service=twenty_ms)
    burst = [ev.Submitted(5.0, 10_000 + i, "q", 5.06) for i in range(8)]
    outcome = simulation.run(20.0, 3.0, None, *burst)
    assert outcome.failures == {}


@pytest.mark.parametrize("plan", [UNCODED, CODED, REPLICATED], ids=["uncoded", "coded", "copies"])
@pytest.mark.parametrize("rate", [300.0, 380.0])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_an_erring_worker_loses_no_query_and_is_back_once_it_is_repaired(
    plan: Plan, rate: float, share: float
) -> None:
    repaired_at = 6.0
    simulation = Simulation(
        plan,
        Policy(),
        service=ten_ms,
        errs=lambda random, worker, now: (
            worker == 0 and now < repaired_at and random.random() < share
        ),
        seed=3,
    )
    outcome = simulation.run(rate, repaired_at + 4.0, 5.0)
    assert outcome.failures == {}
    assert outcome.counts["quarantines"] >= 1
    worker = simulation.core.fleet.workers[0]
    assert worker.takes_tasks, "not back four seconds after its repair"
    if share == 1.0:
        assert outcome.counts["task_errors"] - outcome.counts["probes"] <= 5


def test_queries_that_fail_everywhere_quarantine_nobody_for_long() -> None:
    """A caller whose queries no worker can do: the others' queries go on."""
    random = Random(0)
    poisoned = {q for q in range(4000) if random.random() < 0.3}
    simulation = Simulation(UNCODED, Policy(), service=ten_ms)
    work = simulation._work

    def work_or_fail(worker: int, generation: int, task: int) -> None:
        attempt = simulation.core.fleet.workers[worker].outstanding.get(task)
        payload = getattr(attempt, "payload", None)
        if payload is None and attempt is not None:
            payload = attempt.group.payloads[attempt.slot]
        if payload in poisoned:
            at = simulation.now + 0.001
            simulation.at(at, ev.TaskFailed(at, worker, generation, task, "bad query"))
        else:
            work(worker, generation, task)

    simulation._work = work_or_fail  # type: ignore[method-assign]
    outcome = simulation.run(200.0, 10.0, 5.0)
    assert set(outcome.failures) == {"unrecoverable"}
    lost = sum(outcome.failures.values())
    assert lost == len([q for q in poisoned if q < outcome.sent])
    assert outcome.counts["deaths"] == 0


@pytest.mark.parametrize("rate", [60.0, 100.0])
def test_hedging_at_p95_takes_the_tail_of_a_slow_worker_for_five_percent(rate: float) -> None:
    def one_is_slow(random: Random, worker: int, now: float) -> float:
        return ten_ms(random, worker, now) + 0.1 * (worker == 2)

    plain = Simulation(UNCODED, Policy(), service=one_is_slow).run(rate, 60.0, None)
    policy = Policy(hedge_after="p95")
    hedged = Simulation(UNCODED, policy, service=one_is_slow).run(rate, 60.0, None)
    assert hedged.quantile(0.999) <= plain.quantile(0.999) / 5
    assert hedged.tasks <= 1.06 * hedged.sent
    assert hedged.failures == {}


def test_hedges_cover_stragglers_that_nobody_can_foresee() -> None:
    def sometimes_slow(random: Random, worker: int, now: float) -> float:
        return ten_ms(random, worker, now) + 0.2 * (random.random() < 0.02)

    plain = Simulation(UNCODED, Policy(), service=sometimes_slow).run(100.0, 60.0, None)
    policy = Policy(hedge_after="p95")
    hedged = Simulation(UNCODED, policy, service=sometimes_slow).run(100.0, 60.0, None)
    assert hedged.sources["hedged"] > 50
    assert hedged.quantile(0.99) <= plain.quantile(0.99) / 4
    assert hedged.tasks <= 1.06 * hedged.sent


def test_a_slow_fleet_is_not_hedged_to_death() -> None:
    def slower_and_slower(random: Random, worker: int, now: float) -> float:
        return 0.01 if now < 5.0 else 0.04

    policy = Policy(hedge_after=0.02)
    outcome = Simulation(UNCODED, policy, service=slower_and_slower).run(110.0, 20.0, 2.0)
    assert outcome.tasks <= 1.06 * outcome.sent
    assert outcome.goodput >= 0.9 * 110.0


def test_a_worker_that_was_slow_gets_queries_again_once_it_is_fast() -> None:
    def slow_at_first(random: Random, worker: int, now: float) -> float:
        return ten_ms(random, worker, now) + 0.1 * (worker == 2 and now < 10.0)

    policy = Policy(hedge_after="p95")
    simulation = Simulation(UNCODED, policy, service=slow_at_first)
    simulation.run(100.0, 9.0, None)
    assert simulation.core.fleet.workers[2].slow
    simulation = Simulation(UNCODED, policy, service=slow_at_first)
    simulation.run(100.0, 16.0, None)
    assert not simulation.core.fleet.workers[2].slow


@pytest.mark.parametrize("plan", [UNCODED, CODED], ids=["uncoded", "coded"])
def test_a_reload_loses_no_query_and_hardly_delays_one(plan: Plan) -> None:
    quiet = Simulation(plan, Policy(), service=ten_ms).run(200.0, 15.0, 5.0)
    simulation = Simulation(plan, Policy(), service=ten_ms)
    simulation.plans[1] = plan
    outcome = simulation.run(200.0, 15.0, 5.0, ev.ReloadRequested(5.0, 1, plan))
    assert outcome.failures == {}
    assert outcome.counts["reloads"] == 1
    assert set(outcome.versions.values()) == {0, 1}
    assert outcome.quantile(0.99) <= 2 * quiet.quantile(0.99)
    assert max(outcome.latencies) <= max(quiet.latencies) + 0.02
    assert outcome.counts["deaths"] == 0


def test_with_a_fallback_every_query_is_answered_before_its_deadline() -> None:
    """One worker hangs, and the traffic is twice what the rest can do."""

    def one_hangs(random: Random, worker: int, now: float) -> float:
        return 1e6 if worker == 3 else 0.02

    policy = Policy(release="deadline", hang_timeout_s=None)
    simulation = Simulation(CODED, policy, service=one_hangs, has_fallback=True)
    outcome = simulation.run(400.0, 10.0, 0.1)
    assert outcome.failures == {}
    assert outcome.late == 0
    assert outcome.answers == outcome.sent
    assert max(outcome.latencies) <= 0.1


def test_the_deadline_policy_reconstructs_less_than_the_eager_one() -> None:
    def one_hangs(random: Random, worker: int, now: float) -> float:
        return 1e6 if worker == 3 else ten_ms(random, worker, now)

    shares = {}
    for release in ("eager", "deadline"):
        policy = Policy(release=release, hang_timeout_s=None)
        outcome = Simulation(CODED, policy, service=one_hangs).run(200.0, 20.0, 0.2)
        assert outcome.failures == {}
        shares[release] = outcome.sources["reconstructed"] / outcome.sent
    assert shares["deadline"] < shares["eager"] / 2


@pytest.mark.parametrize("deadline_s", [0.015, 0.05])
def test_a_group_closes_in_time_for_its_most_urgent_member(deadline_s: float) -> None:
    """Its wait is longer than the deadline, and one worker hangs."""

    def one_hangs(random: Random, worker: int, now: float) -> float:
        return 1e6 if worker == 0 else 0.002

    policy = Policy(group_wait_s=0.1, hang_timeout_s=None)
    outcome = Simulation(CODED, policy, service=one_hangs).run(5.0, 20.0, deadline_s)
    assert outcome.failures == {}
    assert outcome.late == 0
