"""Workers' lives: started, ready, hung, dead, started again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.fleet import Worker

if TYPE_CHECKING:
    from codedinv.serving.core import Core

_ROUNDING_S = 1e-9  # an alarm set for the time that is left may ring a rounding error early


class Crew:
    """Starts workers, watches them and buries them.

    Their limits run in *attended time*, which stands still while the front end itself is away: a
    worker is not to blame for an answer that nobody was there to read.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._absent = 0.0  # seconds in all

    @property
    def attended(self) -> float:
        """Seconds on a clock that stands still during stalls."""
        return self._core.now - self._absent

    def stalled(self, event: ev.Stalled) -> None:
        """The front end was away."""
        self._core.counts["stalls"] += 1
        self._absent += max(0.0, event.seconds)

    def start(self, worker: Worker, version: int) -> None:
        """Starts the next generation of a worker."""
        core = self._core
        core.timers.cancel(worker.alarm)
        core.pace.forget(worker)
        core.fleet.starting(worker, version)
        core.counts["starts"] += 1
        worker.progress_at = self.attended
        worker.alarm = core.timers.set(core.now + core.policy.start_timeout_s, "start", worker)
        core.emit(act.Restart(worker.index, worker.generation, version))

    def ready(self, event: ev.WorkerReady) -> None:
        """A worker has loaded its models."""
        worker = self._core.fleet.current(event.worker, event.generation)
        if worker is not None and worker.state == "starting":
            self._core.timers.cancel(worker.alarm)
            worker.alarm = None
            self._core.fleet.ready(worker)
            self._core.quarantine.started(worker)
            self._core.rollout.worker_ready(worker)

    def died(self, event: ev.WorkerDied) -> None:
        """A worker ended by itself."""
        worker = self._core.fleet.current(event.worker, event.generation)
        if worker is not None:
            self._bury(worker, event.reason)

    def kill(self, worker: Worker, reason: str) -> None:
        """Ends a worker that hangs, errs or lies."""
        self._core.emit(act.Kill(worker.index, worker.generation, reason))
        self._bury(worker, reason)

    def retire(self, worker: Worker, vacant: bool) -> None:
        """Ends a worker that holds nothing, to be replaced; nobody counts it as a death."""
        core = self._core
        core.timers.cancel(worker.alarm)
        worker.alarm = None
        core.emit(act.Kill(worker.index, worker.generation, "replaced"))
        core.quarantine.pardon(worker)
        core.lose(core.fleet.gone(worker, vacant))
        worker.deaths = worker.lies = 0

    def restart(self, worker: Worker) -> None:
        """The wait after a death is over."""
        worker.alarm = None
        self.start(worker, self._core.rollout.version_to_start(worker))

    def watch_from_now(self, worker: Worker) -> None:
        """It begins a task with nothing before it."""
        worker.progress_at = self.attended
        limit = self._core.policy.hang_timeout_s
        if worker.alarm is None and limit is not None:
            worker.alarm = self._core.timers.set(self._core.now + limit, "watch", worker)

    def watch(self, worker: Worker) -> None:
        """Rings while a worker holds tasks: kills it if none was finished for too long."""
        worker.alarm = None
        limit = self._core.policy.hang_timeout_s
        if not worker.outstanding or limit is None:
            return
        left = worker.progress_at + limit - self.attended
        if left > _ROUNDING_S:
            worker.alarm = self._core.timers.set(self._core.now + left, "watch", worker)
        else:
            self._core.counts["hangs"] += 1
            self.kill(worker, f"no task finished for {limit} s")

    def start_takes_too_long(self, worker: Worker) -> None:
        """Rings at the end of `start_timeout_s`."""
        worker.alarm = None
        left = worker.progress_at + self._core.policy.start_timeout_s - self.attended
        if left > _ROUNDING_S:
            worker.alarm = self._core.timers.set(self._core.now + left, "start", worker)
        else:
            limit = self._core.policy.start_timeout_s
            self.kill(worker, f"not ready {limit} s after its start")

    def _bury(self, worker: Worker, reason: str) -> None:
        """Turns what a worker held into erasures, and plans its restart."""
        core = self._core
        core.counts["deaths"] += 1
        core.timers.cancel(worker.alarm)
        worker.alarm = None
        worker.deaths += 1
        core.quarantine.ended(worker)
        if not core.rollout.worker_died(worker, reason):
            backoff = core.policy.restart_backoff_s * 2.0 ** min(worker.deaths - 1, 60)
            at = core.now + min(backoff, core.policy.restart_backoff_max_s)
            worker.alarm = core.timers.set(at, "restart", worker)
        core.lose(core.fleet.gone(worker, vacant=worker.alarm is None))
