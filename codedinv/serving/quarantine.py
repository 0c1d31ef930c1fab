"""Workers that err: out of the traffic, probed, and back once they answer.

A worker that fails at once is always idle, so without this it would draw the traffic. As Envoy's
outlier detection, with probes of our own in place of a timed return.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedinv.serving.fleet import Probation, Worker
from codedinv.serving.groups import Attempt, Errand

if TYPE_CHECKING:
    from codedinv.serving.core import Core

_PROBES_TO_PASS = 3  # one that errs half of the time passes one in eight
_PROBES_TO_FAIL = 5  # then it is restarted
_SLOWEST = 4  # times `probe_interval_s`, between probes that fail
_BEYOND_HELP = 3  # times `quarantine_after`: restarted where no more may be quarantined


class Quarantine:
    """Decides which workers callers' queries are kept from.

    A query that fails on two workers is itself to blame, and neither worker is.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._samples: dict[int, tuple[str, Any]] = {}  # version -> model and query that worked

    def succeeded(self, worker: Worker, attempt: Attempt) -> None:
        """The worker did a task."""
        worker.failures = 0
        group = attempt.group
        self._samples[group.version] = (
            group.plan.models[attempt.slot],
            group.payloads[attempt.slot],
        )

    def sample(self, version: int) -> tuple[str, Any] | None:
        """Model and query of a task that worked; None if none did yet."""
        return self._samples.get(version)

    def failed(self, worker: Worker, attempt: Attempt) -> None:
        """The worker could not do a task, or its result was unusable."""
        of_group = attempt.group.erred
        erred = of_group[attempt.slot]
        if worker.index in erred:
            return
        erred = of_group[attempt.slot] = erred | {worker.index}
        if len(erred) == 2:
            for index in erred - {worker.index}:
                other = self._core.fleet.workers[index]
                other.failures = max(0, other.failures - 1)
        if len(erred) > 1:
            return
        worker.failures += 1
        after = self._core.policy.quarantine_after
        if worker.failures < after:
            return
        if self._may_quarantine(worker):
            self._isolate(worker)
            self._rest(worker)
        elif worker.failures >= _BEYOND_HELP * after:
            self._core.crew.kill(worker, f"it failed {worker.failures} tasks in a row")

    def convict(self, worker: Worker) -> None:
        """The worker gave a wrong result: restarted, and probed before it gets queries again.

        Probes do not compare results; what a restart does not mend is found out again.
        """
        self._core.counts["corrupt_results"] += 1
        worker.lies += 1
        worker.deaths = max(worker.deaths, worker.lies - 1)  # a longer and longer wait
        if self._may_quarantine(worker):
            self._isolate(worker)
        self._core.crew.kill(worker, "its result contradicts what others gave for the same query")

    def started(self, worker: Worker) -> None:
        """A worker in quarantine was restarted and is ready."""
        if worker.probation is not None:
            worker.probation.failed = 0
            self.probe(worker)

    def ended(self, worker: Worker) -> None:
        """The worker died, or its place is vacant: no probe before it is back."""
        if worker.probation is not None:
            self._core.timers.cancel(worker.probation.alarm)
            worker.probation.alarm = None
            worker.probation.passed = 0

    def pardon(self, worker: Worker) -> None:
        """Lets a worker out of quarantine."""
        if worker.probation is not None:
            self._core.timers.cancel(worker.probation.alarm)
            self._core.fleet.set_probation(worker, None)
            worker.failures = 0

    def probe(self, worker: Worker) -> None:
        """Sends a copy of a query that worked elsewhere; nobody waits for the answer."""
        core, probation = self._core, worker.probation
        if probation is None or worker.state != "ready":
            return
        probation.alarm = None
        sample = self.sample(worker.version)
        if sample is None:
            self.pardon(worker)  # there was never an answer: nothing to compare it with
        elif len(worker.outstanding) >= core.policy.in_flight:
            self._rest(worker)
        else:
            model, payload = sample
            core.counts["probes"] += 1
            core.send(Errand(core.next_task(), worker.version, model, payload, self), worker)

    # ---- as the purpose of an errand

    def errand_done(self, errand: Errand, worker: Worker, result: Any) -> None:
        """A probe was answered."""
        if worker.probation is None:
            return
        worker.probation.passed += 1
        worker.probation.failed = 0
        if worker.probation.passed >= _PROBES_TO_PASS:
            self.pardon(worker)
        else:
            self.probe(worker)

    def errand_failed(self, errand: Errand, worker: Worker) -> None:
        """A probe failed."""
        probation = worker.probation
        if probation is None:
            return
        probation.passed = 0
        probation.failed += 1
        longest = _SLOWEST * self._core.policy.probe_interval_s
        probation.interval = min(2 * probation.interval, longest)
        if probation.failed >= _PROBES_TO_FAIL:
            self._core.crew.kill(worker, f"it failed {probation.failed} probes in a row")
        else:
            self._rest(worker)

    def errand_lost(self, errand: Errand) -> None:
        """The worker died of a probe; it is probed again when it is back."""

    def _may_quarantine(self, worker: Worker) -> bool:
        """At most half of the workers: if more err, it is not the workers."""
        fleet = self._core.fleet
        inside = sum(w.probation is not None for w in fleet)
        return worker.probation is not None or inside < fleet.size // 2

    def _isolate(self, worker: Worker) -> None:
        if worker.probation is None:
            self._core.counts["quarantines"] += 1
            probation = Probation(self._core.policy.probe_interval_s)
            self._core.fleet.set_probation(worker, probation)

    def _rest(self, worker: Worker) -> None:
        """Probes it again after its interval."""
        if worker.probation is not None:
            at = self._core.now + worker.probation.interval
            self._core.timers.cancel(worker.probation.alarm)
            worker.probation.alarm = self._core.timers.set(at, "probe", worker)
