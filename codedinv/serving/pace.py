"""Workers that are always slow: hedging alone cannot cover one.

A slow worker is idle as often as any other while traffic is low, and then takes its full share: a
fifth of the queries with five workers, far above any budget for hedges, and above the p95 at which
they would be sent. So a server that hedges also gives such a worker queries only when waiting for
another would take longer, and tries it with copies of queries that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from codedinv.serving.fleet import Worker
from codedinv.serving.groups import Errand
from codedinv.serving.lanes import DATA, URGENT

if TYPE_CHECKING:
    from codedinv.serving.core import Core

_SLOW = 3.0  # times the fleet's median service time
_OFTEN = 2  # slow tasks more than fast ones; a single one is what hedges are for
_WEIGHT = 0.5  # of the newest time in a worker's moving average
_FEWEST = 8  # service times of the fleet, before anybody is called slow


class Pace:
    """Decides which workers are slow, if the policy hedges at all."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._slow: dict[int, Worker] = {}

    def slow_may_help(self, version: int, never: Collection[int]) -> bool:
        """Would even a slow worker do a task sooner than the others, apart from those that must
        not: so many tasks wait, or there is no other?"""
        if not self._slow:
            return True
        slow = [w for w in self._slow.values() if w.version == version and w.takes_tasks]
        if not slow:
            return True
        core = self._core
        if not core.fleet.others(version, {w.index for w in slow}.union(never)):
            return True
        lanes = core.lanes(version)
        others = core.fleet.takers(version) - len(slow)
        wait = (lanes.count(URGENT) + lanes.count(DATA)) * core.service.quantile(0.5)
        return wait >= others * min(w.pace or 0.0 for w in slow)

    def measured(self, worker: Worker, seconds: float) -> None:
        """A worker finished a task in so much time."""
        core = self._core
        if core.policy.hedge_after is None or core.service.count < _FEWEST:
            return
        pace = seconds if worker.pace is None else worker.pace
        worker.pace = _WEIGHT * seconds + (1 - _WEIGHT) * pace
        step = 1 if seconds > _SLOW * core.service.quantile(0.5) else -1
        worker.lag = min(max(worker.lag + step, 0), _OFTEN)
        is_slow = worker.lag == _OFTEN or (worker.slow and worker.lag > 0)
        if is_slow != worker.slow:
            core.fleet.set_slow(worker, is_slow)
            self._slow.pop(worker.index, None)
            if is_slow:
                self._slow[worker.index] = worker
                core.counts["found_slow"] += 1
                self._try_later(worker)

    def probe(self, worker: Worker) -> None:
        """Tries whether a slow worker still is; the copy is paid from the budget of hedges."""
        worker.pace_alarm = None
        if not worker.slow or worker.state != "ready":
            return
        core = self._core
        sample = core.quarantine.sample(worker.version)
        if sample is not None and not worker.outstanding and core.hedging.take():
            core.counts["probes"] += 1
            core.send(Errand(core.next_task(), worker.version, *sample, self), worker)
        self._try_later(worker)

    def errand_done(self, errand: Errand, worker: Worker, result: Any) -> None:
        """A slow worker's probe was answered."""
        self.measured(worker, self._core.crew.attended - errand.sent_at)

    def errand_failed(self, errand: Errand, worker: Worker) -> None:
        """It failed; whoever waits for nothing loses nothing."""

    def errand_lost(self, errand: Errand) -> None:
        """The worker died of it."""

    def forget(self, worker: Worker) -> None:
        """The worker is started anew."""
        self._core.timers.cancel(worker.pace_alarm)
        worker.pace = worker.pace_alarm = None
        worker.slow = False
        worker.lag = 0
        self._slow.pop(worker.index, None)

    def _try_later(self, worker: Worker) -> None:
        self._core.timers.cancel(worker.pace_alarm)
        at = self._core.now + self._core.policy.probe_interval_s
        worker.pace_alarm = self._core.timers.set(at, "pace", worker)
