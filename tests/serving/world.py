"""A small world on virtual time: callers, workers and their faults, all drawn from one seed."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.policy import Policy
from tests.serving.checks import Watcher, require

NEVER = float("inf")
_MAX_EVENTS = 5_000  # a schedule takes about sixty; this many is a livelock
_LAST = 1 << 40  # in the order of what happens at one time: timers after all else


class Answer(NamedTuple):
    """What a worker returns; two that are `true` are the same, a false one is like no other."""

    worker: int
    generation: int
    task: int
    true: bool


class World:
    """One fault schedule. `run` plays it to the end and checks the core after every event.

    Times are seconds of virtual time; a task takes about 1. Faults happen until `calm`, after which
    everything works, so that every query must end.
    """

    def __init__(self, seed: int, core_class: type[Core] = Core) -> None:
        self.random = random = Random(seed)
        self.has_fallback = random.random() < 0.3
        self.buckets = random.choice((1, 1, 3))
        self.plan = self._plan()
        self.policy = self._policy()
        workers = random.randint(1, self.plan.n + 2)
        core = core_class(self.plan, self.policy, workers, has_fallback=self.has_fallback)
        # Every other loop takes what comes within so much time in one turn.
        self._turn_takes = 0.25 if seed % 2 else 0.0
        self.watcher = Watcher(core, timers_late_s=0.1 + self._turn_takes)
        self.now = 0.0
        self.calm = random.uniform(2.0, 15.0)
        self.flaky = random.choice((0.0, 0.05, 0.3))  # share of tasks that go wrong
        self.deadly = random.choice((0.0, 0.3, 1.0))  # deaths per unit of time
        self.encode_time = random.choice((0.0, 0.0, 0.5))
        self.slow_worker = random.randrange(2 * workers)
        self.erring_worker = random.randrange(3 * workers)
        self.errs = random.choice((0.5, 1.0))  # how often it does
        self.lying_worker = random.randrange(3 * workers)
        self._events: list[tuple[float, int, ev.Event]] = []
        self._order = 0
        self._timer_at: float | None = None
        self._generation: dict[int, int] = {}  # of the workers that run
        self._dropped: set[int] = set()  # tasks called off before they began
        self._begun: dict[int, float] = {}  # task -> when its worker begins it
        self._busy_until: dict[int, float] = {}
        self._results: dict[tuple[int, int], list[Answer]] = {}  # (group, slot) -> runs
        self._away_until = 0.0
        self._turn: ev.Event | None = None  # the last event of the turn that has not ended
        self.events = 0
        self._do: dict[type, Callable[..., None]] = {
            act.Restart: self._start,
            act.Kill: self._kill,
            act.Dispatch: self._work,
            act.Cancel: self._call_off,
            act.Encode: self._encode,
            act.Absorb: self._absorb,
            act.Inspect: self._inspect,
            act.Compare: self._compare,
            act.SetTimer: self._set_timer,
        }

    def _plan(self) -> Plan:
        kind = self.random.random()
        if kind < 0.1:
            return Plan(k=1, n=1, needed=1)
        if kind < 0.25:
            return Plan(k=1, n=self.random.choice((2, 3)), needed=1, recovered="exact")
        k = self.random.randint(1, 4)
        if self.has_fallback and kind < 0.5:
            n = k + self.random.choice((1, 1, 2))
            return Plan(k=k, n=n, needed=k, recovered="fallback", guided=True)
        return Plan(k=k, n=k + self.random.choice((1, 1, 2)), needed=k)

    def _policy(self) -> Policy:
        choice = self.random.choice
        return Policy(
            release=choice(("eager", "eager", "grace", "deadline")),
            grace_s=choice((0.0, 0.5)),
            group_wait_s=choice((0.0, 0.3, 2.0)),
            deadline_margin_s=choice((0.0, 0.2)),
            max_queue=choice((4, 100)),
            in_flight=choice((1, 1, 2, 3)),
            hedge_after=choice((None, None, 0.0, 0.5, "p95")),
            tied=choice((False, True)),
            max_extra_load=choice((0.0, 0.05, 1.0)),
            retries=choice((0, 1, 2)),
            hang_timeout_s=choice((3.0, 8.0)),
            quarantine_after=choice((1, 2, 3)),
            probe_interval_s=choice((0.1, 1.0)),
            start_timeout_s=4.0,
            restart_backoff_s=choice((0.1, 1.0)),
            restart_backoff_max_s=4.0,
            always_encode=choice((False, False, True)),
            verify=choice((False, False, True)),
        )

    def run(self) -> None:
        """Plays the schedule. Raises `Violation` when an invariant breaks."""
        self._at(0.0, ev.Opened(0.0))
        self._plan_queries()
        self._plan_deaths()
        self._plan_reloads()
        if self.random.random() < 0.2:
            at = self.random.uniform(0.0, self.calm)
            self._at(at, ev.Stalled(at, self.random.choice((0.5, 5.0, 20.0))))
        while (self._events or self._turn) and not self._over():
            if self._turn and not (self._events and self._events[0][0] <= self.now):
                self._end_turn()
            else:
                self._step()
        self.watcher.check_everything_is_over()

    def _plan_queries(self) -> None:
        random = self.random
        at = 0.0
        rate = random.choice((0.5, 2.0, 10.0))
        for query in range(random.randint(1, 12)):
            at += random.expovariate(rate)
            deadline = at + random.choice((0.0, 0.5, 2.0, 6.0)) if random.random() < 0.4 else None
            bucket, doubt = random.randrange(self.buckets), random.random()
            self._at(at, ev.Submitted(at, query, f"query {query}", deadline, bucket, doubt))
            if random.random() < 0.1:
                gone = at + random.uniform(0.0, 3.0)
                self._at(gone, ev.Cancelled(gone, query))
        close_at = random.choice((at, at, at + 3.0, at / 2))
        drain = random.choice((1.0, 10_000.0, 10_000.0, 10_000.0))
        self._at(close_at, ev.CloseRequested(close_at, drain))

    def _plan_deaths(self) -> None:
        if self.deadly:
            died = self.random.expovariate(self.deadly)
            while died < self.calm:
                self._at(died, ev.WorkerDied(died, -1, -1, "killed"))
                died += self.random.expovariate(self.deadly)

    def _plan_reloads(self) -> None:
        times = [self.random.uniform(0.0, 6.0) for _ in range(self.random.choice((0, 0, 0, 1, 2)))]
        for version, at in enumerate(sorted(times), start=1):
            plan = self.plan if self.random.random() < 0.7 else self._plan()
            self._at(at, ev.ReloadRequested(at, version, plan))

    def _over(self) -> bool:
        """Only timers of idle workers are left."""
        watcher = self.watcher
        return watcher.drained and not watcher.core.groups and self.now >= self.calm

    def _at(self, at: float, event: ev.Event) -> None:
        self._order += 1
        order = self._order + (_LAST if isinstance(event, ev.Timer) else 0)
        at = max(at, self._away_until)
        if self._turn_takes:
            at = math.ceil(at / self._turn_takes) * self._turn_takes
        heapq.heappush(self._events, (at, order, event))

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._events)
        match event:
            case ev.WorkerDied(worker=-1):
                if not self._generation:
                    return
                victim = self.random.choice(sorted(self._generation))
                event = ev.WorkerDied(self.now, victim, self._generation.pop(victim), "killed")
            case ev.Timer():
                if self._timer_at != event.time:
                    return  # replaced by another
                self._timer_at = None
            case ev.ResultArrived() | ev.TaskFailed() if event.task in self._dropped:
                return
            case ev.Stalled() if self._away_until < self.now:
                self._go_away(event)
                return
        self.events += 1
        require(self.events < _MAX_EVENTS, "no end after {} events", self.events)
        event = event._replace(time=self.now)
        if self._turn_takes:
            self._turn = event
            self._act(self.watcher.take(event))
        else:
            self._act(self.watcher.handle(event))

    def _end_turn(self) -> None:
        event, self._turn = self._turn, None
        assert event is not None
        self._act(self.watcher.conclude(event))

    def _act(self, actions: list[act.Action]) -> None:
        for action in actions:
            do = self._do.get(type(action))
            if do is not None:
                do(action)

    def _go_away(self, event: ev.Stalled) -> None:
        """The front end stands still: what happens meanwhile is found at its return, and said in
        one go, after how long it was away; alarms last."""
        self._away_until = self.now + event.seconds
        waiting, self._events = self._events, []
        back = (self._away_until, 0, event._replace(time=self._away_until))
        heapq.heappush(self._events, back)
        for at, order, later in waiting:
            heapq.heappush(self._events, (max(at, self._away_until), order, later))

    # ---- actions

    def _kill(self, action: act.Kill) -> None:
        if self._generation.get(action.worker) == action.generation:
            del self._generation[action.worker]
            self._at(self.now, ev.WorkerDied(self.now, action.worker, action.generation, "kill"))
        if action.reason.startswith("its result contradicts"):
            require(action.worker == self.lying_worker, "an honest worker is convicted: {}", action)

    def _encode(self, action: act.Encode) -> None:
        at = self.now + self.encode_time
        if self._goes_wrong():
            self._at(at, ev.EncodeFailed(at, action.group, "out of memory"))
            return
        plan = self.watcher.plans[action.version]
        parities = tuple(f"parity {j} of {action.group}" for j in range(plan.n - plan.k))
        self._at(at, ev.Encoded(at, action.group, parities))

    def _set_timer(self, action: act.SetTimer) -> None:
        at = max(self.now, action.at) + self.random.choice((0.0, 0.0, 0.1))  # a busy loop is late
        at = max(at, self._away_until)
        self._timer_at = at
        self._at(at, ev.Timer(at))

    def _start(self, action: act.Restart) -> None:
        worker, generation = action.worker, action.generation
        self._generation[worker] = generation
        self._busy_until[worker] = 0.0
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
            took *= 4 if self.policy.hang_timeout_s == 8.0 else 1.5
        begin = max(self.now, self._busy_until.get(worker, 0.0))
        at = begin + took
        self._begun[task] = begin
        self._busy_until[worker] = at
        errs = worker == self.erring_worker and self.now < self.calm
        if errs and self.random.random() < self.errs:
            self._at(self.now, ev.TaskFailed(self.now, worker, generation, task, "CUDA error"))
            return
        if self._goes_wrong():
            kind = self.random.random()
            if kind < 0.4:
                self._at(at, ev.TaskFailed(at, worker, generation, task, "bad"))
                return
            if kind < 0.7:
                return  # hangs
            at += 5.0  # so late that its worker may be gone, or have a new generation
        lies = worker == self.lying_worker and self.now < self.calm
        answer = Answer(worker, generation, task, not lies)
        self._at(at, ev.ResultArrived(at, worker, generation, task, answer))
        if self.random.random() < 0.02 and self.now < self.calm:
            again = at + 0.1  # a worker that says everything twice
            self._at(again, ev.ResultArrived(again, worker, generation, task, "twice"))

    def _call_off(self, action: act.Cancel) -> None:
        if self._begun.get(action.task, 0.0) > self.now:
            self._dropped.add(action.task)
            event = ev.TaskDropped(self.now, action.worker, action.generation, action.task)
            self._at(self.now, event)

    def _absorb(self, action: act.Absorb) -> None:
        self._results[action.group, action.slot] = [action.result]

    def _inspect(self, action: act.Inspect) -> None:
        plan = self.watcher.plans[action.version]
        runs = {s: self._results.get((action.group, s)) for s in range(plan.n)}
        wrong = [s for s, run in runs.items() if run is not None and not run[0].true]
        alarm = self.random.random() < (0.9 if wrong else 0.05)
        known = alarm and plan.n - plan.k > 1 and len(wrong) == 1
        self._at(self.now, ev.Inspected(self.now, action.group, alarm, wrong[0] if known else None))

    def _compare(self, action: act.Compare) -> None:
        runs = self._results[action.group, action.slot]
        require(len(runs) == action.run, "run {} after {} others", action.run, len(runs))
        agrees = tuple(i for i, run in enumerate(runs) if run.true and action.result.true)
        runs.append(action.result)
        self._at(self.now, ev.Compared(self.now, action.group, action.slot, action.run, agrees))

    def _goes_wrong(self) -> bool:
        return self.now < self.calm and self.random.random() < self.flaky
