"""A small world on virtual time: callers, workers and their faults, all drawn from one seed."""

from __future__ import annotations

import heapq
from random import Random

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.policy import Policy
from tests.serving.checks import Watcher, require

NEVER = float("inf")
_MAX_EVENTS = 5_000  # a schedule takes about sixty; this many is a livelock


class World:
    """One fault schedule. `run` plays it to the end and checks the core after every event.

    Times are seconds of virtual time; a task takes about 1. Faults happen until `calm`, after which
    everything works, so that every query must end.
    """

    def __init__(self, seed: int, core_class: type[Core] = Core) -> None:
        self.random = random = Random(seed)
        self.plan = self._plan()
        self.policy = self._policy()
        workers = random.randint(1, self.plan.n + 2)
        core = core_class(self.plan, self.policy, workers)
        self.watcher = Watcher(core)
        self.now = 0.0
        self.calm = random.uniform(2.0, 15.0)
        self.flaky = random.choice((0.0, 0.05, 0.3))  # share of tasks that go wrong
        self.deadly = random.choice((0.0, 0.3, 1.0))  # deaths per unit of time
        self.encode_time = random.choice((0.0, 0.0, 0.5))
        self.slow_worker = random.randrange(2 * workers)
        self._events: list[tuple[float, int, ev.Event]] = []
        self._order = 0
        self._timer_at: float | None = None
        self._generation: dict[int, int] = {}  # of the workers that run
        self.events = 0

    def _plan(self) -> Plan:
        kind = self.random.random()
        if kind < 0.1:
            return Plan(k=1, n=1, needed=1)
        if kind < 0.25:
            return Plan(k=1, n=self.random.choice((2, 3)), needed=1, recovered="exact")
        k = self.random.randint(1, 4)
        return Plan(k=k, n=k + self.random.choice((1, 1, 2)), needed=k)

    def _policy(self) -> Policy:
        choice = self.random.choice
        return Policy(
            release=choice(("eager", "eager", "grace", "deadline")),
            grace_s=choice((0.0, 0.5)),
            group_wait_s=choice((0.0, 0.3, 2.0)),
            deadline_margin_s=choice((0.0, 0.2)),
            max_queue=choice((4, 100)),
            in_flight=choice((1, 1, 2)),
            retries=choice((0, 1, 2)),
            hang_timeout_s=choice((3.0, 8.0)),
            start_timeout_s=4.0,
            restart_backoff_s=choice((0.1, 1.0)),
            restart_backoff_max_s=4.0,
            always_encode=choice((False, False, True)),
        )

    def run(self) -> None:
        """Plays the schedule. Raises `Violation` when an invariant breaks."""
        random = self.random
        self._at(0.0, ev.Opened(0.0))
        at = 0.0
        rate = random.choice((0.5, 2.0, 10.0))
        for query in range(random.randint(1, 12)):
            at += random.expovariate(rate)
            deadline = at + random.choice((0.0, 0.5, 2.0, 6.0)) if random.random() < 0.4 else None
            self._at(at, ev.Submitted(at, query, f"query {query}", deadline))
        close_at = random.choice((at, at, at + 3.0, at / 2))
        drain = random.choice((1.0, 10_000.0, 10_000.0, 10_000.0))
        self._at(close_at, ev.CloseRequested(close_at, drain))
        if self.deadly:
            died = random.expovariate(self.deadly)
            while died < self.calm:
                self._at(died, ev.WorkerDied(died, -1, -1, "killed"))
                died += random.expovariate(self.deadly)
        while self._events and not self._over():
            self._step()
        self.watcher.check_everything_is_over()

    def _over(self) -> bool:
        """Only timers of idle workers are left."""
        core = self.watcher.core
        return self.watcher.drained and not core.groups and self.now >= self.calm

    def _at(self, at: float, event: ev.Event) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, event))

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._events)
        if isinstance(event, ev.WorkerDied) and event.worker == -1:
            if not self._generation:
                return
            victim = self.random.choice(sorted(self._generation))
            event = ev.WorkerDied(self.now, victim, self._generation.pop(victim), "killed")
        elif isinstance(event, ev.Timer):
            if self._timer_at != event.time:
                return  # replaced by another
            self._timer_at = None
        self.events += 1
        require(self.events < _MAX_EVENTS, "no end after {} events", self.events)
        for action in self.watcher.handle(event):
            self._do(action)

    def _do(self, action: act.Action) -> None:
        random, now = self.random, self.now
        match action:
            case act.Restart():
                self._start(action)
            case act.Kill():
                if self._generation.get(action.worker) == action.generation:
                    del self._generation[action.worker]
                    self._at(now, ev.WorkerDied(now, action.worker, action.generation, "kill"))
            case act.Dispatch():
                self._work(action)
            case act.Encode():
                at = now + self.encode_time
                parities = tuple(
                    f"parity {j} of {action.group}" for j in range(self.plan.n - self.plan.k)
                )
                self._at(at, ev.Encoded(at, action.group, parities))
            case act.SetTimer():
                at = max(now, action.at) + random.choice((0.0, 0.0, 0.1))  # a busy loop rings late
                self._timer_at = at
                self._at(at, ev.Timer(at))

    def _start(self, action: act.Restart) -> None:
        worker, generation = action.worker, action.generation
        self._generation[worker] = generation
        at = self.now + self.random.uniform(0.0, 0.5)
        if self._goes_wrong():
            if self.random.random() < 0.5:
                self._at(at, ev.WorkerDied(at, worker, generation, "could not start"))
                self._generation.pop(worker)
            return  # else it is never ready
        self._at(at, ev.WorkerReady(at, worker, generation))

    def _work(self, action: act.Dispatch) -> None:
        worker, generation, task = action.worker, action.generation, action.task
        took = self.random.uniform(0.1, 1.5)
        if worker == self.slow_worker:
            took *= 4 if self.policy.hang_timeout_s > 6 else 1.5
        at = self.now + took
        if self._goes_wrong():
            kind = self.random.random()
            if kind < 0.4:
                self._at(at, ev.TaskFailed(at, worker, generation, task, "bad"))
                return
            if kind < 0.7:
                return  # hangs
            at += 5.0  # so late that its worker may be gone, or have a new generation
        self._at(at, ev.ResultArrived(at, worker, generation, task, (worker, generation, task)))
        if self.random.random() < 0.02 and self.now < self.calm:
            again = at + 0.1  # a worker that says everything twice
            self._at(again, ev.ResultArrived(again, worker, generation, task, "twice"))

    def _goes_wrong(self) -> bool:
        return self.now < self.calm and self.random.random() < self.flaky
