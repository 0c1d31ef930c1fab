"""Who lies? Groups whose results contradict each other are run again on other workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.fleet import Worker
from codedinv.serving.groups import Errand, Group
from codedinv.serving.lanes import ERRAND
from codedinv.serving.timers import Alarm

if TYPE_CHECKING:
    from codedinv.serving.core import Core

_AT_ONCE = 2  # audits; each costs n tasks, and one finds a liar
_RUNS = 5  # of a slot; if no two of so many agree, no vote will tell
_LONGEST_S = 30.0  # then workers are too scarce to find out


class _Run(NamedTuple):
    """One result of a slot: who gave it, and what."""

    worker: int
    generation: int
    result: Any


class _Audit:
    """The audit of one group; the purpose of its errands."""

    def __init__(self, audits: Audits, group: Group, slots: list[int], alarm: Alarm) -> None:
        self._audits = audits
        self.group = group
        self.open = set(slots)  # slots not settled yet
        self.losses = 0
        self.alarm = alarm
        self.runs: dict[int, list[_Run]] = {}
        for slot in slots:
            answerer = group.answerers[slot]
            if answerer is not None:
                self.runs[slot] = [_Run(*answerer, None)]

    def errand(self, task: int, slot: int) -> Errand:
        """One more run of a slot, by a worker that had no part in it yet."""
        group = self.group
        avoid = frozenset(run.worker for run in self.runs[slot])
        model, payload = group.plan.models[slot], group.payloads[slot]
        run = len(self.runs[slot])
        return Errand(task, group.version, model, payload, self, avoid, slot, run)

    def errand_done(self, errand: Errand, worker: Worker, result: Any) -> None:
        """A slot was run again."""
        self._audits.run_done(self, errand, worker, result)

    def errand_failed(self, errand: Errand, worker: Worker) -> None:
        """A worker could not do it."""
        self._audits.run_lost(self, errand)

    def errand_lost(self, errand: Errand) -> None:
        """The worker died of it."""
        self._audits.run_lost(self, errand)


class Audits:
    """Runs the slots of an inconsistent group again, until a majority says which result is wrong.

    A result is wrong if two others of the same slot, by two other workers, agree with each other
    and not with it. Its worker is convicted, if it still is the same generation.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._running: dict[int, _Audit] = {}

    def holds(self, group: Group) -> bool:
        """Is the group still needed for its audit?"""
        return group.id in self._running

    def begin(self, group: Group, suspect: int | None) -> None:
        """Audits a group; of one suspect slot, or of all."""
        core = self._core
        core.counts["suspected_corruption"] += 1
        if len(self._running) >= _AT_ONCE or core.fleet.takers(group.version) < 2:
            core.counts["audits_skipped"] += 1
            return
        slots = [suspect] if suspect is not None else list(range(group.plan.n))
        slots = [s for s in slots if group.answerers[s] is not None]
        alarm = core.timers.set(core.now + _LONGEST_S, "audit", group)
        audit = _Audit(self, group, slots, alarm)
        self._running[group.id] = audit
        core.counts["audits"] += 1
        for slot in slots:
            self._run_again(audit, slot)
        self._close_if_done(audit)

    def compared(self, event: ev.Compared) -> None:
        """A run was compared with those before it."""
        audit = self._running.get(event.group)
        if audit is None or event.slot not in audit.open:
            return
        runs = audit.runs[event.slot]
        if event.run == 1 and 0 in event.agrees:
            audit.open.discard(event.slot)
        elif event.run > 1 and event.agrees:
            audit.open.discard(event.slot)
            self._convict(audit, event, runs)
        else:
            self._run_again(audit, event.slot)
        self._close_if_done(audit)

    def out_of_time(self, group: Group) -> None:
        """Ends an audit that takes too long."""
        audit = self._running.get(group.id)
        if audit is not None:
            self._give_up(audit)

    def give_up_version(self, version: int) -> None:
        """No worker of that version is left to ask."""
        for audit in list(self._running.values()):
            if audit.group.version == version:
                self._give_up(audit)

    def run_done(self, audit: _Audit, errand: Errand, worker: Worker, result: Any) -> None:
        """A slot was run again."""
        group = audit.group
        if not self.holds(group) or errand.slot not in audit.open:
            return
        audit.runs[errand.slot].append(_Run(worker.index, worker.generation, result))
        self._core.emit(act.Compare(group.id, group.version, errand.slot, errand.run, result))

    def run_lost(self, audit: _Audit, errand: Errand) -> None:
        """A run was lost with its worker, or failed."""
        if not self.holds(audit.group) or errand.slot not in audit.open:
            return
        audit.losses += 1
        if audit.losses > 2 * audit.group.plan.n:
            self._give_up(audit)
        else:
            self._run_again(audit, errand.slot)
            self._close_if_done(audit)

    # ---- within

    def _run_again(self, audit: _Audit, slot: int) -> None:
        core, group = self._core, audit.group
        errand = audit.errand(core.next_task(), slot)
        if errand.run >= _RUNS or not core.fleet.others(group.version, errand.avoid):
            audit.open.discard(slot)
            core.counts["audits_undecided"] += 1
        else:
            core.lanes(group.version).add(errand, ERRAND)

    def _convict(self, audit: _Audit, event: ev.Compared, runs: list[_Run]) -> None:
        group, core = audit.group, self._core
        queries = group.queries[event.slot : event.slot + 1]  # now: a conviction may end the audit
        for number, run in enumerate(runs[: event.run]):
            if number not in event.agrees:
                worker = core.fleet.current(run.worker, run.generation)
                if worker is not None:
                    core.quarantine.convict(worker)
        if 0 not in event.agrees and queries and queries[0].source is not None:
            core.counts["corrections"] += 1
            core.emit(act.Correct(queries[0].id, group.version, runs[event.run].result))

    def _close_if_done(self, audit: _Audit) -> None:
        if not audit.open and self.holds(audit.group):
            self._give_up(audit)

    def _give_up(self, audit: _Audit) -> None:
        """Ends an audit, with whatever it found."""
        core, group = self._core, audit.group
        del self._running[group.id]
        core.timers.cancel(audit.alarm)
        lanes = core.lanes(group.version)
        for task in [t for t in lanes if isinstance(t, Errand) and t.purpose is audit]:
            lanes.discard(task)
        core.retire(group)
