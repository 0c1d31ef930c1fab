"""The workers as the core sees them: who is alive, who has room, who is late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Literal

from codedinv.serving.groups import Task
from codedinv.serving.timers import Alarm

WorkerState = Literal["vacant", "starting", "ready", "dead"]
Room = OrderedDict[int, "Worker"]


class Worker:
    """One worker. A restart makes a new generation; what an older one says is not heard."""

    __slots__ = (
        "alarm",
        "deaths",
        "failures",
        "generation",
        "index",
        "lag",
        "leaving",
        "lies",
        "outstanding",
        "pace",
        "pace_alarm",
        "probation",
        "progress_at",
        "room",
        "slow",
        "state",
        "version",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.generation = 0
        self.version = 0
        self.state: WorkerState = "vacant"
        self.outstanding: dict[int, Task] = {}
        self.progress_at = 0.0  # when it last began or finished a task, in attended time
        self.deaths = 0  # since it last finished a task
        self.failures = 0  # tasks failed since it last finished one
        self.lies = 0  # wrong results it was convicted of, over all generations
        self.probation: Probation | None = None  # in quarantine
        self.pace: float | None = None  # moving average of its service times
        self.lag = 0  # how many more of its tasks were slow than were not, lately
        self.slow = False  # gets queries only where no other worker has room
        self.pace_alarm: Alarm | None = None  # while slow: when it is tried again
        self.leaving = False  # gets no more tasks, to be replaced
        self.alarm: Alarm | None = None  # starting: too slow; ready: hangs; dead: restart
        self.room: Room | None = None  # where `Fleet` keeps it while it may be picked

    @property
    def takes_tasks(self) -> bool:
        """May callers' queries go to it?"""
        return self.state == "ready" and self.probation is None and not self.leaving


class Probation:
    """A worker's time in quarantine: it must answer probes before it gets queries again."""

    __slots__ = ("alarm", "failed", "interval", "passed")

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.passed = 0  # probes in a row
        self.failed = 0  # since it was last started
        self.alarm: Alarm | None = None


class Fleet:
    """All workers, and those with room sorted by load, so that a pick costs the same for 10,000.

    Within a load the longest unused comes first, which spreads a group over workers by itself.
    Slow workers come after all others.

    Args:
        workers: how many; one more index, `spare`, is vacant except while workers are replaced.
        in_flight: tasks a worker holds at most.
    """

    def __init__(self, workers: int, in_flight: int) -> None:
        self.workers = [Worker(i) for i in range(workers + 1)]
        self.size = workers
        self._in_flight = in_flight
        self._rooms: dict[int, list[Room]] = {}
        self._with_room: dict[int, int] = {}  # workers in the rooms
        self._takers: dict[int, int] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers)

    @property
    def spare(self) -> Worker:
        """The worker beyond the first `size`."""
        return self.workers[-1]

    def takers(self, version: int) -> int:
        """How many workers of that version take queries."""
        return self._takers.get(version, 0)

    def versions(self) -> list[int]:
        """Versions that have workers which take queries."""
        return [version for version, takers in self._takers.items() if takers]

    def load(self, version: int) -> int:
        """Tasks at the workers of that version which take queries."""
        return sum(
            len(w.outstanding) for w in self.workers if w.version == version and w.takes_tasks
        )

    def current(self, worker: int, generation: int) -> Worker | None:
        """The worker, if that is its generation and it is alive."""
        w = self.workers[worker]
        return w if w.generation == generation and w.state in ("starting", "ready") else None

    def has_room(self, version: int) -> bool:
        """Can any worker of that version take a task?"""
        return self._with_room.get(version, 0) > 0

    def with_room(self, version: int) -> int:
        """How many workers of that version can take a task."""
        return self._with_room.get(version, 0)

    def pick(
        self,
        version: int,
        avoid: Collection[int],
        never: Collection[int] = (),
        slow: bool = True,
    ) -> Worker | None:
        """The least loaded worker with room; slow ones after all others.

        Args:
            version: of the model it runs.
            avoid: workers taken only if there is no other; a handful.
            never: workers not taken at all; a handful.
            slow: may a slow worker be taken?
        """
        second_best = None
        rooms = self._rooms.get(version, [])
        for room in rooms if slow else rooms[: self._in_flight]:
            for index, worker in room.items():
                if index in never:
                    continue
                if index not in avoid:
                    return worker
                second_best = second_best or worker
        return second_best

    def others(self, version: int, than: Collection[int]) -> bool:
        """Does any worker of that version outside `than` take queries, with room or without?"""
        among = sum(
            1 for i in than if self.workers[i].takes_tasks and self.workers[i].version == version
        )
        return self.takers(version) > among

    # ---- changes of a worker's state; each keeps the rooms true

    def starting(self, worker: Worker, version: int) -> None:
        """The worker's next generation is being started."""
        worker.generation += 1
        worker.version = version
        worker.state = "starting"
        worker.failures = 0

    def ready(self, worker: Worker) -> None:
        """The worker has loaded its models."""
        worker.state = "ready"
        self._file(worker)
        self._count(worker, +1)

    def set_probation(self, worker: Worker, probation: Probation | None) -> None:
        """Puts the worker into quarantine or lets it out."""
        self._withdraw(worker)
        worker.probation = probation
        self._admit(worker)

    def set_slow(self, worker: Worker, slow: bool) -> None:
        """Puts the worker behind all others, or among them again."""
        self._unfile(worker)
        worker.slow = slow
        self._file(worker)

    def set_leaving(self, worker: Worker, leaving: bool) -> None:
        """The worker is to end once it has nothing left to do."""
        self._withdraw(worker)
        worker.leaving = leaving
        self._admit(worker)

    def assign(self, worker: Worker, task: Task) -> None:
        """The task goes to the worker."""
        task.worker = worker.index
        worker.outstanding[task.id] = task
        self._refile(worker)

    def release(self, worker: Worker, task: Task) -> None:
        """The worker gave the task back: done, failed or dropped."""
        del worker.outstanding[task.id]
        self._refile(worker)

    def gone(self, worker: Worker, vacant: bool = False) -> list[Task]:
        """The worker is dead, or its place `vacant`; returns what it held."""
        self._withdraw(worker)
        worker.state = "vacant" if vacant else "dead"
        worker.leaving = False
        lost = list(worker.outstanding.values())
        worker.outstanding.clear()
        return lost

    def _withdraw(self, worker: Worker) -> None:
        self._unfile(worker)
        self._count(worker, -1)

    def _admit(self, worker: Worker) -> None:
        self._file(worker)
        self._count(worker, +1)

    def _count(self, worker: Worker, change: int) -> None:
        if worker.takes_tasks:
            self._takers[worker.version] = self._takers.get(worker.version, 0) + change

    def _refile(self, worker: Worker) -> None:
        """Puts the worker where its load has it now."""
        load, room = len(worker.outstanding), worker.room
        if room is not None and load < self._in_flight:  # it stays among those with room
            del room[worker.index]
            room = self._rooms[worker.version][load + self._in_flight * worker.slow]
            room[worker.index] = worker
            worker.room = room
        else:
            self._unfile(worker)
            self._file(worker)

    def _file(self, worker: Worker) -> None:
        load, version = len(worker.outstanding), worker.version
        if worker.takes_tasks and load < self._in_flight:
            rooms = self._rooms.get(version)
            if rooms is None:
                rooms = [OrderedDict() for _ in range(2 * self._in_flight)]
                self._rooms[version] = rooms
            worker.room = rooms[load + self._in_flight * worker.slow]
            worker.room[worker.index] = worker
            self._with_room[version] = self._with_room.get(version, 0) + 1

    def _unfile(self, worker: Worker) -> None:
        if worker.room is not None:
            del worker.room[worker.index]
            worker.room = None
            self._with_room[worker.version] -= 1
