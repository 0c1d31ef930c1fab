"""A new version of the model, worker by worker, while queries go on.

The spare worker starts first with the new version. Once it is ready, a worker of the old one gets
no more tasks, ends when it has none left, and starts again with the new version; then the next.
Each group belongs to one version, and only workers of that version ever see it. While both serve,
queries are spread by how busy the workers of each are.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from codedinv.schemes.scheme import Plan
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.fleet import Worker

if TYPE_CHECKING:
    from codedinv.serving.core import Core


class Rollout:
    """Which version is served, and which is being brought out."""

    def __init__(self, core: Core, plan: Plan) -> None:
        self._core = core
        self._plans = {0: plan}
        self.target = 0  # the version that is, or is to be, served by all
        self.old: int | None = None  # the version that is being replaced
        self._proven = False  # a worker has been ready with the new version
        self.waiting: deque[ev.ReloadRequested] = deque()  # for the present one to end

    @property
    def under_way(self) -> bool:
        """Are there workers of two versions?"""
        return self.old is not None

    def plan(self, version: int) -> Plan:
        """The coding group of a version."""
        return self._plans[version]

    def request(self, event: ev.ReloadRequested) -> None:
        """Begins to bring out a version, after those asked for before."""
        self.waiting.append(event)
        self._begin_next()

    def version_for_query(self) -> int:
        """Where a query that just came will be served soonest."""
        if self.old is None:
            return self.target
        versions = [v for v in (self.old, self.target) if self._core.fleet.takers(v)]
        if not versions:
            return self.target if self._proven else self.old
        return min(versions, key=self._busyness)

    def version_to_start(self, worker: Worker) -> int:
        """What a worker that is restarted is to run."""
        if self.old is not None and not self._proven and worker is not self._core.fleet.spare:
            return self.old
        return self.target

    def is_over(self, version: int) -> bool:
        """Will no worker of that version take a query any more?"""
        if version == self.target or (version == self.old and not self._proven):
            return False
        return not self._core.fleet.takers(version)

    def worker_ready(self, worker: Worker) -> None:
        """A worker is ready; one of the new version proves that it can be."""
        self._proven |= self.old is not None and worker.version == self.target

    def worker_died(self, worker: Worker, reason: str) -> bool:
        """True: the worker is not to be restarted."""
        if worker is not self._core.fleet.spare:
            return False
        if self.old is not None and not self._proven:
            failed, self.target, self.old = self.target, self.old, None
            del self._plans[failed]
            self._core.counts["reloads_failed"] += 1
            self._core.emit(act.ReloadFailed(failed, reason))
            return True
        return self.old is None or not self._old_workers()

    def advance(self) -> None:
        """Takes the next step, if its time has come; called after every event while there is an old
        version or one waits."""
        if self.old is None:
            self._begin_next()
        if self.old is None or not self._proven:
            return
        leaving = [w for w in self._core.fleet if w.leaving]
        if leaving:
            self._replace_if_idle(leaving[0])
        elif (old := self._old_workers()) and self._settled():
            self._let_go(min(old, key=_worth))
        elif not old and self._settled():
            self._finish(self.old)
        if self.old is not None and self.is_over(self.old):
            self._core.abandon_version(self.old)

    # ---- within

    def _begin_next(self) -> None:
        if self.old is not None or not self.waiting:
            return
        event = self.waiting.popleft()
        self._plans[event.version] = event.plan
        self.old, self.target, self._proven = self.target, event.version, False
        self._core.crew.start(self._core.fleet.spare, event.version)

    def _busyness(self, version: int) -> float:
        core = self._core
        tasks = len(core.lanes(version)) + core.fleet.load(version) + 1
        return tasks / core.fleet.takers(version)

    def _regular(self) -> list[Worker]:
        return self._core.fleet.workers[:-1]

    def _old_workers(self) -> list[Worker]:
        """Workers still to be replaced. A dead one is not: it is restarted as the new version."""
        alive = ("starting", "ready")
        return [w for w in self._regular() if w.version == self.old and w.state in alive]

    def _settled(self) -> bool:
        """Is every worker that was replaced ready, so that the next one can go?"""
        new = (w for w in self._core.fleet if w.version == self.target)
        dead = any(w.state == "dead" for w in self._regular())
        return not dead and all(w.state in ("ready", "vacant") for w in new)

    def _let_go(self, worker: Worker) -> None:
        if worker.state == "starting":
            self._replace(worker)
        else:
            self._core.fleet.set_leaving(worker, True)
            self._replace_if_idle(worker)

    def _replace_if_idle(self, worker: Worker) -> None:
        if not worker.outstanding:
            self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        is_spare = worker is self._core.fleet.spare
        self._core.crew.retire(worker, vacant=is_spare)
        if not is_spare:
            self._core.crew.start(worker, self.target)

    def _finish(self, old: int) -> None:
        """All are replaced: the spare goes, then the old version once nothing of it is left."""
        spare = self._core.fleet.spare
        if spare.state == "ready":
            self._core.fleet.set_leaving(spare, True)
            self._replace_if_idle(spare)
        if spare.state == "vacant" and not self._core.has_groups(old):
            self._core.forget_version(old)
            del self._plans[old]
            self.old = None
            self._core.counts["reloads"] += 1
            self._core.emit(act.Reloaded(self.target))
            self._begin_next()  # now: on an idle server nothing else may happen for long


def _worth(worker: Worker) -> tuple[bool, bool, int]:
    """Whom to let go first: who does not serve, then who has least to finish."""
    return worker.state == "ready", worker.probation is None, len(worker.outstanding)
