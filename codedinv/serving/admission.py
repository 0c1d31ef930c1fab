"""Where other threads meet the loop: queries come in, and all else that is asked of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

from codedinv.errors import CodedInvError, Overloaded, ServerClosed
from codedinv.schemes.scheme import Array
from codedinv.serving import events as ev
from codedinv.serving.futures import CallbackThread, PredictionFuture
from codedinv.serving.metrics import Snapshot
from codedinv.serving.tracing import Tracing
from codedinv.serving.versions import Served


class Pending(NamedTuple):
    """A query that a caller waits for."""

    future: PredictionFuture
    submitted_at: float
    query: Array


@dataclass(frozen=True, eq=False)
class Ask:
    """Somebody wants to know how the server is."""

    snapshot: Future[Snapshot]


@dataclass(frozen=True, eq=False)
class Reload:
    """A version of the model that is to be served."""

    version: int
    served: Served
    models: Mapping[str, Any]  # by name, for the workers
    reloaded: Future[None]


ToTheLoop = (
    ev.Submitted | ev.Cancelled | ev.Encoded | ev.EncodeFailed | ev.CloseRequested | Ask | Reload
)


class Admission:
    """Takes queries while there is room, and gives them to the loop in the order they came.

    Every method may be called from any thread, `take` and `next` by the loop only.

    Args:
        max_queue: queries taken and not ended.
        wake: ends the loop's wait.
        callbacks: where done-callbacks of futures run.
    """

    def __init__(self, max_queue: int, wake: Callable[[], None], callbacks: CallbackThread) -> None:
        self._max_queue = max_queue
        self._wake = wake
        self._callbacks = callbacks
        self._lock = threading.RLock()  # a server dropped by the garbage collector closes itself
        self._inbox: deque[ToTheLoop] = deque()
        self._pending: dict[int, Pending] = {}
        self._next_query = 0
        self._closed: str | None = None  # why no query is taken
        self._cause: BaseException | None = None  # of a failure
        self._last: Snapshot | None = None  # of a loop that has ended
        self.overloaded = 0
        self.tracing: Tracing | None = None

    # ---- for any thread

    @property
    def is_closed(self) -> bool:
        """Is no query taken any more?"""
        return self._closed is not None

    def submit(self, query: Array, deadline_s: float | None) -> PredictionFuture:
        """Accepts a query, which nobody may change any more.

        Raises:
            Overloaded: `max_queue` queries are accepted and not ended.
            ServerClosed: closed, closing, or failed.
        """
        now = time.monotonic()
        deadline = now + deadline_s if deadline_s is not None else None
        with self._lock:
            if self._closed is not None:
                raise ServerClosed(self._closed) from self._cause
            if len(self._pending) >= self._max_queue:
                self.overloaded += 1
                raise Overloaded(
                    f"{len(self._pending)} queries are waiting for their answers, which is "
                    f"Policy.max_queue; try again later"
                )
            query_id = self._next_query
            self._next_query += 1
            future = PredictionFuture(query_id, self.withdraw, self._callbacks)
            self._pending[query_id] = Pending(future, now, query)
            if self.tracing is not None:
                self.tracing.begin(query)
            self._inbox.append(ev.Submitted(now, query_id, query, deadline))
            is_first = len(self._inbox) == 1
        if is_first:  # else the loop was woken for those before, and has not come to them yet
            self._wake()
        return future

    def withdraw(self, query: int) -> bool:
        """A caller cancelled a query. False: it ends, or has ended, anyway."""
        with self._lock:
            if self._pending.pop(query, None) is None:
                return False
            self._inbox.append(ev.Cancelled(time.monotonic(), query))
        self._wake()
        return True

    def ask(self) -> Snapshot:
        """How the server is, after all that this thread did before."""
        ask = Ask(Future())
        with self._lock:
            if self._last is not None:
                return self._last
            self._inbox.append(ask)
        self._wake()
        return ask.snapshot.result()

    def reload(self, reload: Reload) -> None:
        """Has a version brought out; its future tells when that is done.

        Raises:
            ServerClosed: closed, closing, or failed.
        """
        with self._lock:
            if self._closed is not None:
                raise ServerClosed(self._closed) from self._cause
            self._inbox.append(reload)
        self._wake()

    def post(self, event: ev.Encoded | ev.EncodeFailed) -> None:
        """The encoder has an answer."""
        with self._lock:
            self._inbox.append(event)
        self._wake()

    def close(self, reason: str, drain_s: float) -> None:
        """Takes no more queries; those there are given `drain_s` to end. Once is enough."""
        with self._lock:
            if self._closed is None:
                self._closed = reason
                self._inbox.append(ev.CloseRequested(time.monotonic(), drain_s))
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Nobody is left waiting, and everybody is told why."""
        with self._lock:
            if self._closed is None or self._cause is None:
                self._closed = f"the server failed: {type(error).__name__}: {error}"
                self._cause = error
            reason = self._closed
        for query in list(self._pending):
            pending = self.take(query)
            if pending is not None:
                failed = CodedInvError(reason)
                failed.__cause__ = error
                pending.future.end(failed)

    # ---- for the loop

    def next(self) -> list[ToTheLoop]:
        """What came since the last time, to the last: `submit` counts on it."""
        inbox = self._inbox
        came: list[ToTheLoop] = []
        while inbox:
            came.append(inbox.popleft())
        return came

    def take(self, query: int) -> Pending | None:
        """The query, whose future is now the taker's to end; None: its caller cancelled it."""
        return self._pending.pop(query, None)

    def waits(self, query: int) -> Pending | None:
        """The query, if somebody waits for it."""
        return self._pending.get(query)

    def end(self, last: Snapshot) -> list[ToTheLoop]:
        """The loop has ended; returns what it did not come to."""
        with self._lock:
            self._last = last
            return self.next()
