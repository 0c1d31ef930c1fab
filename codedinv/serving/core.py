"""Every decision of a query's life, as a state machine without clock, thread or I/O.

Events in, actions out (`events.py`, `actions.py`). The server, the simulator and the tests run this
same code. An event costs a few microseconds times n, whatever the number of workers.

This file is the life of queries and their groups. What workers go through is in `crew.py` (start,
hang, die), `quarantine.py` (err), `pace.py` (lag), `audits.py` (lie) and `rollout.py` (be
replaced); who waits in which order in `lanes.py`. Longer than other files here: the decisions share
one state and contradict each other easily, so they are read side by side.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from codedinv.schemes.scheme import Plan, Source
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.audits import Audits
from codedinv.serving.crew import Crew
from codedinv.serving.fleet import Fleet, Worker
from codedinv.serving.groups import (
    ARRIVED,
    ENCODING,
    LOST,
    NOBODY,
    PLANNED,
    SENT,
    WAITING,
    Attempt,
    Errand,
    Group,
    Query,
    Role,
    SlotState,
    Task,
)
from codedinv.serving.hedging import Hedging
from codedinv.serving.histogram import Histogram
from codedinv.serving.lanes import DATA, ERRAND, HEDGE, PARITY, URGENT, Lanes
from codedinv.serving.pace import Pace
from codedinv.serving.policy import Policy
from codedinv.serving.quarantine import Quarantine
from codedinv.serving.rollout import Rollout
from codedinv.serving.service_times import ServiceTimes
from codedinv.serving.timers import Timers

# A task whose group's slots sit on all workers with room must not stop those behind it; looking
# further than this would make an event's cost grow with the backlog.
LOOKAHEAD = 8
_LEAST_HEDGE_DELAY_S = 0.0005  # or a budget that is used up would be asked for without end
_FEWEST_TIMES = 8  # service times, before a query is called hopeless by them
_UNREAD_PARITIES = 4  # per worker: parities that wait only to check results, at most


class Core:
    """The state machine of one server.

    Args:
        plan: the scheme's coding group in numbers.
        policy: see `Policy`.
        workers: how many; they are started by the `Restart` actions of `Opened`. One more index
            is used while a new version is brought out.
        has_fallback: can the front end answer a query by itself, if need be?

    `handle` takes events in order of time and returns the actions to do, in order. Afterwards,
    every accepted query either has ended or waits for something that has a timer. Whoever has many
    events at once saves half of the time by `take` for each and one `conclude`.
    """

    def __init__(
        self, plan: Plan, policy: Policy, workers: int, *, has_fallback: bool = False
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        if plan.recovered == "fallback" and not has_fallback:
            raise ValueError("plan: its answers are fallbacks, but the server has no fallback")
        self.policy = policy
        self.has_fallback = has_fallback
        self.now = 0.0
        self.fleet = Fleet(workers, policy.in_flight)
        self.timers = Timers()
        self.service = ServiceTimes()
        self.hedging = Hedging(policy, self.service)
        self.crew = Crew(self)
        self.quarantine = Quarantine(self)
        self.pace = Pace(self)
        self.audits = Audits(self)
        self.rollout = Rollout(self, plan)
        self.queries: dict[int, Query] = {}  # accepted and not ended
        self.groups: dict[int, Group] = {}
        self.queued = 0  # of `queries`, those whose own task waits for a worker
        self.answered: Counter[Source] = Counter()
        self.failed: Counter[act.Failure] = Counter()
        self.rejected: Counter[act.Refusal] = Counter()
        self.counts: Counter[str] = Counter()
        self.queue_wait = Histogram()  # seconds, of queries that were sent
        self.group_wait = Histogram()  # seconds, of groups that were closed
        self._lanes: dict[int, Lanes] = {0: Lanes()}
        self._open: dict[tuple[int, int], Group] = {}  # by version and bucket, oldest first
        self._planned: deque[Group] = deque()  # whose parities are made once no data waits
        self._urgent: list[Group] = []  # whose parities are made now: a query of them is lost
        self._next_group = self._next_task = 0
        self._armed: float | None = None
        self._closing = self._drained = False
        self._out: list[act.Action] = []
        self._on_event: dict[type, Callable[[Any], None]] = {
            ev.Opened: self._opened,
            ev.Submitted: self._submitted,
            ev.Cancelled: self._cancelled,
            ev.Encoded: self._encoded,
            ev.EncodeFailed: self._encode_failed,
            ev.ResultArrived: self._result_arrived,
            ev.TaskFailed: self._task_failed,
            ev.TaskDropped: self._task_dropped,
            ev.WorkerDied: self.crew.died,
            ev.WorkerReady: self.crew.ready,
            ev.Inspected: self._inspected,
            ev.Compared: self.audits.compared,
            ev.ReloadRequested: self.rollout.request,
            ev.Stalled: self.crew.stalled,
            ev.Timer: self._timer,
            ev.CloseRequested: self._close_requested,
        }
        self._on_alarm: dict[str, Callable[[Any], None]] = {
            "group_wait": self._wait_is_over,
            "grace": self._grace_is_over,
            "hedge": self._hedge,
            "last_call": self._last_call,
            "deadline": self._deadline_passed,
            "watch": self.crew.watch,
            "start": self.crew.start_takes_too_long,
            "restart": self.crew.restart,
            "probe": self.quarantine.probe,
            "pace": self.pace.probe,
            "audit": self.audits.out_of_time,
            "drain": self._drain_is_over,
        }

    @property
    def plan(self) -> Plan:
        """The coding group of the version that is, or is to be, served."""
        return self.rollout.plan(self.rollout.target)

    def handle(self, event: ev.Event) -> list[act.Action]:
        """Takes one event and returns what is to be done, in order.

        Alarms ring in `Timer` events only. Whoever was busy for a while thus tells first what
        happened meanwhile, and no worker is taken for hung whose result is there to be read.
        """
        return self.take(event) + self.conclude()

    def take(self, event: ev.Event) -> list[act.Action]:
        """The first half of `handle`: what follows from the event itself. `conclude` must come
        before the loop waits again; until then no task is sent and no timer set."""
        if event.time > self.now:
            self.now = event.time
        self._out = []
        self._on_event[type(event)](event)
        if self.rollout.old is not None or self.rollout.waiting:
            self.rollout.advance()
        return self._out

    def conclude(self) -> list[act.Action]:
        """The second half of `handle`, once for all events taken: sends what can be sent."""
        self._out = []
        self._dispatch()
        if self._make_planned():
            self._dispatch()
        if self._closing and not self.queries and not self._drained:
            self._drained = True
            self._out.append(act.Drained())
        self._set_timer()
        return self._out

    # ---- for the parts of the core

    def emit(self, action: act.Action) -> None:
        """Adds an action."""
        self._out.append(action)

    def next_task(self) -> int:
        """A new task's id."""
        self._next_task += 1
        return self._next_task

    def lanes(self, version: int) -> Lanes:
        """The waiting tasks of a version."""
        lanes = self._lanes.get(version)
        if lanes is None:
            lanes = self._lanes[version] = Lanes()
        return lanes

    def waiting(self) -> int:
        """How many tasks wait, of all versions."""
        return sum(len(lanes) for lanes in self._lanes.values())

    def has_groups(self, version: int) -> bool:
        """Is any group of that version not retired?"""
        return any(group.version == version for group in self.groups.values())

    # ---- a query comes

    def _submitted(self, event: ev.Submitted) -> None:
        if self._closing or len(self.queries) >= self.policy.max_queue:
            refusal: act.Refusal = "closed" if self._closing else "overloaded"
            self.rejected[refusal] += 1
            self._out.append(act.Reject(event.query, refusal))
            return
        self.counts["accepted"] += 1
        query = Query(event.query, event.payload, event.deadline, event.bucket, event.doubt)
        query.since = event.time
        self._admit(query)

    def _admit(self, query: Query) -> None:
        """Gives a query its place in a group and sends it."""
        self.queries[query.id] = query
        version = self.rollout.version_for_query()
        group = self._open.get((version, query.bucket)) or self._open_group(version, query.bucket)
        group.join(query)
        if query.deadline is not None:
            left = max(0.0, query.deadline - self.now)
            margin = min(self.policy.deadline_margin_s, left / 4)
            query.alarm = self.timers.set(query.deadline - margin, "last_call", query)
            if group.alarm is not None:
                self._hurry(group, query.deadline, left)
        self._enqueue(group, query.slot, "first")
        if group.is_full():
            self._close_group(group)

    def _open_group(self, version: int, bucket: int) -> Group:
        group = Group(self._next_group, self.rollout.plan(version), version, bucket)
        self._next_group += 1
        group.opened_at = self.now
        self.groups[group.id] = self._open[version, bucket] = group
        if group.plan.k > 1:
            group.closes_at = self.now + self.policy.group_wait_s
            group.alarm = self.timers.set(group.closes_at, "group_wait", group)
        return group

    def _hurry(self, group: Group, deadline: float, left: float) -> None:
        """Closes the group in time for its parities to help a member with this deadline."""
        latest = deadline - self.policy.deadline_margin_s
        if self.service.count:
            if latest - 2 * self.service.quantile(0.9) >= group.closes_at:
                return  # most often, and so with any usual service time
            latest -= 2 * self._usual_service()
        else:
            latest -= left / 2
        latest = max(self.now, latest)
        if latest < group.closes_at:
            self.timers.cancel(group.alarm)
            group.closes_at = latest
            group.alarm = self.timers.set(latest, "group_wait", group)

    def _wait_is_over(self, group: Group) -> None:
        """Fills the group up with members of other buckets' groups, the oldest first."""
        for other in list(self._open.values()):
            fits = len(group.queries) + len(other.queries) <= group.plan.k
            if other is not group and other.version == group.version and fits:
                group.take_in(other)
                self.timers.cancel(other.alarm)
                del self._open[other.version, other.bucket]
                del self.groups[other.id]
                self.counts["groups_merged"] += 1
        self._close_group(group)

    def _close_group(self, group: Group) -> None:
        """No more members; free data slots become anchors, parities are asked for."""
        self._open.pop((group.version, group.bucket), None)
        self.timers.cancel(group.alarm)
        group.alarm = None
        group.closed = True
        k, n = group.plan.k, group.plan.n
        for slot, result in group.results.items():
            self._to_decoder(group, slot, result)
        group.results = {}
        self.counts["groups"] += 1
        self.group_wait.record(self.now - group.opened_at)
        anchors = k - len(group.queries)
        for slot in range(len(group.queries), k):
            group.states[slot] = ARRIVED
        group.arrived += anchors
        if anchors:
            self.counts["groups_partial"] += 1
        if n > k:
            if group.unanswered or self._is_checked(group):
                group.states[k:] = [PLANNED] * (n - k)
                self._planned.append(group)
            else:
                self.counts["groups_not_encoded"] += 1
        if n > 1:  # else nothing follows: it was opened, and closes, with one query that waits
            self._settle(group)

    def _is_checked(self, group: Group) -> bool:
        """Are its parities wanted although nobody waits for them?"""
        if group.plan.guided:
            return False
        return self.policy.always_encode or (self.policy.verify and group.is_full())

    def _make_planned(self) -> bool:
        """Makes parities, unless data waits for workers: then they would only queue up.

        Returns:
            True: there are copies to be sent. What is to be encoded comes with `Encoded`.
        """
        urgent, self._urgent = self._urgent, []
        copied = False
        for group in urgent:
            copied |= self._make(group)
        while self._planned:
            group = self._planned[0]
            if PLANNED in group.states and self.lanes(group.version).data_waits():
                break
            self._planned.popleft()
            copied |= self._make(group)
        return copied

    def _make(self, group: Group) -> bool:
        """Makes the parities of a group that still wants them; True: they are copies."""
        if PLANNED not in group.states:
            return False
        if group.plan.guided:
            self._copy_the_doubtful(group)
            return True
        k = group.plan.k
        group.states[k:] = [ENCODING] * (group.plan.n - k)
        members = tuple(group.payloads[: len(group.queries)])
        members += (None,) * (k - len(group.queries))
        self._out.append(act.Encode(group.id, group.version, members))
        return False

    def _copy_the_doubtful(self, group: Group) -> None:
        """Gives the parity slots of a guided group copies of its most doubtful queries."""
        waiting = [q for q in group.queries if not q.done]
        waiting.sort(key=lambda q: -q.doubt)
        for slot in range(group.plan.k, group.plan.n):
            if not waiting:
                group.states[slot] = LOST
                continue
            query = waiting.pop(0)
            group.copies[slot] = query
            group.payloads[slot] = query.payload
            self._enqueue(group, slot, "first")

    def _encoded(self, event: ev.Encoded) -> None:
        group = self.groups[event.group]
        for slot, payload in enumerate(event.parities, start=group.plan.k):
            group.payloads[slot] = payload
            if self.rollout.is_over(group.version):
                group.states[slot] = LOST
            else:
                self._enqueue(group, slot, "first")
        self._settle(group)

    def _encode_failed(self, event: ev.EncodeFailed) -> None:
        group = self.groups[event.group]
        self.counts["encode_errors"] += 1
        group.states[group.plan.k :] = [LOST] * (group.plan.n - group.plan.k)
        self._settle(group)

    # ---- tasks go out

    def _enqueue(self, group: Group, slot: int, role: Role) -> None:
        attempt = Attempt(self.next_task(), group, slot, role)
        group.attempts[slot].append(attempt)
        if group.states[slot] is not SENT:
            self._set_state(group, slot, WAITING)
        lanes = self.lanes(group.version)
        if role == "first" and slot < group.plan.k:
            lanes.add(attempt, DATA)
        elif role == "retry":
            self.counts["retries"] += 1
            lanes.add(attempt, URGENT, first=True)
        elif role == "hedge":
            # In a burst it goes before younger queries, in an overload it does not compete.
            lanes.add(attempt, URGENT if lanes.count(DATA) <= self.fleet.size else HEDGE)
        else:
            lanes.add(attempt, URGENT if group.lost_queries() else PARITY)

    def _set_state(self, group: Group, slot: int, state: SlotState) -> None:
        states = group.states
        was = states[slot]
        if was is not state:
            if WAITING in (was, state) and group.waits_for(slot):
                self.queued += 1 if state is WAITING else -1
            states[slot] = state

    def _withdraw(self, attempt: Attempt) -> None:
        """Gives up an attempt that waits for a worker."""
        self.lanes(attempt.version).discard(attempt)
        self._drop(attempt)

    def _withdraw_all(self, group: Group, slot: int) -> None:
        for attempt in list(group.attempts[slot]):
            if attempt.worker is None:
                self._withdraw(attempt)

    def _drop(self, attempt: Attempt) -> None:
        """Takes an attempt off its slot, which is lost if that was the last one."""
        group, slot = attempt.group, attempt.slot
        left = group.attempts[slot]
        left.remove(attempt)
        if attempt.alarm is not None:
            self.timers.cancel(attempt.alarm)
        if group.states[slot] is ARRIVED:
            return
        if not left:
            self._set_state(group, slot, LOST)
        elif all(other.worker is None for other in left):
            self._set_state(group, slot, WAITING)

    def _dispatch(self) -> None:
        for version in self.fleet.versions():
            while self._dispatch_once(version):
                pass

    def _dispatch_once(self, version: int) -> bool:
        """Sends what can be sent. True: a query was given up, look again: others may need more."""
        lanes = self.lanes(version)
        if not len(lanes) or not self.fleet.has_room(version):
            return False
        for lane in (URGENT, DATA, HEDGE, PARITY, ERRAND):
            skipped = 0
            while lanes.count(lane) > skipped and self.fleet.has_room(version):
                task = lanes.head(lane, skipped + 1)[-1]
                if isinstance(task, Attempt) and self._is_hopeless(task, lanes):
                    self._give_up_hopeless(task)
                    return True
                if lane == URGENT and isinstance(task, Attempt) and not _is_urgent(task):
                    lanes.move(task, PARITY)
                    continue
                worker = self._pick(task)
                if worker is not None:
                    lanes.discard(task)
                    self.send(task, worker)
                else:
                    skipped += 1
                    if skipped == LOOKAHEAD:
                        break
        return False

    def _pick(self, task: Task) -> Worker | None:
        version = task.version
        if isinstance(task, Errand):
            slow_too = self.pace.slow_may_help(version, task.avoid)
            return self.fleet.pick(version, (), task.avoid, slow_too)
        group = task.group
        holders, erred = group.holders(), group.erred[task.slot]
        never: AbstractSet[int] = NOBODY
        if self.fleet.takers(version) >= group.plan.n or task.role == "hedge":
            never = holders
        if erred:
            if self.fleet.others(version, erred):
                never = never | erred
            holders = holders | erred
        slow_too = self.pace.slow_may_help(version, never)
        return self.fleet.pick(version, holders, never, slow_too)

    def send(self, task: Task, worker: Worker) -> None:
        """Gives a worker a task."""
        task.sent_at = self.crew.attended
        if not worker.outstanding:
            self.crew.watch_from_now(worker)
        self.fleet.assign(worker, task)
        if isinstance(task, Attempt):
            model, payload = self._attempt_sent(task)
        else:
            model, payload = task.model, task.payload
        self._out.append(act.Dispatch(worker.index, worker.generation, task.id, model, payload))

    def _attempt_sent(self, attempt: Attempt) -> tuple[str, Any]:
        group, slot = attempt.group, attempt.slot
        self._set_state(group, slot, SENT)
        if attempt.role == "hedge":
            self.counts["hedges"] += 1
        else:
            group.sends[slot] += 1
        if slot >= group.plan.k:
            self.counts["parity_queries"] += 1
        elif attempt.role == "first":
            self.queue_wait.record(self.now - group.queries[slot].since)
            if self.policy.hedge_after is not None:
                self.hedging.query_sent()
                self._plan_hedge(attempt)
        return group.plan.models[slot], group.payloads[slot]

    def _plan_hedge(self, attempt: Attempt) -> None:
        delay = self.hedging.delay()
        if delay is not None:
            at = self.now + max(delay, _LEAST_HEDGE_DELAY_S)
            attempt.alarm = self.timers.set(at, "hedge", attempt)

    def _hedge(self, attempt: Attempt) -> None:
        """A query's task takes long: sends it to another worker too, if the budget allows."""
        attempt.alarm = None
        group = attempt.group
        if self.fleet.takers(group.version) < 2 or not group.waits_for(attempt.slot):
            return
        if self.hedging.take():
            self._enqueue(group, attempt.slot, "hedge")
        else:  # later there may be budget, and only those are left who need it
            self._plan_hedge(attempt)

    # ---- what is hopeless is not computed

    def _usual_service(self) -> float:
        """What a task takes in most cases: a p90, but not a tail's."""
        return min(self.service.quantile(0.9), 2 * self.service.quantile(0.5))

    def _is_hopeless(self, attempt: Attempt, lanes: Lanes) -> bool:
        """Would a query's own result come after its deadline?

        If others wait for the same worker, it must come in time in most cases; else in any case.
        """
        group, slot = attempt.group, attempt.slot
        if slot >= group.plan.k or not group.waits_for(slot):
            return False
        deadline = group.queries[slot].deadline
        if deadline is None:
            return False
        left = deadline - self.now
        if left <= 0:
            return True
        if self.service.count < _FEWEST_TIMES or left >= self.service.quantile(0.9):
            return False
        # Those that came in the same turn do not wait for each other while there is room for all.
        waiting = lanes.count(URGENT) + lanes.count(DATA)
        others_wait = waiting > max(1, self.fleet.with_room(group.version))
        return left < (self._usual_service() if others_wait else self.service.quantile(0.1))

    def _give_up_hopeless(self, attempt: Attempt) -> None:
        query = attempt.group.queries[attempt.slot]
        if attempt.role == "hedge":  # the first one may still come in time
            self._withdraw(attempt)
            self._settle(attempt.group)
            return
        self.counts["hopeless"] += 1
        left = (query.deadline or 0.0) - self.now
        self._fail(
            query,
            "deadline_exceeded",
            f"it waited for a worker until {left:.4f} s before its deadline, too late to be done",
        )
        self._settle(attempt.group)

    # ---- results come back

    def _take_back(
        self, event: ev.ResultArrived | ev.TaskFailed | ev.TaskDropped
    ) -> tuple[Task, Worker] | None:
        """The event's task, now off its worker; None if it is from a dead generation."""
        worker = self.fleet.current(event.worker, event.generation)
        task = worker.outstanding.get(event.task) if worker else None
        if worker is None or task is None:
            self.counts["stale_results"] += 1
            return None
        self.fleet.release(worker, task)
        worker.progress_at = self.crew.attended
        return task, worker

    def _result_arrived(self, event: ev.ResultArrived) -> None:
        taken = self._take_back(event)
        if taken is None:
            return
        task, worker = taken
        worker.deaths = 0
        if isinstance(task, Errand):
            task.purpose.errand_done(task, worker, event.result)
            return
        # A stall of this process is no worker's: by such times every query would look hopeless.
        took = self.crew.attended - task.sent_at
        self.service.add(took)
        if self.policy.hedge_after is not None:
            self.pace.measured(worker, took)
        self.quarantine.succeeded(worker, task)
        self._absorb(task, worker, event.result)
        self._settle(task.group)

    def _absorb(self, attempt: Attempt, worker: Worker, result: Any) -> None:
        """Takes the first result of a slot; those of its other attempts are only counted."""
        group, slot = attempt.group, attempt.slot
        if group.states[slot] is ARRIVED:
            self._drop(attempt)
            self.counts["late_results"] += 1
            return
        self._set_state(group, slot, ARRIVED)
        self._drop(attempt)
        group.arrived += 1
        group.answerers[slot] = (worker.index, worker.generation)
        self._call_off(group, slot)
        self._to_decoder(group, slot, result)
        query = group.queries[slot] if slot < len(group.queries) else group.copies.get(slot)
        if query is not None and not query.done:
            is_second = attempt.role == "hedge" or slot in group.copies
            if is_second:
                self.counts["hedge_wins"] += 1
            self._resolve(query, "hedged" if is_second else "exact", result)
            return
        if group.unanswered == 0 or slot < group.plan.k:
            self.counts["late_results"] += 1
        if query is not None and query.source in _DEGRADED:
            query.source = "exact"  # it is corrected once
            self.counts["corrections"] += 1
            self._out.append(act.Correct(query.id, group.version, result))

    def _to_decoder(self, group: Group, slot: int, result: Any) -> None:
        if group.plan.n == group.plan.k or group.plan.guided:
            return
        if group.closed:
            self._out.append(act.Absorb(group.id, group.version, slot, result))
        else:
            group.results[slot] = result

    def _call_off(self, group: Group, slot: int) -> None:
        """The slot's other attempts are of no use any more."""
        if not group.attempts[slot]:
            return
        for attempt in list(group.attempts[slot]):
            if attempt.worker is None:
                self._withdraw(attempt)
            elif self.policy.tied:
                worker = self.fleet.workers[attempt.worker]
                if next(iter(worker.outstanding)) != attempt.id:  # it waits behind another
                    self.counts["called_off"] += 1
                    self._out.append(act.Cancel(worker.index, worker.generation, attempt.id))

    def _task_failed(self, event: ev.TaskFailed) -> None:
        taken = self._take_back(event)
        if taken is None:
            return
        task, worker = taken
        self.counts["task_errors"] += 1
        if isinstance(task, Attempt):
            self._drop(task)
            self.quarantine.failed(worker, task)
            self._settle(task.group)
        else:
            task.purpose.errand_failed(task, worker)

    def _task_dropped(self, event: ev.TaskDropped) -> None:
        taken = self._take_back(event)
        if taken is not None:
            self.lose([taken[0]])

    def lose(self, tasks: list[Task]) -> None:
        """Tasks whose results will not come."""
        groups: dict[int, Group] = {}
        for task in tasks:
            if isinstance(task, Attempt):
                self._drop(task)
                groups[task.group.id] = task.group
            else:
                task.purpose.errand_lost(task)
        for group in groups.values():
            self._settle(group)

    # ---- conclusions

    def _settle(self, group: Group) -> None:
        """Draws the conclusions of whatever changed in the group: release, send again, give up."""
        is_over = self.rollout.is_over(group.version)
        if group.unanswered and is_over:
            self._move_on(group)
        if group.unanswered and group.closed and group.is_decodable():
            self._release(group)
        elif group.unanswered and group.closed and not is_over:
            self._cover(group)
        elif group.unanswered and not is_over:
            for slot in group.lost_queries():
                if self._may_send(group, slot):
                    self._enqueue(group, slot, "retry")
        self._sweep(group)

    def _release(self, group: Group) -> None:
        """Any `needed` results are in: gives reconstructed answers where the policy allows."""
        at_once = self.policy.release == "eager" or group.plan.recovered == "exact"
        for query in group.queries:
            if query.done:
                continue
            lost = group.states[query.slot] is LOST
            if at_once or lost or query.last_call or group.grace_over:
                self.counts["groups_recovered"] += not group.recovered
                group.recovered = True
                self._resolve(query, group.plan.recovered, None)
        if group.unanswered and self.policy.release == "grace" and group.alarm is None:
            group.alarm = self.timers.set(self.now + self.policy.grace_s, "grace", group)

    def _cover(self, group: Group) -> None:
        """Sends again what the code cannot cover, and fails what can never be answered."""
        lost = group.lost_queries()
        if not lost:
            return
        if PLANNED in group.states:
            self._urgent.append(group)
        for parity in group.attempts[group.plan.k :]:
            for attempt in parity:
                if attempt.lane is not None:
                    self.lanes(group.version).move(attempt, URGENT)
        short = group.plan.needed - group.arrived - group.pending()
        if short <= 0:
            return
        others = [s for s, state in enumerate(group.states) if state is LOST]
        candidates = [s for s in lost if self._may_send(group, s)]
        candidates += [s for s in others if s not in lost and self._may_send(group, s)]
        for slot in candidates[:short]:
            self._enqueue(group, slot, "retry")
        if short > len(candidates):
            for slot in lost:
                if group.states[slot] is LOST:
                    self._fail(
                        group.queries[slot],
                        "unrecoverable",
                        f"lost {group.sends[slot]} times, and so was more of its coding group than "
                        f"the code covers ({group.arrived} of {group.plan.needed} results came)",
                    )

    def _may_send(self, group: Group, slot: int) -> bool:
        return group.sends[slot] <= self.policy.retries and group.payloads[slot] is not None

    def _sweep(self, group: Group) -> None:
        """Gives up waiting tasks that nobody needs any more, then the group itself."""
        queries = group.queries
        for slot, state in enumerate(group.states):
            if state is ARRIVED or (slot < len(queries) and not queries[slot].done):
                continue  # nothing waits there, or it is needed
            if state in (PLANNED, WAITING) and not self._is_needed(group, slot):
                self.counts["parities_dropped"] += slot >= group.plan.k
                self._set_state(group, slot, LOST)
                self._withdraw_all(group, slot)
            elif state is SENT:
                self._withdraw_all(group, slot)
        if (
            group.unanswered == 0
            and group.finished()
            and group.id in self.groups
            and not self.audits.holds(group)
        ):
            self.timers.cancel(group.alarm)
            group.alarm = None
            if group.arrived == group.plan.n > group.plan.k and not group.plan.guided:
                self._inspect(group)
            else:
                self.retire(group)

    def _inspect(self, group: Group) -> None:
        if not group.inspected:
            group.inspected = True
            self._out.append(act.Inspect(group.id, group.version, group.is_full()))

    def _inspected(self, event: ev.Inspected) -> None:
        group = self.groups[event.group]
        if event.alarm:
            self.audits.begin(group, event.slot)
        if not self.audits.holds(group):
            self.retire(group)

    def retire(self, group: Group) -> None:
        """Forgets a group that is finished."""
        if self.groups.pop(group.id, None) is None:
            return
        group.queries = []  # which know it, too: so that they go at once, not by garbage collection
        if group.plan.n > group.plan.k and not group.plan.guided:
            self._out.append(act.Retire(group.id))

    def _is_needed(self, group: Group, slot: int) -> bool:
        """Does anybody wait for this slot's result, for itself or to decode another?"""
        if group.waits_for(slot):
            return True
        if self.rollout.is_over(group.version):
            return False
        if slot in group.copies and not group.copies[slot].done:
            return True
        undecodable = group.unanswered > 0 and not group.is_decodable()
        if slot < group.plan.k:
            return undecodable and bool(group.lost_queries())
        if undecodable and group.parity_can_help():
            return True
        if not self._is_checked(group) or LOST in group.states:
            return False
        unread = self.lanes(group.version).count(PARITY) + len(self._planned)
        return unread <= _UNREAD_PARITIES * self.fleet.size

    # ---- queries end

    def _resolve(self, query: Query, source: Source, result: Any) -> None:
        self.answered[source] += 1
        query.source = source
        self._end(query)
        group = query.group
        self._out.append(act.Resolve(query.id, source, group.id, group.version, query.slot, result))

    def _fail(self, query: Query, failure: act.Failure, reason: str) -> None:
        if self.has_fallback and failure in ("deadline_exceeded", "unrecoverable"):
            self._resolve(query, "fallback", None)
            return
        self.failed[failure] += 1
        self._end(query)
        self._out.append(act.Fail(query.id, failure, reason))

    def _end(self, query: Query) -> None:
        group = query.group
        if group.states[query.slot] is WAITING:
            self.queued -= 1
        query.done = True
        group.unanswered -= 1
        self.timers.cancel(query.alarm)
        del self.queries[query.id]

    def _cancelled(self, event: ev.Cancelled) -> None:
        query = self.queries.get(event.query)
        if query is not None:
            self._fail(query, "cancelled", "its caller cancelled it")
            self._settle(query.group)

    def _last_call(self, query: Query) -> None:
        query.last_call = True
        query.alarm = self.timers.set(query.deadline or 0.0, "deadline", query)
        self._settle(query.group)
        if not query.done and self.has_fallback:
            self._resolve(query, "fallback", None)
            self._settle(query.group)

    def _deadline_passed(self, query: Query) -> None:
        self._fail(query, "deadline_exceeded", "no answer came before its deadline")
        self._settle(query.group)

    def _grace_is_over(self, group: Group) -> None:
        group.alarm = None
        group.grace_over = True
        self._settle(group)

    # ---- versions

    def abandon_version(self, version: int) -> None:
        """No worker of that version takes tasks any more: its queries move on to the next one."""
        for group in [g for g in self.groups.values() if g.version == version]:
            waits = PLANNED in group.states or WAITING in group.states
            if group.unanswered or waits:
                if not group.closed:
                    self._close_group(group)
                else:
                    self._settle(group)
        self.audits.give_up_version(version)

    def _move_on(self, group: Group) -> None:
        """Gives queries whose own task is at no worker to a group of the version that goes on."""
        for query in group.queries:
            slot = query.slot
            if query.done or group.states[slot] not in (WAITING, LOST):
                continue
            if group.is_decodable():
                self._resolve(query, group.plan.recovered, None)
                continue
            self._end(query)
            again = Query(query.id, query.payload, query.deadline, query.bucket, query.doubt)
            again.since = query.since
            self._admit(again)

    def forget_version(self, version: int) -> None:
        """Nothing of that version is left."""
        del self._lanes[version]

    # ---- time, and the end

    def _opened(self, event: ev.Opened) -> None:
        for worker in self.fleet.workers[: self.fleet.size]:
            self.crew.start(worker, self.rollout.target)

    def _timer(self, event: ev.Timer) -> None:
        self._armed = None
        while (due := self.timers.due(self.now)) is not None:
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
        self.timers.set(self.now + event.drain_s, "drain", None)
        for group in list(self._open.values()):
            self._close_group(group)

    def _drain_is_over(self, _: None) -> None:
        for query in list(self.queries.values()):
            if not query.done:
                self._fail(query, "closed", "the server closed before an answer came")
                self._settle(query.group)


def _is_urgent(attempt: Attempt) -> bool:
    """Is it a data slot's, or a parity that a lost query still needs?"""
    return attempt.slot < attempt.group.plan.k or bool(attempt.group.lost_queries())


_DEGRADED = ("reconstructed", "fallback")
