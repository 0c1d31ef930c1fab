"""Real processes under random faults: every task that was sent ends exactly once."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from codedinv.workers import (
    Batching,
    Died,
    Dropped,
    Message,
    ProcessPool,
    Ready,
    Result,
    TaskError,
    ThreadPool,
)
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import backbone_of, spec_of

WORKERS = 3
ENDS = ("result", "error", "dropped", "died")


@dataclass
class Ledger:
    """What was sent, and how it ended."""

    queries: np.ndarray
    expected: dict[str, np.ndarray]
    ready: dict[int, int] = field(default_factory=dict)  # worker: its generation
    open: dict[tuple[int, int], dict[int, str]] = field(default_factory=dict)
    ends: Counter[str] = field(default_factory=Counter)

    def take(self, message: Message) -> None:
        origin = message.worker, message.generation
        match message:
            case Ready(worker, generation):
                assert worker not in self.ready
                self.ready[worker] = generation
            case Died(worker, generation, _):
                assert self.ready.pop(worker, generation) == generation
                self.ends["died"] += len(self.open.pop(origin, {}))
            case Result(_, _, task, embedding):
                model = self.end(origin, task)
                index = task % len(self.queries)
                right = self.expected[model][index]
                np.testing.assert_allclose(embedding, right, rtol=1e-4, atol=1e-4)
                self.ends["result"] += 1
            case TaskError(_, _, task, reason):
                assert self.end(origin, task) == "no-such-model", reason
                self.ends["error"] += 1
            case Dropped(_, _, task):
                self.end(origin, task)
                self.ends["dropped"] += 1

    def end(self, origin: tuple[int, int], task: int) -> str:
        """The model of a task, which must not have ended before."""
        tasks = self.open.get(origin, {})
        assert task in tasks, f"task {task} of {origin} ended twice, or was never sent"
        return tasks.pop(task)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """Queries of 8 kB and embeddings of 8 kB: shared memory from 16 in flight on."""
    model = LinearModel(input_shape=(2, 32, 32), embedding_shape=(32, 64))
    return model.saved(tmp_path_factory.mktemp("large") / "bundle")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("in_flight", "max_batch"), [(1, 1), (64, 1), (64, 8)])
def test_every_task_sent_to_a_process_ends_exactly_once(
    large: LinearModel, in_flight: int, max_batch: int
) -> None:
    specs = {"backbone": spec_of(large), "twin": spec_of(large)}
    pool = ProcessPool(specs, WORKERS, in_flight, Batching(max_batch))
    Stress(pool, large, seed=in_flight, depth=in_flight).run()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("depth", "max_batch"), [(1, 1), (16, 1), (16, 8)])
def test_every_task_sent_to_a_thread_ends_exactly_once(
    large: LinearModel, depth: int, max_batch: int
) -> None:
    models = dict.fromkeys(("backbone", "twin"), backbone_of(large))
    pool = ThreadPool(models, WORKERS, batching=Batching(max_batch, 100))
    Stress(pool, large, seed=depth, depth=depth).run()


class Stress:
    """Sends, cancels, kills, crashes, pauses, retires and restarts at random, then lets all end.

    Args:
        pool: not yet started.
        model: what it runs, under the names "backbone" and "twin".
        seed: of all that is random, but for the time that things take.
        depth: each worker is given twice as many tasks at a time.
    """

    ENOUGH = 8  # tasks that ended in each way
    MOST_S = 60.0  # on a machine that is too busy for that

    def __init__(
        self, pool: ProcessPool | ThreadPool, model: LinearModel, seed: int, depth: int
    ) -> None:
        self.pool = pool
        self.random = np.random.default_rng(seed)
        self.queries = model.queries(16)
        embeddings = model.embed(self.queries)
        self.ledger = Ledger(self.queries, {"backbone": embeddings, "twin": embeddings})
        self.depth = depth
        self.generations = [0] * WORKERS
        self.next_task = 0

    def run(self) -> None:
        ends = self.ledger.ends
        until = time.monotonic() + self.MOST_S
        try:
            for worker in range(WORKERS):
                self.start(worker)
            while min(ends[end] for end in ENDS) < self.ENOUGH and time.monotonic() < until:
                for worker in list(self.ledger.ready):
                    self.send_and_cancel(worker)
                self.break_something()
                self.listen(float(self.random.choice([0.0, 0.001, 0.003])))
            self.end_all()
        finally:
            self.resume_all()
            self.pool.close(5.0)
        assert sum(ends.values()) == self.next_task
        assert min(ends[end] for end in ENDS) > 0, ends

    def start(self, worker: int) -> None:
        self.generations[worker] += 1
        self.pool.start(worker, self.generations[worker])

    def send_and_cancel(self, worker: int) -> None:
        generation = self.ledger.ready[worker]
        tasks = self.ledger.open.setdefault((worker, generation), {})
        room = max(0, 2 * self.depth - len(tasks))
        for _ in range(self.random.integers(room + 1)):
            name = str(self.random.choice(["backbone", "twin", "no-such-model"], p=[0.6, 0.3, 0.1]))
            tasks[self.next_task] = name
            query = self.queries[self.next_task % len(self.queries)]
            self.pool.send(worker, generation, self.next_task, name, query)
            self.next_task += 1
        for task in [task for task in tasks if self.random.random() < 0.03]:
            self.pool.cancel(worker, generation, task)

    def break_something(self) -> None:
        victim = int(self.random.integers(WORKERS))
        draw = self.random.random()
        if draw < 0.006:
            self.pool.kill(victim)
        elif draw < 0.01:
            self.pool.crash(victim)
        elif draw < 0.03:
            self.pool.pause(victim)
        elif draw < 0.032 and victim in self.ledger.ready:
            generation = self.ledger.ready.pop(victim)
            self.pool.retire(victim, generation)
            self.ledger.ends["retired"] += len(self.ledger.open.pop((victim, generation), {}))
            self.start(victim)
        elif draw < 0.15:
            self.resume_all()

    def listen(self, timeout_s: float) -> None:
        for message in self.pool.poll(timeout_s):
            self.ledger.take(message)
            if isinstance(message, Died):
                self.start(message.worker)

    def end_all(self) -> None:
        until = time.monotonic() + 120
        while any(self.ledger.open.values()):
            assert time.monotonic() < until, f"never ended: {self.ledger.open}"
            self.resume_all()
            self.listen(0.1)

    def resume_all(self) -> None:
        for worker in range(WORKERS):
            self.pool.resume(worker)
