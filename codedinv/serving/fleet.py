"""The workers as the core sees them: who is alive, who has room, who is late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Literal

from codedinv.serving.groups import Task
from codedinv.serving.timers import Alarm

WorkerState = Literal["starting", "ready", "dead"]


class Worker:
    """One worker. A restart makes a new generation; what an older one says is not heard."""

    __slots__ = ("alarm", "deaths", "generation", "index", "outstanding", "progress_at", "state")

    def __init__(self, index: int) -> None:
        self.index = index
        self.generation = 0
        self.state: WorkerState = "dead"
        self.outstanding: dict[int, Task] = {}
        self.progress_at = 0.0  # when it last began or finished a task
        self.deaths = 0  # since it last finished a task
        self.alarm: Alarm | None = None  # starting: too slow; ready: hangs; dead: restart


class Fleet:
    """All workers, and those with room sorted by load, so that a pick costs the same for 10,000.

    Within a load the longest unused comes first, which spreads a group over workers by itself.
    """

    def __init__(self, workers: int, in_flight: int) -> None:
        self.workers = [Worker(i) for i in range(workers)]
        self.alive = 0
        self._room: list[OrderedDict[int, Worker]] = [OrderedDict() for _ in range(in_flight)]

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.workers)

    def current(self, worker: int, generation: int) -> Worker | None:
        """The worker, if that is its generation and it is not dead."""
        w = self.workers[worker]
        return w if w.generation == generation and w.state != "dead" else None

    def has_room(self) -> bool:
        """Can any worker take a task?"""
        return any(self._room)

    def pick(self, avoid: Collection[int], strict: bool) -> Worker | None:
        """The least loaded worker with room, outside `avoid` if there is one.

        Args:
            avoid: workers that hold a slot of the task's group; a handful.
            strict: None rather than one of `avoid`.
        """
        second_best = None
        for level in self._room:
            for index, worker in level.items():
                if index not in avoid:
                    return worker
                second_best = second_best or worker
        return None if strict else second_best

    def starting(self, worker: Worker) -> None:
        """The worker's next generation is being started."""
        worker.generation += 1
        worker.state = "starting"

    def ready(self, worker: Worker) -> None:
        """The worker takes tasks from now on."""
        worker.state = "ready"
        self.alive += 1
        self._file(worker)

    def assign(self, worker: Worker, task: Task) -> None:
        """The task goes to the worker."""
        self._unfile(worker)
        task.worker = worker.index
        worker.outstanding[task.id] = task
        self._file(worker)

    def release(self, worker: Worker, task: Task) -> None:
        """The worker gave the task back, done or failed."""
        self._unfile(worker)
        del worker.outstanding[task.id]
        self._file(worker)

    def died(self, worker: Worker) -> list[Task]:
        """The worker is dead; returns what it held."""
        if worker.state == "ready":
            self.alive -= 1
            self._unfile(worker)
        worker.state = "dead"
        worker.deaths += 1
        lost = list(worker.outstanding.values())
        worker.outstanding.clear()
        return lost

    def _file(self, worker: Worker) -> None:
        load = len(worker.outstanding)
        if load < len(self._room):
            self._room[load][worker.index] = worker

    def _unfile(self, worker: Worker) -> None:
        load = len(worker.outstanding)
        if load < len(self._room):
            del self._room[load][worker.index]
