"""Open-loop traffic: queries arrive when a Poisson process says, whether or not answers come.

An arrival is scheduled before the run and an answer's latency counts from the scheduled time, so a
server that stalls the sender is charged for the stall (no coordinated omission).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Server(Protocol):
    """What traffic needs of a server."""

    def submit(self, x: NDArray[np.float32]) -> Future[Any]: ...


@dataclass(frozen=True)
class Answer:
    """How one query ended.

    Attributes:
        query: its place in the traffic.
        arrival_s: scheduled arrival, seconds from the start.
        latency_s: from the scheduled arrival to the answer or the error.
        source: where the answer came from ("exact", "reconstructed", ...); None if it was lost.
        outputs: the default task's output; None if it was lost.
        error: the error of a lost query.
    """

    query: int
    arrival_s: float
    latency_s: float
    source: str | None
    outputs: NDArray[np.float32] | None
    error: BaseException | None = None

    @property
    def is_degraded(self) -> bool:
        """Answered, but not with the backbone's own result of this query."""
        return self.source is not None and self.source not in ("exact", "hedged")


def poisson_arrivals(
    count: int, rate: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Arrival times in seconds from the start of `count` queries at `rate` queries per second."""
    if not rate > 0:
        raise ValueError(f"rate: expected more than 0 queries per second, got {rate}")
    return np.cumsum(generator.exponential(1 / rate, count))


class Record:
    """The answers so far; written by the server's threads, read by a view while traffic runs."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sent = 0
        self._answers: list[Answer] = []
        self._lock = threading.Lock()
        self._all_ended = threading.Event()

    def add(self, answer: Answer) -> None:
        with self._lock:
            self._answers.append(answer)
            if len(self._answers) == self.count:
                self._all_ended.set()

    def answers(self) -> list[Answer]:
        """Those so far, in the order they ended."""
        with self._lock:
            return list(self._answers)

    def wait(self, timeout_s: float) -> bool:
        """Whether every query ended within the timeout."""
        return self._all_ended.wait(timeout_s)


def send(
    server: Server,
    queries: NDArray[np.float32],
    arrivals_s: NDArray[np.float64],
    record: Record,
    after_query: Callable[[int], None] = lambda number: None,
    timeout_s: float = 60.0,
) -> list[Answer]:
    """Sends queries at their arrival times and waits until each has ended.

    Args:
        server: answers them.
        queries: (N, *input).
        arrivals_s: (N,) ascending, seconds from the start.
        record: filled while the traffic runs.
        after_query: called with a query's number just after it was sent: to kill a worker, say.
        timeout_s: how long to wait for the last answers.

    Returns:
        An answer for each query, in their order; a query that never ended has a TimeoutError.
    """
    start = time.monotonic()
    for number, (query, arrival) in enumerate(zip(queries, arrivals_s, strict=True)):
        remaining = start + arrival - time.monotonic()
        if remaining > 0:
            time.sleep(remaining)
        scheduled = start + float(arrival)
        try:
            future = server.submit(query)
        except Exception as error:  # a refusal ends the query; it is counted as lost
            record.add(_ended(number, float(arrival), scheduled, None, error))
        else:
            future.add_done_callback(_recorder(record, number, float(arrival), scheduled))
        record.sent = number + 1
        after_query(number)
    record.wait(timeout_s)
    ended = {answer.query: answer for answer in record.answers()}
    never = TimeoutError(f"no answer within {timeout_s:g} s of the last arrival")
    return [
        ended.get(number) or _ended(number, float(arrival), start + float(arrival), None, never)
        for number, arrival in enumerate(arrivals_s)
    ]


def _recorder(
    record: Record, number: int, arrival_s: float, scheduled: float
) -> Callable[[Future[Any]], None]:
    def on_done(future: Future[Any]) -> None:
        error = future.exception()
        prediction = None if error else future.result()
        record.add(_ended(number, arrival_s, scheduled, prediction, error))

    return on_done


def _ended(
    number: int, arrival_s: float, scheduled: float, prediction: Any, error: BaseException | None
) -> Answer:
    latency = time.monotonic() - scheduled
    if prediction is None:
        return Answer(number, arrival_s, latency, None, None, error)
    outputs = next(iter(prediction.outputs.values()))
    return Answer(number, arrival_s, latency, prediction.source, outputs)
