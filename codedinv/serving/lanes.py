"""Tasks that wait for a worker, by how much they matter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from codedinv.serving.groups import Task

URGENT = 0  # sent before and lost, or the parity that a lost query needs
DATA = 1
HEDGE = 2
PARITY = 3  # parities take what data leaves, so that coding never costs an answer
ERRAND = 4
_LANES = 5


class Lanes:
    """The waiting tasks of one version. Within a lane first come, first served.

    A task that is given up or moved stays in its old queue and is swept lazily: it no longer says
    that it is in that lane.
    """

    def __init__(self) -> None:
        self._queues: list[deque[Task]] = [deque() for _ in range(_LANES)]
        self._counts = [0] * _LANES

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[Task]:
        for lane, queue in enumerate(self._queues):
            yield from (task for task in queue if task.lane == lane)

    def count(self, lane: int) -> int:
        """How many tasks wait in a lane."""
        return self._counts[lane]

    def data_waits(self) -> bool:
        """Does anything wait that a caller's answer depends on?"""
        return bool(self._counts[URGENT] or self._counts[DATA])

    def add(self, task: Task, lane: int, first: bool = False) -> None:
        """Adds a task at the end of a lane, or before all others in it."""
        task.lane = lane
        self._counts[lane] += 1
        if first:
            self._queues[lane].appendleft(task)
        else:
            self._queues[lane].append(task)

    def discard(self, task: Task) -> None:
        """Takes out a task that waits here; one that does not is left alone."""
        if task.lane is None:
            return
        lane, task.lane = task.lane, None
        self._counts[lane] -= 1
        queue = self._queues[lane]
        if len(queue) > 2 * self._counts[lane] + 64:
            self._queues[lane] = deque(t for t in queue if t.lane == lane)

    def move(self, task: Task, lane: int) -> None:
        """Puts a waiting task at the end of another lane."""
        if task.lane != lane:
            self.discard(task)
            self.add(task, lane)

    def head(self, lane: int, limit: int) -> list[Task]:
        """The first waiting tasks of a lane, `limit` at most."""
        queue = self._queues[lane]
        while queue and queue[0].lane != lane:
            queue.popleft()
        found: list[Task] = []
        for task in queue:
            if len(found) == limit:
                break
            if task.lane == lane:
                found.append(task)
        return found
