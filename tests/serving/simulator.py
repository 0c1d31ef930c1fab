"""Open-loop traffic against the core on virtual time: thousands of queries a second of test."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.policy import Policy

UNCODED = Plan(k=1, n=1, needed=1)
CODED = Plan(k=4, n=5, needed=4)
REPLICATED = Plan(k=1, n=2, needed=1, recovered="exact")


@dataclass
class Outcome:
    """What became of the queries. Latencies in seconds; of answers only."""

    sent: int
    seconds: float
    sources: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    late: int = 0  # answers after their deadline
    tasks: int = 0  # that workers were given
    per_worker: Counter[int] = field(default_factory=Counter)
    versions: dict[int, int] = field(default_factory=dict)  # query -> version that answered
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def answers(self) -> int:
        return sum(self.sources.values())

    @property
    def goodput(self) -> float:
        """Answers in time per second."""
        return (self.answers - self.late) / self.seconds

    def quantile(self, q: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)]


class Simulation:
    """Workers that take their tasks one after another.

    Args:
        plan, policy, workers, has_fallback: of the core.
        service: (random, worker, now) -> seconds that a task takes.
        errs: (random, worker, now) -> does the task fail at once?
        encode_s: what an encoding takes.
    """

    def __init__(
        self,
        plan: Plan,
        policy: Policy,
        workers: int = 5,
        *,
        has_fallback: bool = False,
        service: Callable[[Random, int, float], float],
        errs: Callable[[Random, int, float], bool] = lambda *_: False,
        encode_s: float = 0.0005,
        seed: int = 0,
    ) -> None:
        self.core = Core(plan, policy, workers, has_fallback=has_fallback)
        self.random = Random(seed)
        self.service, self.errs, self.encode_s = service, errs, encode_s
        self.plans = {0: plan}
        self.now = 0.0
        self._events: list[tuple[float, int, ev.Event]] = []
        self._order = 0
        self._free_at: Counter[tuple[int, int]] = Counter()
        self._submitted: dict[int, ev.Submitted] = {}
        self._timer_at: float | None = None
        self.outcome: Outcome

    def run(
        self, rate: float, seconds: float, deadline_s: float | None, *more: ev.Event
    ) -> Outcome:
        """Poisson arrivals at `rate` for `seconds`, then until all queries ended."""
        self.outcome = Outcome(0, seconds)
        self.at(0.0, ev.Opened(0.0))
        at, query = 1.0, 0  # a second to start the workers
        while (at := at + self.random.expovariate(rate)) < 1.0 + seconds:
            deadline = at + deadline_s if deadline_s is not None else None
            self.at(at, ev.Submitted(at, query, query, deadline))
            query += 1
        for event in more:
            self.at(event.time, event)
        self.outcome.sent = query
        while self._events and (self.core.queries or self.now < 1.0 + seconds):
            self._step()
        self.outcome.counts = self.core.counts
        return self.outcome

    def at(self, at: float, event: ev.Event) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, event))

    def _step(self) -> None:
        self.now, _, event = heapq.heappop(self._events)
        if isinstance(event, ev.Timer):
            if self._timer_at != event.time:
                return
            self._timer_at = None
        if isinstance(event, ev.Submitted):
            self._submitted[event.query] = event
        for action in self.core.handle(event):
            self._do(action)

    def _do(self, action: act.Action) -> None:
        now, outcome = self.now, self.outcome
        match action:
            case act.Restart(worker, generation, _):
                self.at(now + 0.3, ev.WorkerReady(now + 0.3, worker, generation))
            case act.Dispatch(worker, generation, task):
                self._work(worker, generation, task)
            case act.Encode(group, version, _):
                at = now + self.encode_s
                plan = self.plans[version]
                self.at(at, ev.Encoded(at, group, ("parity",) * (plan.n - plan.k)))
            case act.Inspect(group):
                self.at(now, ev.Inspected(now, group, False, None))
            case act.SetTimer(at):
                self._timer_at = max(now, at)
                self.at(self._timer_at, ev.Timer(self._timer_at))
            case act.Resolve(query, source, _, version):
                asked = self._submitted[query]
                outcome.sources[source] += 1
                outcome.versions[query] = version
                outcome.latencies.append(now - asked.time)
                outcome.late += asked.deadline is not None and now > asked.deadline
            case act.Fail(_, failure):
                outcome.failures[failure] += 1

    def _work(self, worker: int, generation: int, task: int) -> None:
        self.outcome.tasks += 1
        self.outcome.per_worker[worker] += 1
        if self.errs(self.random, worker, self.now):
            at = self.now + 0.0002
            self.at(at, ev.TaskFailed(at, worker, generation, task, "CUDA error"))
            return
        begin = max(self.now, self._free_at[worker, generation])
        at = begin + self.service(self.random, worker, self.now)
        self._free_at[worker, generation] = at
        self.at(at, ev.ResultArrived(at, worker, generation, task, task))
