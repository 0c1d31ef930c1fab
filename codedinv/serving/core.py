"""Every decision of a query's life, as a state machine without clock, thread or I/O.

Events in, actions out (`events.py`, `actions.py`). The server, the simulator and the tests run this
same code. An event costs a few microseconds times n, whatever the number of workers.

Longer than other files here: the decisions share one state and contradict each other easily, so
they are read side by side.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from codedinv.schemes.scheme import Plan, Source
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.fleet import Fleet, Worker
from codedinv.serving.groups import PENDING, Backlog, Group, Query, SlotState, Task
from codedinv.serving.policy import Policy
from codedinv.serving.timers import Timers

# A task whose group's slots sit on all workers with room must not stop those behind it; looking
# further than this would make an event's cost grow with the backlog.
_LOOKAHEAD = 8


class Core:
    """The state machine of one server.

    Args:
        plan: the scheme's coding group in numbers.
        policy: see `Policy`.
        workers: how many; they are started by the `Restart` actions of `Opened`.

    `handle` takes events in order of time and returns the actions to do, in order. Afterwards,
    every accepted query either has ended or waits for something that has a timer.
    """

    def __init__(self, plan: Plan, policy: Policy, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        self.plan = plan
        self.policy = policy
        self.fleet = Fleet(workers, policy.in_flight)
        self.backlog = Backlog()
        self.timers = Timers()
        self.queries: dict[int, Query] = {}  # accepted and not ended
        self.groups: dict[int, Group] = {}
        self.queued = 0  # of `queries`, those whose own task waits for a worker
        self.answered: Counter[Source] = Counter()
        self.failed: Counter[act.Failure] = Counter()
        self.rejected: Counter[act.Refusal] = Counter()
        self.counts: Counter[str] = Counter()
        self._open: Group | None = None
        self._next_group = self._next_task = 0
        self._now = 0.0
        self._armed: float | None = None
        self._closing = self._drained = False
        self._out: list[act.Action] = []
        self._on_event: dict[type, Any] = {
            ev.Opened: self._opened,
            ev.Submitted: self._submitted,
            ev.Cancelled: self._cancelled,
            ev.Encoded: self._encoded,
            ev.EncodeFailed: self._encode_failed,
            ev.ResultArrived: self._result_arrived,
            ev.TaskFailed: self._task_failed,
            ev.WorkerDied: self._worker_died,
            ev.WorkerReady: self._worker_ready,
            ev.Stalled: lambda _: None,
            ev.Inconsistent: lambda _: None,
            ev.Timer: self._timer,
            ev.CloseRequested: self._close_requested,
        }
        self._on_alarm: dict[str, Any] = {
            "group_wait": self._close_group,
            "grace": self._grace_is_over,
            "last_call": self._last_call,
            "deadline": self._deadline_passed,
            "watch": self._watch,
            "start": self._start_takes_too_long,
            "restart": self._restart,
            "drain": self._drain_is_over,
        }

    def handle(self, event: ev.Event) -> list[act.Action]:
        """Takes one event and returns what is to be done, in order.

        Alarms ring in `Timer` events only. Whoever was busy for a while thus tells first what
        happened meanwhile, and no worker is taken for hung whose result is there to be read.
        """
        self._now = max(self._now, event.time)
        self._out = []
        self._on_event[type(event)](event)
        self._dispatch()
        if self._closing and not self.queries and not self._drained:
            self._drained = True
            self._out.append(act.Drained())
        self._set_timer()
        return self._out

    # ---- a query comes

    def _submitted(self, event: ev.Submitted) -> None:
        if self._closing or len(self.queries) >= self.policy.max_queue:
            refusal: act.Refusal = "closed" if self._closing else "overloaded"
            self.rejected[refusal] += 1
            self._out.append(act.Reject(event.query, refusal))
            return
        query = Query(event.query, event.payload, event.deadline)
        self.queries[query.id] = query
        self.counts["accepted"] += 1
        group = self._open or self._open_group()
        group.join(query)
        if query.deadline is not None:
            left = max(0.0, query.deadline - self._now)
            margin = min(self.policy.deadline_margin_s, left / 4)
            query.alarm = self.timers.set(query.deadline - margin, "last_call", query)
        self._enqueue(group, query.slot)
        if len(group.queries) == self.plan.k:
            self._close_group(group)

    def _open_group(self) -> Group:
        group = Group(self._next_group, self.plan)
        self._next_group += 1
        self.groups[group.id] = self._open = group
        if self.plan.k > 1:
            group.alarm = self.timers.set(self._now + self.policy.group_wait_s, "group_wait", group)
        return group

    def _close_group(self, group: Group) -> None:
        """No more members; free data slots become anchors, parities are asked for."""
        self._open = None
        self.timers.cancel(group.alarm)
        group.alarm = None
        group.closed = True
        k, n = self.plan.k, self.plan.n
        self.counts["groups"] += 1
        anchors = k - len(group.queries)
        for slot in range(len(group.queries), k):
            group.states[slot] = SlotState.ARRIVED
        group.arrived += anchors
        self.counts["groups_partial"] += anchors > 0
        if n > k:
            if group.unanswered or self.policy.always_encode:
                group.states[k:] = [SlotState.ENCODING] * (n - k)
                members = tuple(q.payload for q in group.queries) + (None,) * anchors
                self._out.append(act.Encode(group.id, 0, members))
            else:
                self.counts["groups_not_encoded"] += 1
        self._settle(group)

    def _encoded(self, event: ev.Encoded) -> None:
        group = self.groups[event.group]
        k = self.plan.k
        for slot, payload in enumerate(event.parities, start=k):
            group.payloads[slot] = payload
            self._enqueue(group, slot)
        self._settle(group)

    def _encode_failed(self, event: ev.EncodeFailed) -> None:
        group = self.groups[event.group]
        for slot in range(self.plan.k, self.plan.n):
            group.states[slot] = SlotState.LOST
        self.counts["encode_errors"] += 1
        self._settle(group)

    def _cancelled(self, event: ev.Cancelled) -> None:
        query = self.queries.get(event.query)
        if query is not None:
            self._fail(query, "cancelled", "its caller cancelled it")
            self._settle(query.group)

    # ---- tasks go out

    def _enqueue(self, group: Group, slot: int) -> None:
        task = Task(self._next_task, group, slot)
        self._next_task += 1
        group.tasks[slot] = task
        group.states[slot] = SlotState.WAITING
        self.queued += group.waits_for(slot)
        if group.sends[slot]:
            self.counts["retries"] += 1
            self.backlog.prepend(task)
        else:
            self.backlog.append(task)

    def _cancel(self, task: Task) -> None:
        """Gives up a task that waits for a worker; its query, if any, must not have ended yet."""
        group, slot = task.group, task.slot
        self.backlog.cancel(task)
        group.tasks[slot] = None
        group.states[slot] = SlotState.LOST

    def _dispatch(self) -> None:
        index = 0
        while index < _LOOKAHEAD and self.fleet.has_room():
            task = self.backlog.peek(index)
            if task is None:
                return
            if task.cancelled:
                index += 1
                continue
            worker = self.fleet.pick(task.group.holders(), self.fleet.alive >= self.plan.n)
            if worker is None:
                index += 1
                continue
            self.backlog.remove(index)
            self._send(task, worker)

    def _send(self, task: Task, worker: Worker) -> None:
        group, slot = task.group, task.slot
        group.states[slot] = SlotState.SENT
        group.sends[slot] += 1
        self.queued -= group.waits_for(slot)
        self.counts["parity_queries"] += slot >= self.plan.k
        if not worker.outstanding:
            worker.progress_at = self._now
            if worker.alarm is None:
                worker.alarm = self.timers.set(
                    self._now + self.policy.hang_timeout_s, "watch", worker
                )
        self.fleet.assign(worker, task)
        self._out.append(
            act.Dispatch(
                worker.index,
                worker.generation,
                task.id,
                self.plan.models[slot],
                group.payloads[slot],
            )
        )

    # ---- results come back

    def _take_back(self, event: ev.ResultArrived | ev.TaskFailed) -> Task | None:
        """The event's task, now off its worker; None if it is from a dead generation."""
        worker = self.fleet.current(event.worker, event.generation)
        task = worker.outstanding.get(event.task) if worker else None
        if worker is None or task is None:
            self.counts["stale_results"] += 1
            return None
        self.fleet.release(worker, task)
        worker.progress_at = self._now
        worker.deaths = 0
        task.group.tasks[task.slot] = None
        return task

    def _result_arrived(self, event: ev.ResultArrived) -> None:
        task = self._take_back(event)
        if task is None:
            return
        group, slot = task.group, task.slot
        group.states[slot] = SlotState.ARRIVED
        group.arrived += 1
        if self.plan.n > self.plan.k:
            self._out.append(act.Absorb(group.id, 0, slot, event.result))
        if group.waits_for(slot):
            self._resolve(group.queries[slot], "exact", event.result)
        elif group.unanswered == 0 or slot < self.plan.k:
            self.counts["late_results"] += 1
        self._settle(group)

    def _task_failed(self, event: ev.TaskFailed) -> None:
        task = self._take_back(event)
        if task is not None:
            self.counts["task_errors"] += 1
            task.group.states[task.slot] = SlotState.LOST
            self._settle(task.group)

    def _settle(self, group: Group) -> None:
        """Draws the conclusions of whatever changed in the group: release, send again, give up."""
        if group.closed and group.unanswered:
            if group.arrived >= self.plan.needed:
                self._release(group)
            else:
                self._cover(group)
        elif group.unanswered:
            for slot in self._lost_queries(group):
                if self._may_send(group, slot):
                    self._enqueue(group, slot)
        self._sweep(group)

    def _release(self, group: Group) -> None:
        """Any `needed` results are in: gives reconstructed answers where the policy allows."""
        at_once = self.policy.release == "eager" or self.plan.recovered == "exact"
        for query in group.queries:
            if query.done:
                continue
            lost = group.states[query.slot] is SlotState.LOST
            if at_once or lost or query.last_call or group.grace_over:
                self._resolve(query, self.plan.recovered, None)
        if group.unanswered and self.policy.release == "grace" and group.alarm is None:
            group.alarm = self.timers.set(self._now + self.policy.grace_s, "grace", group)

    def _cover(self, group: Group) -> None:
        """Sends again what the code cannot cover, and fails what can never be answered."""
        lost = self._lost_queries(group)
        if not lost:
            return
        pending = sum(state in PENDING for state in group.states)
        short = self.plan.needed - group.arrived - pending
        if short <= 0:
            return
        others = [s for s, state in enumerate(group.states) if state is SlotState.LOST]
        candidates = [s for s in lost if self._may_send(group, s)]
        candidates += [s for s in others if s not in lost and self._may_send(group, s)]
        for slot in candidates[:short]:
            self._enqueue(group, slot)
        if short > len(candidates):
            for slot in lost:
                if group.states[slot] is SlotState.LOST:
                    self._fail(
                        group.queries[slot],
                        "unrecoverable",
                        f"lost {group.sends[slot]} times, and so was more of its coding group than "
                        f"the code covers ({group.arrived} of {self.plan.needed} results came)",
                    )

    def _lost_queries(self, group: Group) -> list[int]:
        """Slots of queries that have not ended and whose own result will not come."""
        states = group.states
        return [q.slot for q in group.queries if not q.done and states[q.slot] is SlotState.LOST]

    def _may_send(self, group: Group, slot: int) -> bool:
        return group.sends[slot] <= self.policy.retries and group.payloads[slot] is not None

    def _sweep(self, group: Group) -> None:
        """Gives up waiting tasks that nobody needs any more, then the group itself."""
        if SlotState.WAITING in group.states:
            for slot, task in enumerate(group.tasks):
                waits = task is not None and task.worker is None
                if task is not None and waits and not self._is_needed(group, slot):
                    self._cancel(task)
        if group.finished() and group.id in self.groups:
            del self.groups[group.id]
            self.timers.cancel(group.alarm)
            if self.plan.n > self.plan.k:
                if group.arrived == self.plan.n:
                    self._out.append(act.Inspect(group.id, 0, True))
                self._out.append(act.Retire(group.id))

    def _is_needed(self, group: Group, slot: int) -> bool:
        """Does anybody wait for this slot's result, for itself or to decode another?"""
        if group.waits_for(slot):
            return True
        undecodable = group.unanswered > 0 and group.arrived < self.plan.needed
        if slot < self.plan.k:
            return undecodable and bool(self._lost_queries(group))
        checked = self.policy.always_encode and SlotState.LOST not in group.states
        return undecodable or checked

    # ---- a query ends

    def _resolve(self, query: Query, source: Source, result: Any | None) -> None:
        self.answered[source] += 1
        self._end(query)
        self._out.append(act.Resolve(query.id, source, query.group.id, 0, query.slot, result))

    def _fail(self, query: Query, failure: act.Failure, reason: str) -> None:
        self.failed[failure] += 1
        self._end(query)
        self._out.append(act.Fail(query.id, failure, reason))

    def _end(self, query: Query) -> None:
        group = query.group
        self.queued -= group.states[query.slot] is SlotState.WAITING
        query.done = True
        group.unanswered -= 1
        self.timers.cancel(query.alarm)
        del self.queries[query.id]

    def _last_call(self, query: Query) -> None:
        query.last_call = True
        query.alarm = self.timers.set(query.deadline or 0.0, "deadline", query)
        self._settle(query.group)

    def _deadline_passed(self, query: Query) -> None:
        self._fail(query, "deadline_exceeded", "no answer came before its deadline")
        self._settle(query.group)

    def _grace_is_over(self, group: Group) -> None:
        group.alarm = None
        group.grace_over = True
        self._settle(group)

    # ---- workers come and go

    def _opened(self, event: ev.Opened) -> None:
        for worker in self.fleet:
            self._restart(worker)

    def _restart(self, worker: Worker) -> None:
        self.fleet.starting(worker)
        self.counts["starts"] += 1
        worker.alarm = self.timers.set(self._now + self.policy.start_timeout_s, "start", worker)
        self._out.append(act.Restart(worker.index, worker.generation, 0))

    def _worker_ready(self, event: ev.WorkerReady) -> None:
        worker = self.fleet.current(event.worker, event.generation)
        if worker is not None and worker.state == "starting":
            self.timers.cancel(worker.alarm)
            worker.alarm = None
            self.fleet.ready(worker)

    def _worker_died(self, event: ev.WorkerDied) -> None:
        worker = self.fleet.current(event.worker, event.generation)
        if worker is not None:
            self._bury(worker)

    def _watch(self, worker: Worker) -> None:
        """Rings while a worker holds tasks: kills it if none was finished for too long."""
        worker.alarm = None
        if not worker.outstanding:
            return
        limit = worker.progress_at + self.policy.hang_timeout_s
        if self._now < limit:
            worker.alarm = self.timers.set(limit, "watch", worker)
        else:
            self.counts["hangs"] += 1
            self._kill(worker, f"no task finished for {self.policy.hang_timeout_s} s")

    def _start_takes_too_long(self, worker: Worker) -> None:
        worker.alarm = None
        self._kill(worker, f"not ready {self.policy.start_timeout_s} s after its start")

    def _kill(self, worker: Worker, reason: str) -> None:
        self._out.append(act.Kill(worker.index, worker.generation, reason))
        self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        """Turns what a worker held into erasures, and plans its restart."""
        self.counts["deaths"] += 1
        self.timers.cancel(worker.alarm)
        lost = self.fleet.died(worker)
        for task in lost:
            task.group.tasks[task.slot] = None
            task.group.states[task.slot] = SlotState.LOST
        for group in {task.group.id: task.group for task in lost}.values():
            self._settle(group)
        backoff = self.policy.restart_backoff_s * 2.0 ** min(worker.deaths - 1, 60)
        at = self._now + min(backoff, self.policy.restart_backoff_max_s)
        worker.alarm = self.timers.set(at, "restart", worker)

    # ---- time, and the end

    def _timer(self, event: ev.Timer) -> None:
        self._armed = None
        while (due := self.timers.due(self._now)) is not None:
            key, subject = due
            self._on_alarm[key](subject)

    def _set_timer(self) -> None:
        at = self.timers.next()
        if at is not None and (self._armed is None or at < self._armed):
            self._armed = at
            self._out.append(act.SetTimer(at))

    def _close_requested(self, event: ev.CloseRequested) -> None:
        if self._closing:
            return
        self._closing = True
        self.timers.set(self._now + event.drain_s, "drain", None)
        if self._open is not None:
            self._close_group(self._open)

    def _drain_is_over(self, _: None) -> None:
        for query in list(self.queries.values()):
            if not query.done:
                self._fail(query, "closed", "the server closed before an answer came")
                self._settle(query.group)
