"""The core under tens of thousands of fault schedules, and proof that the fuzzer bites."""

from __future__ import annotations

from typing import Any

import pytest

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.fleet import Fleet, Worker
from codedinv.serving.groups import Attempt, Group, Query, Role, SlotState, Task
from codedinv.serving.lanes import DATA, Lanes
from codedinv.serving.policy import Policy
from tests.serving.fuzz import Found, fuzz

_CHUNKS = 10


@pytest.mark.parametrize("chunk", range(_CHUNKS))
def test_no_fault_schedule_breaks_the_core(chunk: int) -> None:
    assert fuzz(first=chunk * 2_000, count=2_000) > 2_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chunk", range(10))
def test_no_fault_schedule_breaks_the_core_in_half_a_million(chunk: int) -> None:
    fuzz(first=1_000_000 + chunk * 50_000, count=50_000)


class ForgetsErasures(Core):
    """A dead worker's tasks are never given up."""

    def lose(self, tasks: list[Task]) -> None:
        pass


class OverfillsWorkers(Core):
    """A worker gets one task more than it may hold."""

    def __init__(self, plan: Plan, policy: Policy, workers: int, **more: Any) -> None:
        super().__init__(plan, policy, workers, **more)
        self.fleet = Fleet(workers, policy.in_flight + 1)


class SendsOnlyOnce(Core):
    """What the code cannot cover is neither sent again nor failed."""

    def _cover(self, group: Group) -> None:
        pass


class HearsTheDead(Core):
    """What a dead generation still says is taken for an answer."""

    def lose(self, tasks: list[Task]) -> None:
        self.__dict__.setdefault("graves", {}).update({t.id: t for t in tasks})
        super().lose(tasks)

    def _result_arrived(self, event: ev.ResultArrived) -> None:
        task = self.__dict__.get("graves", {}).pop(event.task, None)
        if isinstance(task, Attempt) and task.group.waits_for(task.slot):
            self._resolve(task.group.queries[task.slot], "exact", event.result)
        super()._result_arrived(event)


class RecoversTooEarly(Core):
    """One result fewer than needed counts as decodable."""

    def _settle(self, group: Group) -> None:
        if group.closed and group.unanswered and group.arrived == group.plan.needed - 1:
            self._release(group)
        super()._settle(group)


class AnswersTwice(Core):
    """A late exact result is given as well."""

    def _absorb(self, attempt: Attempt, worker: Worker, result: Any) -> None:
        super()._absorb(attempt, worker, result)
        group, slot = attempt.group, attempt.slot
        if slot < len(group.queries):
            query = group.queries[slot]
            self._out.append(act.Resolve(query.id, "exact", group.id, group.version, slot, result))


class CrowdsAWorker(Core):
    """Slots of a group go wherever there is room."""

    def _pick(self, task: Task) -> Worker | None:
        return self.fleet.pick(task.version, ())


class NeverWatches(Core):
    """A hung worker is left alone."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._on_alarm["watch"] = lambda worker: setattr(worker, "alarm", None)


class ForgetsTheTimer(Core):
    """Asks for a timer once and never again."""

    def _set_timer(self) -> None:
        if self._armed is None and self.now == 0.0:
            super()._set_timer()


class NeverRestarts(Core):
    """A dead worker stays dead."""

    def lose(self, tasks: list[Task]) -> None:
        for worker in self.fleet:
            if worker.state == "dead":
                self.timers.cancel(worker.alarm)
        super().lose(tasks)


class LosesCount(Core):
    """A query that is sent still counts as queued, if it is sent again."""

    def send(self, task: Task, worker: Worker) -> None:
        super().send(task, worker)
        if isinstance(task, Attempt) and task.role == "retry" and task.slot < self.plan.k:
            self.queued += 1


class IgnoresFailedTasks(Core):
    """A task error frees the worker and is forgotten."""

    def _task_failed(self, event: ev.TaskFailed) -> None:
        self._take_back(event)


class LeaksGroups(Core):
    """A group that saw a late result is never retired."""

    def _sweep(self, group: Group) -> None:
        if SlotState.LOST not in group.states:
            super()._sweep(group)


class IgnoresDeadlines(Core):
    """A deadline passes and nothing happens."""

    def _deadline_passed(self, query: Query) -> None:
        pass


class ClosesWithoutTheOpenGroup(Core):
    """Closing forgets the group that is still open, and so do its timers."""

    def _close_requested(self, event: ev.CloseRequested) -> None:
        for group in self._open.values():
            self.timers.cancel(group.alarm)
        self._open, forgotten = {}, self._open
        super()._close_requested(event)
        self._open = forgotten


class RefusesNobody(Core):
    """Counts what it rejects as accepted."""

    def _submitted(self, event: ev.Submitted) -> None:
        rejected = sum(self.rejected.values())
        super()._submitted(event)
        self.counts["accepted"] += sum(self.rejected.values()) - rejected


class HedgesToDeath(Core):
    """No budget for hedges."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.hedging.take = lambda: True  # type: ignore[method-assign]


class SendsTheExpired(Core):
    """A query goes to a worker although its deadline is over."""

    def _is_hopeless(self, attempt: Attempt, lanes: Lanes) -> bool:
        return False


class ParitiesBeforeData(Core):
    """Parities compete with queries."""

    def _enqueue(self, group: Group, slot: int, role: Role) -> None:
        super()._enqueue(group, slot, role)
        for attempt in group.attempts[slot]:
            if slot >= group.plan.k and attempt.lane is not None:
                self.lanes(group.version).move(attempt, DATA)


class BlamesWorkersForStalls(Core):
    """Time that the front end was away counts against workers."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._on_event[ev.Stalled] = lambda event: None


class ForgetsEncodeFailures(Core):
    """A parity that cannot be made is waited for."""

    def _encode_failed(self, event: ev.EncodeFailed) -> None:
        pass


class ForgetsTheFallback(Core):
    """Has a fallback and gives it only after the deadline."""

    def _last_call(self, query: Query) -> None:
        query.last_call = True
        query.alarm = self.timers.set((query.deadline or 0.0) + 0.5, "deadline", query)
        self._settle(query.group)


class RetiresBeforeTheVerdict(Core):
    """A group is forgotten while it is inspected."""

    def _inspect(self, group: Group) -> None:
        super()._inspect(group)
        self.retire(group)


class ForgetsToProbe(Core):
    """A worker in quarantine stays there."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._on_alarm["probe"] = lambda worker: setattr(worker.probation, "alarm", None)


class TrustsTheQuarantined(Core):
    """A worker in quarantine still gets queries."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)

        def set_probation(worker: Worker, probation: Any) -> None:
            worker.probation = probation

        self.fleet.set_probation = set_probation  # type: ignore[method-assign]


class ConvictsTheAnswerer(Core):
    """Whoever gave the first result is taken for the liar."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        compared = self.audits.compared

        def blame(event: ev.Compared) -> None:
            compared(event._replace(agrees=tuple(a for a in event.agrees if a != 0)))

        self._on_event[ev.Compared] = blame


class MixesVersions(Core):
    """A group's tasks go to workers of any version."""

    def _pick(self, task: Task) -> Worker | None:
        for version in self.fleet.versions():
            if version != task.version and isinstance(task, Attempt):
                return self.fleet.pick(version, task.group.holders(), task.group.holders())
        return super()._pick(task)


class LeavesQueriesBehind(Core):
    """Queries of the old version wait for workers that are gone."""

    def abandon_version(self, version: int) -> None:
        pass


class ForgetsWhatWasMerged(Core):
    """Results that came before two groups were merged do not reach the decoder."""

    def _wait_is_over(self, group: Group) -> None:
        super()._wait_is_over(group)
        group.results = {}

    def _close_group(self, group: Group) -> None:
        if self.counts["groups_merged"]:
            group.results = {}
        super()._close_group(group)


class NeverEndsAReload(Core):
    """A worker that is to be replaced is never idle enough."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.rollout._replace_if_idle = lambda worker: None  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "broken",
    [
        ForgetsErasures,
        OverfillsWorkers,
        SendsOnlyOnce,
        HearsTheDead,
        RecoversTooEarly,
        AnswersTwice,
        CrowdsAWorker,
        NeverWatches,
        ForgetsTheTimer,
        NeverRestarts,
        LosesCount,
        IgnoresFailedTasks,
        LeaksGroups,
        IgnoresDeadlines,
        ClosesWithoutTheOpenGroup,
        RefusesNobody,
        HedgesToDeath,
        SendsTheExpired,
        ParitiesBeforeData,
        BlamesWorkersForStalls,
        ForgetsEncodeFailures,
        ForgetsTheFallback,
        RetiresBeforeTheVerdict,
        ForgetsToProbe,
        TrustsTheQuarantined,
        ConvictsTheAnswerer,
        MixesVersions,
        LeavesQueriesBehind,
        ForgetsWhatWasMerged,
        NeverEndsAReload,
    ],
)
def test_the_fuzzer_finds_a_planted_bug(broken: type[Core]) -> None:
    with pytest.raises(Found, match="--seed"):
        fuzz(first=0, count=2_000, core_class=broken)
