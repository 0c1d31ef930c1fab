"""The core under tens of thousands of fault schedules, and proof that the fuzzer bites."""

from __future__ import annotations

import pytest

from codedinv.schemes import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.fleet import Fleet, Worker
from codedinv.serving.groups import Group, Query, SlotState, Task
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

    def _bury(self, worker: Worker) -> None:
        died = self.fleet.died
        self.fleet.died = lambda w: died(w) and []  # type: ignore[method-assign]
        super()._bury(worker)
        self.fleet.died = died  # type: ignore[method-assign]


class OverfillsWorkers(Core):
    """A worker gets one task more than it may hold."""

    def __init__(self, plan: Plan, policy: Policy, workers: int) -> None:
        super().__init__(plan, policy, workers)
        self.fleet = Fleet(workers, policy.in_flight + 1)


class SendsOnlyOnce(Core):
    """What the code cannot cover is neither sent again nor failed."""

    def _cover(self, group: Group) -> None:
        pass


class HearsTheDead(Core):
    """What a dead generation still says is taken for an answer."""

    def _bury(self, worker: Worker) -> None:
        self.__dict__.setdefault("graves", {}).update(worker.outstanding)
        super()._bury(worker)

    def _result_arrived(self, event: ev.ResultArrived) -> None:
        task = self.__dict__.get("graves", {}).pop(event.task, None)
        if task is not None and task.group.waits_for(task.slot):
            self._resolve(task.group.queries[task.slot], "exact", event.result)
        super()._result_arrived(event)


class RecoversTooEarly(Core):
    """One result fewer than needed counts as decodable."""

    def _settle(self, group: Group) -> None:
        if group.closed and group.unanswered and group.arrived == self.plan.needed - 1:
            self._release(group)
        super()._settle(group)


class AnswersTwice(Core):
    """A late exact result is given as well."""

    def _result_arrived(self, event: ev.ResultArrived) -> None:
        worker = self.fleet.current(event.worker, event.generation)
        task = worker.outstanding.get(event.task) if worker else None
        super()._result_arrived(event)
        if task is not None and task.slot < len(task.group.queries):
            query = task.group.queries[task.slot]
            self._out.append(act.Resolve(query.id, "exact", task.group.id, task.slot, event.result))


class CrowdsAWorker(Core):
    """Slots of a group go wherever there is room."""

    def _dispatch(self) -> None:
        pick = self.fleet.pick
        self.fleet.pick = lambda avoid, strict: pick((), strict)  # type: ignore[method-assign]
        super()._dispatch()


class NeverWatches(Core):
    """A hung worker is left alone."""

    def _watch(self, worker: Worker) -> None:
        worker.alarm = None


class ForgetsTheTimer(Core):
    """Asks for a timer once and never again."""

    def _set_timer(self) -> None:
        if self._armed is None and self._now == 0.0:
            super()._set_timer()


class NeverRestarts(Core):
    """A dead worker stays dead."""

    def _bury(self, worker: Worker) -> None:
        super()._bury(worker)
        self.timers.cancel(worker.alarm)


class LosesCount(Core):
    """A query that is sent still counts as queued, if it is sent again."""

    def _send(self, task: Task, worker: Worker) -> None:
        super()._send(task, worker)
        if task.group.sends[task.slot] > 1 and task.slot < self.plan.k:
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
        if self._open is not None:
            self.timers.cancel(self._open.alarm)
        self._open, open_group = None, self._open
        super()._close_requested(event)
        self._open = open_group


class RefusesNobody(Core):
    """Counts what it rejects as accepted."""

    def _submitted(self, event: ev.Submitted) -> None:
        rejected = sum(self.rejected.values())
        super()._submitted(event)
        self.counts["accepted"] += sum(self.rejected.values()) - rejected


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
    ],
)
def test_the_fuzzer_finds_a_planted_bug(broken: type[Core]) -> None:
    with pytest.raises(Found, match="--seed"):
        fuzz(first=0, count=1_000, core_class=broken)
