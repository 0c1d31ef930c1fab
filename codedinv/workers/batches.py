"""Which of the tasks that wait at a worker go into its next call, and when that begins.

Pure: no clock and no I/O, so that every order of arrivals can be tried. Workers of all kinds take
their batches from here.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger("codedinv")

_Item = TypeVar("_Item")
_Array = NDArray[np.float32]

MOST_IN_A_BATCH = 64  # a worker has twice as many tasks in hand, and a place for each in memory


@dataclass(frozen=True)
class Batching:
    """How workers make batches.

    Args:
        max_batch: tasks in one call of a backbone at most, 64 or fewer. 1: no batches.
        max_queue_delay_us: how long the oldest task may wait at an idle worker for others to fill
            the batch. 0: a worker takes what is there. It pays where a call of many takes hardly
            longer than a call of one, as on a GPU; no worker waits when it is full.

    Raises:
        ValueError: a number out of range, naming it.
    """

    max_batch: int = 1
    max_queue_delay_us: int = 0

    def __post_init__(self) -> None:
        limits = (("max_batch", 1, MOST_IN_A_BATCH), ("max_queue_delay_us", 0, 10**6))
        for name, least, most in limits:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(
                    f"{name}: expected an integer from {least} to {most}, got {value!r}"
                )

    def limits(self, backbones: Mapping[str, object]) -> dict[str, int]:
        """Tasks in one call of each backbone at most: fewer, and a line in the log, for one that
        says so by an attribute `max_batch`, as an ONNX graph whose batch axis is fixed does."""
        limits = {}
        for name, backbone in backbones.items():
            own = most_at_once(backbone)
            limits[name] = min(self.max_batch, own)
            if own < self.max_batch:
                text = "%s: its batch axis is fixed, so it takes %d at a time and not max_batch=%d"
                _log.warning(text, name, own, self.max_batch)
        return limits


ONE_BY_ONE = Batching()


def most_at_once(backbone: object) -> int:
    """Queries that a backbone takes in one call at most."""
    return int(getattr(backbone, "max_batch", MOST_IN_A_BATCH))


class _Waiting(NamedTuple, Generic[_Item]):
    model: str
    item: _Item
    since: float


class Queue(Generic[_Item]):
    """Tasks in the order they came.

    A batch holds tasks of one model, the oldest task's, and those of that model that came next. So
    tasks of a model are begun in their order, and a task is overtaken by others' models only while
    one older than itself is in the batch: it waits for as many batches as tasks came before it, at
    most.

    Args:
        batching: how batches are made.
        limits: tasks of each model in a batch at most, by its name.
        capacity: tasks that can be here at once; nothing more comes then, and none is waited for.
    """

    def __init__(self, batching: Batching, limits: Mapping[str, int], capacity: int) -> None:
        self._delay_s = 1e-6 * batching.max_queue_delay_us
        self._limits = limits
        self._capacity = capacity
        self._tasks: OrderedDict[int, _Waiting[_Item]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def put(self, task: int, model: str, item: _Item, now: float) -> None:
        """A task came, at this time in seconds."""
        self._tasks[task] = _Waiting(model, item, now)

    def cancel(self, task: int) -> _Item | None:
        """Takes a task back; None: it is not here, or not any more."""
        waiting = self._tasks.pop(task, None)
        return None if waiting is None else waiting.item

    def wait_s(self, now: float) -> float | None:
        """Seconds until a batch is to begin if nothing more comes; None: there is no task."""
        if not self._tasks:
            return None
        if not self._delay_s or len(self._tasks) >= self._capacity:
            return 0.0
        oldest = next(iter(self._tasks.values()))
        if sum(1 for _ in self._next()) >= self._limits[oldest.model]:
            return 0.0
        return max(0.0, oldest.since + self._delay_s - now)

    def take(self) -> tuple[str, list[_Item]]:
        """Takes the next batch: its model, and at least one task."""
        model = next(iter(self._tasks.values())).model
        return model, [self._tasks.pop(task).item for task in list(self._next())]

    def _next(self) -> Iterator[int]:
        """The tasks of the next batch."""
        model = next(iter(self._tasks.values())).model
        left = self._limits[model]
        for task, waiting in self._tasks.items():
            if left and waiting.model == model:
                left -= 1
                yield task


def results_of(
    call: Callable[[_Array], _Array],
    queries: list[_Array],
    fatal: tuple[type[BaseException], ...] = (),
) -> Iterator[_Array | BaseException]:
    """What a call gives for each of some queries, in their order, as it is known.

    If the call of all fails, each query is tried by itself, so that what is wrong with one harms
    no other.

    Args:
        call: (B, *input) -> (B, *embedding).
        queries: each (*input), all of one shape.
        fatal: errors that end the worker, and are raised.
    """
    try:
        results = call(np.stack(queries))
        if len(results) != len(queries):
            got = np.shape(results)
            raise ValueError(f"backbone: expected {len(queries)} embeddings, got shape {got}")
    except fatal:
        raise
    except BaseException as error:  # SystemExit is no reason to leave the others unserved
        if len(queries) == 1:
            yield error
            return
        results = None
    if results is not None:
        yield from results
        return
    for query in queries:
        yield from results_of(call, [query], fatal)
