"""The core as hypothesis sees it: any order of any events. Failing sequences are shrunk."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.policy import Policy
from tests.serving.checks import Watcher

PLANS = st.sampled_from(
    [
        Plan(k=1, n=1, needed=1),
        Plan(k=1, n=2, needed=1, recovered="exact"),
        Plan(k=2, n=3, needed=2),
        Plan(k=3, n=5, needed=3),
        Plan(k=4, n=5, needed=4),
    ]
)
POLICIES = st.builds(
    Policy,
    release=st.sampled_from(["eager", "grace", "deadline"]),
    grace_s=st.sampled_from([0.0, 1.0]),
    group_wait_s=st.sampled_from([0.0, 1.0]),
    deadline_margin_s=st.sampled_from([0.0, 0.5]),
    max_queue=st.sampled_from([3, 100]),
    in_flight=st.sampled_from([1, 2]),
    hedge_after=st.sampled_from([None, 0.0, 1.0, "p95"]),
    tied=st.booleans(),
    max_extra_load=st.sampled_from([0.05, 1.0]),
    retries=st.integers(0, 2),
    quarantine_after=st.integers(1, 3),
    probe_interval_s=st.just(0.5),
    hang_timeout_s=st.just(10.0),
    start_timeout_s=st.just(10.0),
    restart_backoff_s=st.just(1.0),
    restart_backoff_max_s=st.just(4.0),
    always_encode=st.booleans(),
    verify=st.booleans(),
)


class CoreMachine(RuleBasedStateMachine):
    """Every rule is one event; `Watcher` checks all invariants after each."""

    @initialize(plan=PLANS, policy=POLICIES, data=st.data())
    def open(self, plan: Plan, policy: Policy, data: st.DataObject) -> None:
        workers = data.draw(st.integers(1, plan.n + 1))
        has_fallback = data.draw(st.booleans())
        self.watcher = Watcher(
            Core(plan, policy, workers, has_fallback=has_fallback), timers_late_s=1e9
        )
        self.now = 0.0
        self.queries = 0
        self.versions = 0
        self.encodes: list[act.Encode] = []
        self.verdicts: list[ev.Event] = []  # of inspections and comparisons
        self.cancels: list[act.Cancel] = []
        self.sent: list[act.Dispatch] = []  # not answered, of whatever generation
        self.starting: dict[int, int] = {}
        self.alive: dict[int, int] = {}
        self.closed = False
        self.tell(ev.Opened(0.0))

    def tell(self, event: ev.Event) -> None:
        for action in self.watcher.handle(event):
            match action:
                case act.Restart(worker, generation, _):
                    self.starting[worker] = self.alive[worker] = generation
                case act.Kill(worker, _, _):
                    self.alive.pop(worker)
                    self.starting.pop(worker, None)
                case act.Dispatch():
                    self.sent.append(action)
                case act.Encode():
                    self.encodes.append(action)
                case act.Inspect(group, _, _):
                    self.verdicts.append(ev.Inspected(self.now, group, False, None))
                case act.Compare(group, _, slot, run, _):
                    self.verdicts.append(ev.Compared(self.now, group, slot, run, ()))
                case act.Cancel():
                    self.cancels.append(action)

    @rule(wait=st.sampled_from([None, 0.0, 0.5, 3.0]), bucket=st.integers(0, 1))
    def submit(self, wait: float | None, bucket: int) -> None:
        self.queries += 1
        deadline = None if wait is None else self.now + wait
        query = f"query {self.queries}"
        self.tell(ev.Submitted(self.now, self.queries, query, deadline, bucket))

    @precondition(lambda self: self.queries)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.tell(ev.Cancelled(self.now, data.draw(st.integers(1, self.queries))))

    @precondition(lambda self: self.encodes)
    @rule(data=st.data(), works=st.booleans())
    def encode(self, data: st.DataObject, works: bool) -> None:
        action = self.encodes.pop(data.draw(st.integers(0, len(self.encodes) - 1)))
        self._encode(action, works)

    def _encode(self, action: act.Encode, works: bool) -> None:
        plan = self.watcher.plans[action.version]
        parities = tuple(f"parity {j}" for j in range(plan.n - plan.k))
        if works:
            self.tell(ev.Encoded(self.now, action.group, parities))
        else:
            self.tell(ev.EncodeFailed(self.now, action.group, "no"))

    @precondition(lambda self: self.verdicts)
    @rule(alarm=st.booleans(), agrees=st.sampled_from([(), (0,), (1,), (0, 1)]))
    def judge(self, alarm: bool, agrees: tuple[int, ...]) -> None:
        self._judge(alarm, agrees)

    def _judge(self, alarm: bool, agrees: tuple[int, ...]) -> None:
        match self.verdicts.pop():
            case ev.Inspected() as inspected:
                self.tell(inspected._replace(time=self.now, alarm=alarm))
            case ev.Compared() as compared:
                earlier = tuple(a for a in agrees if a < compared.run)
                self.tell(compared._replace(time=self.now, agrees=earlier))

    @precondition(lambda self: self.cancels)
    @rule()
    def drop_a_task(self) -> None:
        c = self.cancels.pop()
        self.sent = [d for d in self.sent if d.task != c.task]
        self.tell(ev.TaskDropped(self.now, c.worker, c.generation, c.task))

    @rule(plan=PLANS)
    def reload(self, plan: Plan) -> None:
        self.versions += 1
        self.tell(ev.ReloadRequested(self.now, self.versions, plan))

    @rule(seconds=st.sampled_from([1.0, 30.0]))
    def stall(self, seconds: float) -> None:
        self.now += seconds
        self.tell(ev.Stalled(self.now, seconds))

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), keep=st.booleans(), works=st.booleans())
    def finish_a_task(self, data: st.DataObject, keep: bool, works: bool) -> None:
        """Of a live or a dead generation; `keep`: the worker will say so again."""
        index = data.draw(st.integers(0, len(self.sent) - 1))
        d = self.sent[index] if keep else self.sent.pop(index)
        if works:
            self.tell(ev.ResultArrived(self.now, d.worker, d.generation, d.task, object()))
        else:
            self.tell(ev.TaskFailed(self.now, d.worker, d.generation, d.task, "bad"))

    @precondition(lambda self: self.starting)
    @rule(data=st.data())
    def get_ready(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.starting)))
        self.tell(ev.WorkerReady(self.now, worker, self.starting.pop(worker)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.alive)))
        self.starting.pop(worker, None)
        self.tell(ev.WorkerDied(self.now, worker, self.alive.pop(worker), "killed"))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]), rings=st.booleans())
    def wait(self, seconds: float, rings: bool) -> None:
        """Time passes; a busy loop may ring its timer later than it was asked to."""
        self.now += seconds
        if rings:
            self.tell(ev.Timer(self.now))

    @rule()
    def close(self) -> None:
        self.tell(ev.CloseRequested(self.now, 30.0))

    def teardown(self) -> None:
        """Lets everything work from here on: every query must end by timers and results alone."""
        if not hasattr(self, "watcher"):
            return
        self.close()
        for _ in range(1_000):
            if self.watcher.drained and not self.watcher.core.groups:
                self.watcher.check_everything_is_over()
                return
            self._help()
        raise AssertionError("no end in sight")

    def _help(self) -> None:
        while self.encodes:
            self._encode(self.encodes.pop(), works=True)
        while self.verdicts:
            self._judge(alarm=False, agrees=(0,))
        for worker in sorted(self.starting):
            self.tell(ev.WorkerReady(self.now, worker, self.starting.pop(worker)))
        for d in self.sent:
            self.tell(ev.ResultArrived(self.now, d.worker, d.generation, d.task, object()))
            self.sent = [other for other in self.sent if other is not d]
        self.now += 1.0
        self.tell(ev.Timer(self.now))


TestCore = CoreMachine.TestCase
TestCore.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
