"""Futures that can be cancelled until they end, and the thread that runs their callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import FINISHED, PENDING
from typing import Any

from codedinv.serving.prediction import Prediction

_log = logging.getLogger("codedinv")

_STUCK_S = 0.1  # a callback that takes longer is left to itself, and the rest go on without it
# Held while a future is given its condition, or ends without one; of all futures, for it is held
# for less than a microsecond. The garbage collector may run in between, and end a server's futures.
_conditions = threading.RLock()
if hasattr(os, "register_at_fork"):  # or a copy might never get what another thread held
    os.register_at_fork(
        before=_conditions.acquire,
        after_in_parent=_conditions.release,
        after_in_child=_conditions.release,
    )
_IDLE_S = 1.0  # a callback thread with nothing to do ends; the next callback starts another


class CallbackThread:
    """Runs what callers want to be called with, one after another, beside the server's loop.

    A callback may thus raise, call `sys.exit`, block or use the server without harm to anybody
    else. Where one blocks for long, another thread goes on with those behind it.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]]]
        self._jobs = queue.SimpleQueue()
        self._lock = threading.Lock()  # the two below
        self._runner: object | None = None  # the token of the thread whose turn it is
        self._busy_since: float | None = None  # its present callback began then

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Has `callback(*arguments)` called soon, in the order of the posts."""
        self._jobs.put((callback, arguments))
        with self._lock:
            if self._runner is None:
                self._start()
        self.relieve()

    def relieve(self, stuck_s: float = _STUCK_S) -> None:
        """Starts another thread for what waits behind a callback that is longer at it than this."""
        busy_since = self._busy_since
        if busy_since is None or time.monotonic() - busy_since < stuck_s or self._jobs.empty():
            return
        with self._lock:
            if self._busy_since == busy_since:
                self._start()

    def _start(self) -> None:
        token = object()
        self._runner, self._busy_since = token, None
        name = "codedinv-callbacks"
        threading.Thread(target=self._run, args=(token,), name=name, daemon=True).start()

    def _run(self, token: object) -> None:
        while True:
            try:
                callback, arguments = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        if self._runner is token:
                            self._runner = None
                        return
                continue
            with self._lock:
                self._busy_since = time.monotonic()
            try:
                callback(*arguments)
            except BaseException:  # SystemExit too: it is this thread that would end
                _log.exception("callback %r raised", callback)
            callback, arguments = _nothing, ()  # nobody's future is kept alive while this waits
            with self._lock:
                if self._runner is not token:
                    return  # it took so long that another thread goes on
                self._busy_since = None


def _nothing() -> None:
    pass


class PredictionFuture(Future[Prediction]):
    """The answer to come. `cancel()` works until it ends, and frees the query's place.

    Done-callbacks run in a thread of the server's, one after another.

    A `Future` has a lock and a condition of its own from the start, which take as long to make and
    to notify as all else that it does. Here they are made once somebody waits, looks or wants to be
    called; a future that ended before needs none.

    Args:
        query_id: of the server; counts from 0.
        withdraw: told the query's id when a caller cancelled it; true for the one who must tell
            those that wait.
        callbacks: where done-callbacks run.
    """

    def __init__(
        self, query_id: int, withdraw: Callable[[int], bool], callbacks: CallbackThread
    ) -> None:
        self._lazy_condition: threading.Condition | None = None
        self._state = PENDING
        self._result = self._exception = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Any] = []
        self.query_id = query_id
        self._withdraw = withdraw
        self._callback_thread = callbacks

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        """What `Future` takes before it reads or changes anything."""
        condition = self._lazy_condition
        if condition is None:
            # Made before the lock is taken: signals are handled meanwhile, and threads change.
            made = threading.Condition()
            with _conditions:
                condition = self._lazy_condition
                if condition is None:
                    condition = self._lazy_condition = made
        return condition

    def result(self, timeout: float | None = None) -> Prediction:
        """As `Future.result`."""
        if self._state is FINISHED and self._exception is None:
            return self._result  # type: ignore[return-value]  # an answer never changes
        return super().result(timeout)

    def cancel(self) -> bool:
        """Gives up the query: true unless its answer or error is there already."""
        if not super().cancel():
            return False
        if self._withdraw(self.query_id):
            self.set_running_or_notify_cancel()  # for `wait` and `as_completed`
        return True

    def add_done_callback(self, fn: Callable[[Future[Prediction]], object]) -> None:
        """As `Future.add_done_callback`, in the server's callback thread."""
        super().add_done_callback(lambda future: self._callback_thread.post(fn, future))

    def end(self, end: Prediction | BaseException) -> None:
        """Ends it, for the server, which calls this once; no harm if it was cancelled meanwhile."""
        if isinstance(end, Prediction):
            with _conditions:
                if self._lazy_condition is None:  # nobody has even looked
                    self._result = end
                    self._state = FINISHED
                    return
        try:
            if isinstance(end, BaseException):
                self.set_exception(end)
            else:
                self.set_result(end)
        except InvalidStateError:
            if self.cancelled():
                self.set_running_or_notify_cancel()

    def ended_in(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future of `loop` that is done when this one is, whatever callbacks others have."""
        ended: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not ended.done():  # it is if the one who waited was cancelled
                ended.set_result(None)

        def tell(_: Future[Prediction]) -> None:
            if asyncio._get_running_loop() is loop:  # the server runs in it: no need to wake it
                end()
                return
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits
                loop.call_soon_threadsafe(end)

        super().add_done_callback(tell)
        return ended
