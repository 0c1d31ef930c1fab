"""What must be true of the core after every event, judged from outside as far as possible.

`Watcher` keeps its own books from events and actions alone, and compares them with the core's.
"""

from __future__ import annotations

from typing import Any

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import LOOKAHEAD, Core
from codedinv.serving.fleet import Worker
from codedinv.serving.groups import PENDING, Attempt, Errand, Group, SlotState, Task
from codedinv.serving.hedging import BURST
from codedinv.serving.lanes import DATA, ERRAND, HEDGE, PARITY, URGENT


class Violation(AssertionError):
    """An invariant of the core does not hold."""


def require(condition: object, message: str, *values: object) -> None:
    if not condition:
        raise Violation(message.format(*values))


class Watcher:
    """Feeds a core and checks every step."""

    def __init__(self, core: Core, timers_late_s: float = 0.1) -> None:
        self.core = core
        self.timers_late_s = timers_late_s  # at most
        self.plans: dict[int, Plan] = {0: core.plan}
        self.now = 0.0
        self.submitted: dict[int, ev.Submitted] = {}
        self.ended: dict[int, act.Action] = {}
        self.rejected: set[int] = set()
        self.generation: dict[int, int] = {}  # worker -> the generation that was started last
        self.version: dict[int, int] = {}  # worker -> what it runs
        self.ready: set[int] = set()
        self.tasks: dict[int, tuple[int, int]] = {}  # task at a worker -> (worker, generation)
        self.absorbed: dict[int, set[int]] = {}  # group -> slots its decoder has
        self.group_version: dict[int, int] = {}
        self.encoding: set[int] = set()
        self.inspecting: set[int] = set()
        self.hedges = self.queries_sent = 0
        self.stalled = 0.0  # seconds
        self.progress: dict[int, float] = {}  # worker -> attended time of its last progress
        self.armed: float | None = None
        self.drained = False

    def handle(self, event: ev.Event) -> list[act.Action]:
        return self.take(event) + self.conclude(event)

    def take(self, event: ev.Event) -> list[act.Action]:
        """Feeds an event of a turn; what must hold when the loop waits is checked by `conclude`."""
        self.now = max(self.now, event.time)
        fresh = self._note_event(event)
        actions = self.core.take(event)
        for action in actions:
            self._note_action(action, event, fresh)
        return actions

    def conclude(self, event: ev.Event) -> list[act.Action]:
        """Ends a turn, of which this was the last event."""
        actions = self.core.conclude()
        for action in actions:
            self._note_action(action, event, False)
        self._check_state()
        return actions

    def _note_event(self, event: ev.Event) -> bool:
        """Books an event; False: a worker's word that comes from a dead generation."""
        match event:
            case ev.Submitted():
                self.submitted[event.query] = event
            case ev.ReloadRequested():
                self.plans[event.version] = event.plan
            case ev.Stalled():
                self.stalled += event.seconds
            case ev.Timer():
                self.armed = None
            case ev.Encoded() | ev.EncodeFailed():
                self.encoding.remove(event.group)
            case ev.Inspected():
                self.inspecting.remove(event.group)
            case ev.ResultArrived() | ev.TaskFailed() | ev.TaskDropped():
                fresh = self.tasks.pop(event.task, None) == (event.worker, event.generation)
                if fresh:
                    self.progress[event.worker] = self.now - self.stalled
                return fresh
            case ev.WorkerReady():
                if self.generation.get(event.worker) == event.generation:
                    self.ready.add(event.worker)
            case ev.WorkerDied():
                if self.generation.get(event.worker) == event.generation:
                    self._bury(event.worker)
        return True

    def _bury(self, worker: int) -> None:
        self.ready.discard(worker)
        self.generation[worker] = -1
        self.tasks = {t: at for t, at in self.tasks.items() if at[0] != worker}

    def _note_action(self, action: act.Action, event: ev.Event, fresh: bool) -> None:
        match action:
            case act.Restart():
                require(
                    self.generation.get(action.worker, -1) == -1,
                    "worker {} is started while generation {} lives",
                    action.worker,
                    self.generation.get(action.worker),
                )
                self.generation[action.worker] = action.generation
                self.version[action.worker] = action.version
            case act.Kill():
                require(
                    self.generation.get(action.worker) == action.generation,
                    "kill of a generation that is not alive: {}",
                    action,
                )
                self._check_blame(action)
                self._bury(action.worker)
            case act.Dispatch():
                self._check_dispatch(action)
            case act.Cancel():
                require(
                    self.tasks.get(action.task) == (action.worker, action.generation),
                    "cancel of a task that is not there: {}",
                    action,
                )
            case act.Encode():
                require(len(action.members) == self._plan(action).k, "encode of {}", action.members)
                self.encoding.add(action.group)
                anchors = {j for j, member in enumerate(action.members) if member is None}
                self.absorbed.setdefault(action.group, set()).update(anchors)
            case act.Absorb():
                self._plan(action)
                require(fresh, "a dead generation's result reached a decoder: {}", event)
                slots = self.absorbed.setdefault(action.group, set())
                require(action.slot not in slots, "slot absorbed twice: {}", action)
                slots.add(action.slot)
                if isinstance(event, ev.ResultArrived):
                    self._same_version(event.worker, action.version)
            case act.Resolve():
                self._plan(action)
                self._check_resolve(action, event, fresh)
                self._end(action.query, action)
            case act.Correct():
                first = self.ended.get(action.query)
                require(isinstance(first, act.Resolve), "correction without an answer: {}", action)
            case act.Fail():
                self._end(action.query, action)
            case act.Reject():
                self.rejected.add(action.query)
                self._end(action.query, action)
            case act.Inspect():
                got = self.absorbed.get(action.group, set())
                plan = self._plan(action)
                require(got == set(range(plan.n)), "inspected with only {}", got)
                self.inspecting.add(action.group)
            case act.Compare():
                self._plan(action)
                require(action.group in self.absorbed, "compared after retirement: {}", action)
                require(fresh, "a dead generation's word in an audit: {}", event)
            case act.Retire():
                self.absorbed.pop(action.group, None)
                self.group_version.pop(action.group, None)
                require(action.group not in self.encoding, "retired while encoding: {}", action)
                require(action.group not in self.inspecting, "retired while inspected: {}", action)
            case act.Reloaded():
                self._check_reloaded(action)
            case act.ReloadFailed():
                del self.plans[action.version]
            case act.SetTimer():
                self.armed = action.at
            case act.Drained():
                require(not self.drained, "drained twice")
                require(set(self.submitted) == set(self.ended), "drained with queries left")
                self.drained = True

    def _end(self, query: int, how: act.Action) -> None:
        require(query in self.submitted, "an unknown query ended: {}", how)
        require(
            query not in self.ended, "query ended twice: {}, then {}", self.ended.get(query), how
        )
        self.ended[query] = how

    def _check_blame(self, action: act.Kill) -> None:
        """Nobody is killed as hung for a time in which nobody was there to read its answers."""
        limit = self.core.policy.hang_timeout_s
        if action.reason.startswith("no task finished") and limit is not None:
            idle = self.now - self.stalled - self.progress.get(action.worker, 0.0)
            require(idle >= limit - 1e-6, "killed as hung after {} s: {}", idle, action)

    def _plan(self, action: Any) -> Plan:
        """The plan of the action's group; a group has one version all its life."""
        version = self.group_version.setdefault(action.group, action.version)
        require(version == action.version, "group of version {}: {}", version, action)
        require(version in self.plans, "a version that was given up: {}", action)
        return self.plans[version]

    def _same_version(self, worker: int, version: int) -> None:
        require(
            self.version[worker] == version,
            "worker {} runs version {}, not {}",
            worker,
            self.version[worker],
            version,
        )

    def _check_dispatch(self, action: act.Dispatch) -> None:
        worker, generation = action.worker, action.generation
        require(
            worker in self.ready and self.generation[worker] == generation,
            "task sent to a worker that is not ready: {}",
            action,
        )
        w = self.core.fleet.workers[worker]
        others = [t for t in w.outstanding.values() if t.id in self.tasks]
        limit = self.core.policy.in_flight
        require(len(others) < limit, "worker {} holds more than {} tasks", worker, limit)
        self.tasks[action.task] = (worker, generation)
        if not others:
            self.progress[worker] = self.now - self.stalled
        task = w.outstanding.get(action.task)
        if task is None:
            return  # it died in the same event
        self._same_version(worker, task.version)
        if isinstance(task, Attempt):
            require(w.probation is None, "a query to worker {} in quarantine", worker)
            self._check_attempt(task, others, w)

    def _check_attempt(self, attempt: Attempt, others: list[Task], worker: Worker) -> None:
        core, group = self.core, attempt.group
        require(
            not any(t.worker == worker.index for t in group.attempts[attempt.slot] if t in others),
            "two attempts of slot {} on worker {}",
            attempt.slot,
            worker.index,
        )
        if core.fleet.takers(group.version) >= group.plan.n:
            require(
                all(isinstance(t, Errand) or t.group is not group for t in others),
                "worker {} holds two slots of group {} while enough are alive",
                worker.index,
                group.id,
            )
        # A query may rather wait for another worker than go to a slow one.
        if attempt.slot >= group.plan.k and not group.lost_queries() and not worker.slow:
            for task in core.lanes(group.version).head(DATA, LOOKAHEAD):
                require(
                    worker.index in self._kept_from(task),
                    "worker {} gets a parity while a query waits",
                    worker.index,
                )
        if attempt.slot < len(group.queries) and group.waits_for(attempt.slot):
            deadline = group.queries[attempt.slot].deadline
            require(
                deadline is None or deadline > self.now,
                "an expired query is sent: {} at {}",
                deadline,
                self.now,
            )
        self.hedges += attempt.role == "hedge"
        self.queries_sent += attempt.role == "first" and attempt.slot < group.plan.k
        require(
            self.hedges <= core.policy.max_extra_load * self.queries_sent + BURST,
            "{} hedges of {} queries",
            self.hedges,
            self.queries_sent,
        )

    def _check_reloaded(self, action: act.Reloaded) -> None:
        version = action.version
        core = self.core
        for worker in core.fleet.workers[:-1]:
            require(worker.version == version, "worker {} was not replaced", worker.index)
        spare = core.fleet.spare
        next_one = spare.state == "starting" and spare.version != version
        require(spare.state == "vacant" or next_one, "the spare is {}", spare.state)
        old = [g.id for g in core.groups.values() if g.version != version]
        require(not old, "groups of an old version: {}", old)
        self.plans = {v: plan for v, plan in self.plans.items() if v >= version}

    def _check_resolve(self, action: act.Resolve, event: ev.Event, fresh: bool) -> None:
        if action.result is not None:
            require(fresh, "an answer from a dead generation: {}", event)
            require(
                isinstance(event, ev.ResultArrived) and event.result is action.result,
                "an answer that is not the result that came: {} at {}",
                action,
                event,
            )
            require(action.source in ("exact", "hedged"), "a result as {}", action)
        elif action.source == "fallback":
            require(self.core.has_fallback, "a fallback that is not there")
        else:
            slots = self.absorbed.get(action.group, set())
            needed = self._plan(action).needed
            require(
                len(slots) >= needed,
                "reconstructed from {} results, {} are needed",
                len(slots),
                needed,
            )
        deadline = self.submitted[action.query].deadline
        if self.core.has_fallback and deadline is not None and action.result is None:
            late = self.now - max(deadline, self.submitted[action.query].time)
            limit = self.timers_late_s + self.stalled
            require(late <= limit + 1e-9, "a late answer without a result: {} s", late)

    def _check_state(self) -> None:
        core = self.core
        unanswered = core.queries
        accepted = core.counts["accepted"]
        failed, answered = sum(core.failed.values()), sum(core.answered.values())
        waiting = 0
        for query in unanswered.values():
            state = query.group.states[query.slot]
            waiting += state is SlotState.WAITING
            self._check_is_waited_for(query, state)
        require(core.queued == waiting, "queued: {} counted, {} are", core.queued, waiting)
        require(
            accepted == len(unanswered) + answered + failed,
            "{} accepted, {} unanswered + {} answered + {} failed",
            accepted,
            len(unanswered),
            answered,
            failed,
        )
        require(
            len(self.submitted) == accepted + len(self.rejected), "accepted and rejected do not add"
        )
        require(len(self.ended) == answered + failed + len(self.rejected), "ends do not add up")
        states = {w.index for w in core.fleet if w.state == "ready"}
        require(states == self.ready, "ready: {}, but {} are", states, self.ready)
        for version in {w.version for w in core.fleet}:
            takers = sum(w.takes_tasks for w in core.fleet if w.version == version)
            require(core.fleet.takers(version) == takers, "takers of {}", version)
        alarm = core.timers.next()
        require(
            alarm is None or (self.armed is not None and self.armed <= alarm),
            "an alarm at {} with the timer at {}",
            alarm,
            self.armed,
        )
        for worker in core.fleet:
            self._check_is_watched(worker)
        self._check_work_is_taken()

    def _check_is_watched(self, worker: Worker) -> None:
        idle = worker.state == "ready" and not worker.outstanding
        if self.core.policy.hang_timeout_s is None and worker.state == "ready":
            idle = True
        require(
            idle or worker.state == "vacant" or _armed(worker.alarm),
            "worker {} is {} and nobody watches it",
            worker.index,
            worker.state,
        )
        require(not (worker.leaving and idle), "worker {} should have left", worker.index)
        if worker.probation is not None and idle:
            require(_armed(worker.probation.alarm), "worker {} is never probed", worker.index)

    def _check_is_waited_for(self, query: Any, state: SlotState) -> None:
        """Whatever an unanswered query waits for will come, or something with a timer will tell."""
        group = query.group
        if query.deadline is not None:
            require(_armed(query.alarm), "query {} has a deadline and no timer", query.id)
        if state is SlotState.LOST and not group.closed:
            require(_armed(group.alarm), "query {} waits for a group without timer", query.id)
        elif state is SlotState.LOST:
            pending = sum(s in PENDING for s in group.states)
            has_copy = any(
                q is query and group.states[slot] in PENDING for slot, q in group.copies.items()
            )
            require(
                has_copy or group.arrived < group.plan.needed <= group.arrived + pending,
                "query {} is lost and left alone: {}",
                query.id,
                group.states,
            )
        else:
            require(
                state in (SlotState.WAITING, SlotState.SENT),
                "query {} waits in state {}",
                query.id,
                state,
            )
        if self.core.rollout.is_over(group.version):
            require(state is SlotState.SENT, "query {} waits for a version that is over", query.id)
        for slot in range(group.plan.n):
            self._check_slot(group, slot)

    def _check_slot(self, group: Group, slot: int) -> None:
        state, attempts = group.states[slot], group.attempts[slot]
        sent = [a for a in attempts if a.worker is not None]
        waiting = [a for a in attempts if a.lane is not None]
        require(len(sent) + len(waiting) == len(attempts), "an attempt neither here nor there")
        right = {
            SlotState.SENT: bool(sent),
            SlotState.WAITING: bool(waiting) and not sent,
            SlotState.ARRIVED: not waiting,
        }.get(state, not attempts)
        require(right, "slot {} of group {} is {} with {}", slot, group.id, state, attempts)

    def _check_work_is_taken(self) -> None:
        """No worker stays idle while a task waits that it may take."""
        core = self.core
        for version in core.fleet.versions():
            takers = [w for w in core.fleet if w.version == version and w.takes_tasks]
            idle = {w.index for w in takers if not w.outstanding}
            slow = {w.index for w in takers if w.slow}
            lanes = core.lanes(version)
            for lane in (URGENT, DATA, HEDGE, PARITY, ERRAND) if idle else ():
                for task in lanes.head(lane, LOOKAHEAD):
                    may = idle - self._kept_from(task)
                    if {w.index for w in takers} - slow - self._kept_from(task):
                        may -= slow  # it may wait for one that is faster
                    require(not may, "idle workers {} and a waiting task {}", may, task)

    def _kept_from(self, task: Task) -> set[int]:
        """Workers that may not take this task."""
        if isinstance(task, Errand):
            return set(task.avoid)
        fleet, group = self.core.fleet, task.group
        never = set()
        if fleet.takers(task.version) >= group.plan.n or task.role == "hedge":
            never |= group.holders()
        erred = group.erred[task.slot]
        others = [w for w in fleet if w.version == task.version and w.takes_tasks]
        if any(w.index not in erred for w in others):
            never |= erred
        return never

    def check_everything_is_over(self) -> None:
        """After the last event of a world without further faults."""
        core = self.core
        require(self.drained, "not drained: {} queries left", len(core.queries))
        require(not core.groups, "groups left behind: {}", list(core.groups))
        require(not core.waiting(), "tasks left behind: {}", core.waiting())
        require(not self.absorbed, "decoders left behind: {}", self.absorbed)


def _armed(alarm: Any) -> bool:
    return alarm is not None and alarm.key is not None
