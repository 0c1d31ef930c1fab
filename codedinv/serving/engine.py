"""Runs a core: messages, submissions and clocks in, events; actions, numerics and answers out.

`Engine.step` is one turn of the loop. It waits for nothing, so that a thread or an event loop can
own it (`runners.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from codedinv.errors import CodedInvError
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.admission import Admission, Ask, Reload
from codedinv.serving.answers import Answer, Answers, Corrected
from codedinv.serving.arrays import is_finite, stacked
from codedinv.serving.coding_groups import CodingGroups
from codedinv.serving.core import Core
from codedinv.serving.encoding import EncoderThread
from codedinv.serving.futures import CallbackThread
from codedinv.serving.metrics import Metrics, Snapshot
from codedinv.serving.policy import Policy
from codedinv.serving.reloads import Reloads
from codedinv.serving.tracing import Tracing
from codedinv.serving.versions import CALLERS_ERRORS, Served
from codedinv.workers import Died, Dropped, Message, Pool, Ready, Result, TaskError
from codedinv.workers.pool import Task

_log = logging.getLogger("codedinv")

STALL_S = 0.1  # a busy machine's pauses are below; a shorter one needs no excuse
LONGEST_WAIT_S = 0.25  # between turns: so much of a stall goes unseen if it falls into a wait
_WORKERS_END_S = 0.5  # after the drain nobody waits for a worker's last task
_ENCODER_ENDS_S = 0.5
_GIVE_UP_S = 5.0
_REAL = "fiub"  # kinds of dtypes: floats, integers and booleans


class Engine:
    """The loop of a server; whoever owns it calls `poll` and `step` until `finished`, and then
    `shut_down`.

    Heads, decoding and fallback run in the loop, one batch for all answers of a turn.

    Args:
        served: version 0 of the model.
        policy: see `Policy`.
        pool: the workers; the engine owns it from now on.
        workers: how many.
        on_correction: called, in the callback thread, with the exact answer to a query that had
            another one before.
        tracing: sees every event and action.

    Attributes:
        settled: set once every worker was ready or dead, or the engine has failed.
        ended: set once the workers are gone.
        waker: what `wake` does; whoever owns the loop may have a shorter way than the pool's bell.
        failure: the bug that ended it, if any.
    """

    def __init__(
        self,
        served: Served,
        policy: Policy,
        pool: Pool,
        workers: int,
        on_correction: Corrected | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._pool = pool
        self._workers = workers
        self._callbacks = CallbackThread()
        self.waker: Callable[[], None] = pool.wake
        self.admission = Admission(policy.max_queue, self.wake, self._callbacks)
        self.admission.tracing = self._tracing = tracing
        self._core = Core(
            served.scheme.plan, policy, workers, has_fallback=served.fallback is not None
        )
        self._reloads = Reloads(served)
        self._served = self._reloads.served
        self._groups = CodingGroups(self._served, keep=policy.verify)
        self._encoder = EncoderThread(self.admission.post)
        self._metrics = Metrics(workers)
        self._answers = Answers(
            self._served, self.admission, self._metrics, self._callbacks, on_correction
        )
        self._versions: dict[int, int] = {}  # by worker
        self._not_settled = set(range(workers))
        self._replies: deque[ev.Event] = deque()  # answers to actions
        # A pool of one's own may have `send` only.
        self._send_many = getattr(pool, "send_many", None) or partial(Pool.send_many, pool)
        self._to_send: dict[tuple[int, int], list[Task]] = {}  # by worker and generation
        self._asks: list[Ask] = []
        self._timer_at: float | None = None
        self._seen = 0.0  # when the last turn began
        self._waited = 0.0  # what the wait after it may have taken
        self._opened = self._drained = False
        self._shut = threading.Lock()
        self.settled = threading.Event()
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._do: dict[type, Callable[[Any], None]] = {
            act.Restart: self._restart,
            act.Kill: self._kill,
            act.Dispatch: self._dispatch,
            act.Cancel: self._cancel,
            act.Encode: self._encode,
            act.Absorb: lambda a: self._groups.absorb(a.group, a.version, a.slot, a.result),
            act.Resolve: self._resolve,
            act.Correct: self._answers.correct,
            act.Fail: self._answers.fail,
            act.Reject: self._answers.reject,
            act.Inspect: self._inspect,
            act.Compare: self._compare,
            act.Retire: lambda a: self._groups.retire(a.group),
            act.Reloaded: lambda a: self._reloads.done(a.version),
            act.ReloadFailed: lambda a: self._reloads.failed(a.version, a.reason),
            act.SetTimer: self._set_timer,
            act.Drained: self._set_drained,
        }

    @property
    def finished(self) -> bool:
        """Is there nothing left to do but `shut_down`?"""
        return self._drained or self.failure is not None

    # ---- for any thread

    def wake(self) -> None:
        """Has a turn taken soon: ends the `poll` in progress, or else the next one, at once."""
        self.waker()

    def ring(self) -> None:
        """The way of `wake` that works from every thread."""
        self._pool.wake()

    def fileno(self) -> int:
        """Readable when there is reason for a `step`."""
        return self._pool.fileno()

    # ---- for whoever owns the loop

    def poll(self, timeout_s: float) -> list[Message]:
        """What workers say within so many seconds, for `step`."""
        try:
            return self._pool.poll(timeout_s)
        except Exception as error:
            self.break_down(error)
            return []

    def step(self, messages: list[Message], now: float) -> float:
        """One turn: does all that follows from what came, and returns when to call again if
        nothing comes before."""
        try:
            self._turn(messages, now)
        except BaseException as error:
            self.break_down(error)
            if not isinstance(error, CALLERS_ERRORS):
                raise
        done = time.monotonic()
        again = done + LONGEST_WAIT_S
        if self._timer_at is not None and self._timer_at < again:
            again = self._timer_at
        self._seen, self._waited = now, max(0.0, again - done)
        return again

    def break_down(self, error: BaseException) -> None:
        """A bug: nobody is left waiting, and everybody is told."""
        if self.failure is None:
            self.failure = error
        self.admission.fail(self.failure)
        self.settled.set()

    def shut_down(self) -> None:
        """Ends the workers, after the last turn."""
        if not self._shut.acquire(blocking=False):
            return
        if self._tracing is not None:
            self._tracing.close()
        self._encoder.close(_ENCODER_ENDS_S)
        try:
            self._pool.close(_WORKERS_END_S)
        except Exception:
            _log.exception("the workers could not be closed")
        last = self._metrics.snapshot(self._core, self.admission.overloaded, has_ended=True)
        left = self.admission.end(last)
        self._reloads.close([item for item in left if isinstance(item, Reload)])
        self._asks += [item for item in left if isinstance(item, Ask)]
        for ask in self._asks:
            ask.snapshot.set_result(last)
        self._callbacks.relieve(0.0)  # nobody will look after them from now on
        self.settled.set()
        self.ended.set()

    def give_up(self, reason: str) -> None:
        """Ends everything from outside of a loop that hangs, in a callers' function."""
        self.break_down(CodedInvError(reason))
        threading.Thread(target=self.shut_down, name="codedinv-end", daemon=True).start()
        self.ended.wait(_GIVE_UP_S)

    def snapshot(self) -> Snapshot:
        """How the server is."""
        return self._metrics.snapshot(self._core, self.admission.overloaded)

    # ---- a turn

    def _turn(self, messages: list[Message], now: float) -> None:
        if not self._opened:
            self._opened = True
            self._handle(ev.Opened(now))
        elif now - self._seen - self._waited > STALL_S:
            self._handle(ev.Stalled(now, now - self._seen - self._waited))
        for message in messages:
            self._handle(self._event(message, now))
        for item in self._sorted(self.admission.next()):
            self._take(item, now)
        if self._timer_at is not None and self._timer_at <= now:
            # What lies in the sockets comes first: it may be what the alarm is about.
            for message in self._pool.poll(0.0):
                self._handle(self._event(message, now))
            self._timer_at = None
            self._handle(ev.Timer(now))
        self._conclude()
        self._answers.give()
        for version in self._reloads.forget():
            self._pool.forget(version)
            self._groups.forget(version)
        if self._asks:
            asks, self._asks = self._asks, []
            snapshot = self.snapshot()
            for ask in asks:
                ask.snapshot.set_result(snapshot)
        self._callbacks.relieve()

    def _sorted(self, items: list[Any]) -> list[Any]:
        """The same items; queries among them with bucket and doubt, where the scheme wants that."""
        sort = self._served[self._core.rollout.target].sort
        if sort is None:
            return items
        places = [i for i, item in enumerate(items) if isinstance(item, ev.Submitted)]
        if not places:
            return items
        try:
            found = sort(stacked([items[i].payload for i in places]))
        except CALLERS_ERRORS as error:  # nobody waits for it: they are grouped as they come
            self._metrics.last_error = f"light model: {type(error).__name__}: {error}"
            return items
        for i, bucket, doubt in zip(places, *found, strict=True):
            items[i] = items[i]._replace(bucket=bucket, doubt=doubt)
        return items

    def _take(self, item: Any, now: float) -> None:
        if isinstance(item, ev.Submitted):
            self._handle(item)
        elif isinstance(item, Ask):
            self._asks.append(item)
        elif isinstance(item, Reload):
            self._reload(item, now)
        else:
            if isinstance(item, ev.EncodeFailed):
                self._metrics.last_error = f"encoder: {item.reason}"
            self._handle(item)

    def _handle(self, event: ev.Event) -> None:
        if self._tracing is not None:
            self._tracing.event(event)
        self._do_all(self._core.take(event))
        while self._replies:
            self._handle(self._replies.popleft())

    def _conclude(self) -> None:
        """Sends what the turn's events made ready: once, for it costs as much as an event."""
        while True:
            self._do_all(self._core.conclude())
            self._send_all()
            if not self._replies:
                return
            while self._replies:
                self._handle(self._replies.popleft())

    def _do_all(self, actions: list[act.Action]) -> None:
        do, tracing = self._do, self._tracing
        for action in actions:
            if tracing is None:
                do[type(action)](action)
                continue
            tracing.before(action)
            do[type(action)](action)
            tracing.after(action)

    def _event(self, message: Message, now: float) -> ev.Event:
        if isinstance(message, Result):
            worker, generation, task, embedding = message
            flaw = self._flaw(worker, embedding)
            if not flaw:
                return ev.ResultArrived(now, worker, generation, task, embedding)
            message = TaskError(worker, generation, task, flaw)
        match message:
            case TaskError(worker, generation, task, reason):
                self._metrics.last_error = f"worker {worker}: {reason}"
                return ev.TaskFailed(now, worker, generation, task, reason)
            case Dropped(worker, generation, task):
                return ev.TaskDropped(now, worker, generation, task)
            case Ready(worker, generation):
                self._settle(worker)
                return ev.WorkerReady(now, worker, generation)
            case Died(worker, generation, reason):
                self._to_send.pop((worker, generation), None)
                self._metrics.last_error = f"worker {worker} died: {reason}"
                self._settle(worker)
                return ev.WorkerDied(now, worker, generation, reason)

    def _flaw(self, worker: int, embedding: Any) -> str:
        """Why a result cannot be used; empty: it can."""
        expected = self._served[self._versions[worker]].embedding_shape
        if not isinstance(embedding, np.ndarray) or embedding.shape != expected:
            got = getattr(embedding, "shape", type(embedding).__name__)
            return f"expected an embedding {expected}, got {got}"
        if embedding.dtype.kind not in _REAL:
            return f"expected an embedding of real numbers, got {embedding.dtype}"
        return "" if is_finite(embedding) else "the embedding has NaN or infinite values"

    def _settle(self, worker: int) -> None:
        self._not_settled.discard(worker)
        if not self._not_settled:
            self.settled.set()

    def _reload(self, reload: Reload, now: float) -> None:
        try:
            self._pool.provide(reload.version, reload.models)
        except Exception as error:
            reload.reloaded.set_exception(error)
            return
        self._reloads.begin(reload)
        self._handle(ev.ReloadRequested(now, reload.version, reload.served.scheme.plan))

    # ---- actions

    def _restart(self, action: act.Restart) -> None:
        self._versions[action.worker] = action.version
        try:
            self._pool.start(action.worker, action.generation, action.version)
        except Exception as error:
            self._lost(action.worker, action.generation, error)

    def _kill(self, action: act.Kill) -> None:
        self._metrics.last_error = f"worker {action.worker} was killed: {action.reason}"
        self._settle(action.worker)
        self._to_send.pop((action.worker, action.generation), None)
        self._pool.retire(action.worker, action.generation)

    def _dispatch(self, action: act.Dispatch) -> None:
        worker, generation, task, model, payload = action
        self._to_send.setdefault((worker, generation), []).append(Task(task, model, payload))
        if self._tracing is not None:
            self._send_all()  # now: the trace's headers are this task's

    def _send_all(self) -> None:
        """Gives workers their tasks, each all of its own at once."""
        if not self._to_send:
            return
        to_send, self._to_send = self._to_send, {}
        for (worker, generation), tasks in to_send.items():
            try:
                self._send_many(worker, generation, tasks)
            except Exception as error:
                self._pool.retire(worker, generation)
                self._lost(worker, generation, error)

    def _cancel(self, action: act.Cancel) -> None:
        self._send_all()  # it may be one of these
        self._pool.cancel(action.worker, action.generation, action.task)

    def _lost(self, worker: int, generation: int, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self._replies.append(self._event(Died(worker, generation, reason), time.monotonic()))

    def _encode(self, action: act.Encode) -> None:
        members = self._groups.fill(action.group, action.version, action.members)
        self._encoder.encode(action.group, self._served[action.version].scheme, members)

    def _resolve(self, action: act.Resolve) -> None:
        pending = self.admission.waits(action.query)
        if pending is None:
            return  # cancelled a moment ago
        material = action.result
        if action.source == "fallback":
            material = pending.query
        elif material is None:
            try:
                material = self._groups.recover(action.group, action.version, action.slot)
            except CALLERS_ERRORS as error:
                self._answers.unmade(action.query, action.source, error)
                return
        self._answers.add(Answer(action.query, action.source, action.version, material))

    def _inspect(self, action: act.Inspect) -> None:
        alarm, slot = False, None
        if action.full and self._groups.can_check(action.version):
            self._metrics.groups_checked += 1
            try:
                alarm, slot = self._groups.check(action.group, action.version)
            except CALLERS_ERRORS as error:
                self._metrics.last_error = f"consistency check: {type(error).__name__}: {error}"
        self._replies.append(ev.Inspected(time.monotonic(), action.group, alarm, slot))

    def _compare(self, action: act.Compare) -> None:
        group, version, slot, run, result = action
        agrees = tuple(self._groups.compare(group, version, slot, run, result))
        self._replies.append(ev.Compared(time.monotonic(), group, slot, run, agrees))

    def _set_timer(self, action: act.SetTimer) -> None:
        self._timer_at = action.at

    def _set_drained(self, action: act.Drained) -> None:
        self._drained = True
