"""Who calls the engine's `step`: a thread of its own, or the caller's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable

from codedinv.errors import CodedInvError, WrongThread
from codedinv.serving.engine import Engine

_PATIENCE_S = 10.0  # beyond the drain, for the loop to come to its end; then it is given up


class ThreadRunner:
    """Runs an engine in a thread of its own, until it has ended or is to go elsewhere."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._released = False
        # Of the engine only: a thread that knew the server would keep it from being dropped.
        self._thread = threading.Thread(target=self._run, name="codedinv-engine", daemon=True)
        self._thread.start()

    def is_here(self) -> bool:
        """Is this the thread that must not wait for the engine?"""
        return threading.current_thread() is self._thread

    def release(self) -> None:
        """Stops after the present turn, for another runner to go on; waits for that."""
        self._released = True
        self._engine.wake()
        self._thread.join()

    def _run(self) -> None:
        engine = self._engine
        again = 0.0
        while not (self._released or engine.finished):
            messages = engine.poll(max(0.0, again - time.monotonic()))
            again = engine.step(messages, time.monotonic())
        if engine.finished:
            engine.shut_down()


class LoopRunner:
    """Runs an engine in the event loop of the thread that makes this object."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._lock = threading.Lock()  # of the next
        self._released = False
        self._is_due = False  # a turn is called for already
        self._descriptor = engine.fileno()
        engine.waker = self._wake
        self._loop.add_reader(self._descriptor, self._turn)
        self._loop.call_soon(self._turn)

    def is_here(self) -> bool:
        """Is this the thread that must not wait for the engine?"""
        try:
            return asyncio.get_running_loop() is self._loop and not self._released
        except RuntimeError:  # no loop runs in this thread
            return False

    def release(self) -> bool:
        """Stops, for another runner to go on; in the loop's thread only. False: had stopped."""
        if not self._take():
            return False
        self._loop.remove_reader(self._descriptor)
        if self._timer is not None:
            self._timer.cancel()
        return True

    def is_orphaned(self) -> bool:
        """Has the event loop ended before the engine? True only once; then another runner must go
        on. For any other thread."""
        return not self._loop.is_running() and self._take()

    def _take(self) -> bool:
        with self._lock:
            was_released, self._released = self._released, True
            if not was_released:
                self._engine.waker = self._engine.ring
            return not was_released

    def _wake(self) -> None:
        """A turn in the loop's next round: a query of the loop's own needs no bell, and no look at
        the workers, which is worth 40 us of its latency."""
        if asyncio._get_running_loop() is not self._loop:
            self._engine.ring()
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn_of_our_own)

    def _turn_of_our_own(self) -> None:
        self._is_due = False
        self._turn(look=False)

    def _turn(self, look: bool = True) -> None:
        """One turn of the engine; `look`: at what workers say, too."""
        if self._released:
            return
        engine = self._engine
        try:
            again = engine.step(engine.poll(0.0) if look else [], time.monotonic())
        finally:
            if engine.finished and self.release():
                # Ending workers takes a while, which the event loop does not have.
                end = threading.Thread(target=engine.shut_down, name="codedinv-end", daemon=True)
                end.start()
        if not self._released:
            self._set_timer(again)

    def _set_timer(self, at: float) -> None:
        """Turns at this time at the latest; a timer that rings earlier is left as it is."""
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._turn()


class Home:
    """Where an engine lives: it starts in a thread, may move to an event loop and back, and ends.

    Moving loses nothing: what comes meanwhile waits in the pool and in the engine's inbox.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runner: ThreadRunner | LoopRunner = ThreadRunner(engine)

    def is_here(self) -> bool:
        """Does the engine run in this very thread?"""
        runner = self._runner
        if isinstance(runner, LoopRunner) and runner.is_orphaned():
            self._runner = ThreadRunner(self._engine)
            return False
        return runner.is_here()

    def check_may_wait(self, what: str, instead: str) -> None:
        """Refuses to wait for the engine in the thread that runs it.

        Raises:
            WrongThread: it names what to use instead.
        """
        if self.is_here():
            raise WrongThread(
                f"{what} would wait for the server, which runs in this very thread: use {instead}"
            )

    async def move_to_loop(self) -> None:
        """From its thread to the running event loop.

        Raises:
            CodedInvError: it is in one already.
        """
        runner = self._runner
        if isinstance(runner, LoopRunner):
            raise CodedInvError("an event loop runs this server already")
        try:
            await to_the_end(runner.release)
        except BaseException:  # cancelled
            self._runner = ThreadRunner(self._engine)
            raise
        if not self._engine.finished:
            self._runner = LoopRunner(self._engine)

    def leave_loop(self) -> None:
        """Back to a thread, if it is in an event loop: this one."""
        if isinstance(self._runner, LoopRunner) and self._runner.release():
            self._runner = ThreadRunner(self._engine)

    def wait_for_end(self, drain_s: float) -> None:
        """Waits until the engine, which was asked to close, has ended; one that does not, for a
        caller's function hangs in it, is given up."""
        # Counted in short waits: while this whole process is stopped, nothing can end.
        left = drain_s + _PATIENCE_S
        while left > 0 and not self._engine.ended.wait(min(1.0, left)):
            left -= 1.0
            self.is_here()  # the event loop may have ended meanwhile
        if not self._engine.ended.is_set():
            self._engine.give_up("the server's loop did not come to its end")


async def in_thread(function: Callable[[], None]) -> None:
    """Runs a function in a thread of its own: the event loop's executor may be full of others."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def end(error: BaseException | None) -> None:
        if done.done():
            return  # the one who waited was cancelled
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            function()
        except BaseException as raised:  # handed to the coroutine that waits
            error = raised
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits
            loop.call_soon_threadsafe(end, error)

    threading.Thread(target=run, name="codedinv-wait", daemon=True).start()
    await done


async def to_the_end(function: Callable[[], None]) -> None:
    """As `in_thread`, and waits for the end even if it is cancelled meanwhile."""
    task = asyncio.ensure_future(in_thread(function))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
