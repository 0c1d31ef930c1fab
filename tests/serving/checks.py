"""What must be true of the core after every event, judged from outside as far as possible.

`Watcher` keeps its own books from events and actions alone, and compares them with the core's.
"""

from __future__ import annotations

from typing import Any

from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.groups import PENDING, SlotState


class Violation(AssertionError):
    """An invariant of the core does not hold."""


def require(condition: object, message: str, *values: object) -> None:
    if not condition:
        raise Violation(message.format(*values))


class Watcher:
    """Feeds a core and checks every step."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.plan = core.plan
        self.submitted: set[int] = set()
        self.ended: dict[int, act.Action] = {}
        self.rejected: set[int] = set()
        self.generation: dict[int, int] = {}  # worker -> the generation that was started last
        self.ready: set[int] = set()
        self.tasks: dict[int, tuple[int, int]] = {}  # task at a worker -> (worker, generation)
        self.absorbed: dict[int, set[int]] = {}  # group -> slots its decoder has
        self.encoding: set[int] = set()
        self.armed: float | None = None
        self.drained = False

    def handle(self, event: ev.Event) -> list[act.Action]:
        fresh = self._note_event(event)
        actions = self.core.handle(event)
        for action in actions:
            self._note_action(action, event, fresh)
        self._check_state()
        return actions

    def _note_event(self, event: ev.Event) -> bool:
        """Books an event; False: a worker's word that comes from a dead generation."""
        match event:
            case ev.Submitted():
                self.submitted.add(event.query)
            case ev.Timer():
                self.armed = None
            case ev.Encoded():
                self.encoding.remove(event.group)
            case ev.ResultArrived() | ev.TaskFailed():
                return self.tasks.pop(event.task, None) == (event.worker, event.generation)
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
            case act.Kill():
                require(
                    self.generation.get(action.worker) == action.generation,
                    "kill of a generation that is not alive: {}",
                    action,
                )
                self._bury(action.worker)
            case act.Dispatch():
                self._check_dispatch(action)
            case act.Encode():
                require(len(action.members) == self.plan.k, "encode of {}", action.members)
                self.encoding.add(action.group)
                anchors = {j for j, member in enumerate(action.members) if member is None}
                self.absorbed.setdefault(action.group, set()).update(anchors)
            case act.Absorb():
                require(fresh, "a dead generation's result reached a decoder: {}", event)
                slots = self.absorbed.setdefault(action.group, set())
                require(action.slot not in slots, "slot absorbed twice: {}", action)
                slots.add(action.slot)
            case act.Resolve():
                self._check_resolve(action, event, fresh)
                self._end(action.query, action)
            case act.Fail():
                self._end(action.query, action)
            case act.Reject():
                self.rejected.add(action.query)
                self._end(action.query, action)
            case act.Inspect():
                got = self.absorbed.get(action.group, set())
                require(got == set(range(self.plan.n)), "inspected with only {}", got)
            case act.Retire():
                self.absorbed.pop(action.group, None)
                require(action.group not in self.encoding, "retired while encoding: {}", action)
            case act.SetTimer():
                self.armed = action.at
            case act.Drained():
                require(not self.drained, "drained twice")
                require(self.submitted == set(self.ended), "drained with queries left")
                self.drained = True

    def _end(self, query: int, how: act.Action) -> None:
        require(query in self.submitted, "an unknown query ended: {}", how)
        require(
            query not in self.ended, "query ended twice: {}, then {}", self.ended.get(query), how
        )
        self.ended[query] = how

    def _check_dispatch(self, action: act.Dispatch) -> None:
        worker, generation = action.worker, action.generation
        require(
            worker in self.ready and self.generation[worker] == generation,
            "task sent to a worker that is not ready: {}",
            action,
        )
        held = self.core.fleet.workers[worker].outstanding
        others = [t for t in held.values() if t.id in self.tasks]
        limit = self.core.policy.in_flight
        require(len(others) < limit, "worker {} holds more than {} tasks", worker, limit)
        if action.task in held and len(self.ready) >= self.plan.n:
            group = held[action.task].group
            require(
                all(t.group is not group for t in others),
                "worker {} holds two slots of group {} while {} workers are alive",
                worker,
                group.id,
                len(self.ready),
            )
        self.tasks[action.task] = (worker, generation)

    def _check_resolve(self, action: act.Resolve, event: ev.Event, fresh: bool) -> None:
        if action.result is not None:
            require(fresh, "an answer from a dead generation: {}", event)
            require(
                isinstance(event, ev.ResultArrived) and event.result is action.result,
                "an answer that is not the result that came: {} at {}",
                action,
                event,
            )
        else:
            slots = self.absorbed.get(action.group, set())
            require(
                len(slots) >= self.plan.needed,
                "reconstructed from {} results, {} are needed",
                len(slots),
                self.plan.needed,
            )

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
        require(core.fleet.alive == len(self.ready), "alive: {}", core.fleet.alive)
        alarm = core.timers.next()
        require(
            alarm is None or (self.armed is not None and self.armed <= alarm),
            "an alarm at {} with the timer at {}",
            alarm,
            self.armed,
        )
        for worker in core.fleet:
            require(
                (worker.state == "ready" and not worker.outstanding) or _armed(worker.alarm),
                "worker {} is {} and nobody watches it",
                worker.index,
                worker.state,
            )
        self._check_work_is_taken()

    def _check_is_waited_for(self, query: Any, state: SlotState) -> None:
        """Whatever an unanswered query waits for will come, or something with a timer will tell."""
        group = query.group
        if query.deadline is not None:
            require(_armed(query.alarm), "query {} has a deadline and no timer", query.id)
        if state is SlotState.LOST and not group.closed:
            require(_armed(group.alarm), "query {} waits for a group without timer", query.id)
        elif state is SlotState.LOST:
            pending = sum(s in PENDING for s in group.states)
            require(
                group.arrived < self.plan.needed <= group.arrived + pending,
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
        for slot, s in enumerate(group.states):
            task = group.tasks[slot]
            require(
                (s is SlotState.SENT) == (task is not None and task.worker is not None),
                "slot {} of group {} is {} without a worker",
                slot,
                group.id,
                s,
            )

    def _check_work_is_taken(self) -> None:
        """No worker stays idle while a task waits that it may take."""
        core = self.core
        idle = [w for w in core.fleet if w.state == "ready" and not w.outstanding]
        require(
            not idle or not len(core.backlog),
            "{} idle workers and {} waiting tasks",
            len(idle),
            len(core.backlog),
        )

    def check_everything_is_over(self) -> None:
        """After the last event of a world without further faults."""
        core = self.core
        require(self.drained, "not drained: {} queries left", len(core.queries))
        require(not core.groups, "groups left behind: {}", list(core.groups))
        require(not len(core.backlog), "tasks left behind: {}", len(core.backlog))
        require(not self.absorbed, "decoders left behind: {}", self.absorbed)


def _armed(alarm: Any) -> bool:
    return alarm is not None and alarm.key is not None
