"""The core above workers that make batches, on virtual time.

Its estimates are made of times from sending a task to its result. Results that come eight at a time
must not confuse them.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import pytest

from codedinv.schemes import Plan
from codedinv.serving import events as ev
from codedinv.serving.policy import Policy
from codedinv.workers.batches import Batching, Queue
from tests.serving.simulator import CODED, UNCODED, Simulation

WORKERS, MAX_BATCH = 5, 8
CALL_S, TASK_S = 0.004, 0.002  # a call takes so long, and so much longer for each task
CAPACITY = WORKERS * MAX_BATCH / (CALL_S + MAX_BATCH * TASK_S)  # 2,000 queries/s
BATCHED = Policy(in_flight=2 * MAX_BATCH)


@dataclass
class _Begin:
    """A worker is free for its next batch."""

    time: float
    worker: int
    generation: int


class Batches(Simulation):
    """Workers that take their tasks in batches; the service of a task is its share of a call."""

    def __init__(self, plan: Plan, policy: Policy, slow: int | None = None, seed: int = 0) -> None:
        super().__init__(plan, policy, WORKERS, service=lambda *_: TASK_S, seed=seed)
        self.slow = slow
        self.sizes: list[int] = []
        self._queues: dict[tuple[int, int], Queue[int]] = {}
        self._busy: set[tuple[int, int]] = set()

    def _work(self, worker: int, generation: int, task: int) -> None:
        self.outcome.tasks += 1
        self.outcome.per_worker[worker] += 1
        origin = worker, generation
        if origin not in self._queues:
            batching = Batching(MAX_BATCH)
            self._queues[origin] = Queue(batching, {"backbone": MAX_BATCH}, 2 * MAX_BATCH)
        self._queues[origin].put(task, "backbone", task, self.now)
        if origin not in self._busy:
            self.at(self.now, _Begin(self.now, *origin))  # what comes at this moment is in it too
            self._busy.add(origin)

    def _step(self) -> None:
        if self._events and isinstance(self._events[0][2], _Begin):
            self.now, _, begin = heapq.heappop(self._events)
            self._begin(begin.worker, begin.generation)
        else:
            super()._step()

    def _begin(self, worker: int, generation: int) -> None:
        queue = self._queues[worker, generation]
        if not len(queue):
            self._busy.discard((worker, generation))
            return
        _, tasks = queue.take()
        self.sizes.append(len(tasks))
        call = CALL_S + TASK_S * len(tasks) * self.random.uniform(0.95, 1.05)
        at = self.now + call * (10 if worker == self.slow else 1)
        for task in tasks:
            self.at(at, ev.ResultArrived(at, worker, generation, task, task))
        self.at(at, _Begin(at, worker, generation))


@pytest.mark.parametrize("plan", [UNCODED, CODED], ids=["uncoded", "coded"])
@pytest.mark.parametrize("times", [0.8, 1.0, 1.5])
def test_goodput_stays_at_the_capacity_of_full_batches(plan: Plan, times: float) -> None:
    simulation = Batches(plan, BATCHED)
    outcome = simulation.run(times * CAPACITY, 2.0, 0.1)
    assert outcome.goodput >= 0.9 * min(times, 1.0) * CAPACITY
    assert outcome.late == 0
    assert max(simulation.sizes) <= MAX_BATCH


def test_batches_form_only_where_a_worker_may_hold_more_than_one_task() -> None:
    alone = Batches(UNCODED, Policy(in_flight=1))
    alone.run(CAPACITY, 1.0, 0.1)
    assert max(alone.sizes) == 1
    full = Batches(UNCODED, BATCHED)
    full.run(2 * CAPACITY, 1.0, 0.1)
    assert MAX_BATCH >= mean(full.sizes) > 0.9 * MAX_BATCH


def mean(sizes: list[int]) -> float:
    return sum(sizes) / len(sizes)


@pytest.mark.parametrize("times", [0.3, 0.6, 0.8])
def test_results_of_one_batch_hedge_no_more_than_the_budget_and_slow_nobody(times: float) -> None:
    simulation = Batches(UNCODED, replace(BATCHED, hedge_after="p95"))
    outcome = simulation.run(times * CAPACITY, 3.0, None)
    assert outcome.tasks <= 1.05 * outcome.sent + 10
    assert outcome.counts["found_slow"] == 0


def test_a_burst_of_full_batches_makes_no_worker_slow_for_long() -> None:
    """Times are from sending to result: in a burst they are eight times those before it."""
    simulation = Batches(UNCODED, replace(BATCHED, hedge_after="p95"))
    burst = [ev.Submitted(3.0 + i / CAPACITY, 10_000 + i, "q", None) for i in range(1000)]
    outcome = simulation.run(0.1 * CAPACITY, 4.0, None, *burst)
    assert outcome.failures == {}
    assert not any(worker.slow for worker in simulation.core.fleet)
    shares = outcome.per_worker.values()
    assert max(shares) <= 1.3 * min(shares)


def test_a_worker_that_is_slow_with_every_batch_is_found_and_spared() -> None:
    plain = Batches(UNCODED, BATCHED, slow=2).run(0.6 * CAPACITY, 3.0, None)
    policy = replace(BATCHED, hedge_after="p95")
    hedged = Batches(UNCODED, policy, slow=2).run(0.6 * CAPACITY, 3.0, None)
    assert hedged.counts["found_slow"] >= 1
    assert hedged.quantile(0.99) <= 0.3 * plain.quantile(0.99)
    assert hedged.per_worker[2] <= 0.02 * hedged.sent
