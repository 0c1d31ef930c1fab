"""The thread that runs the core: pipes, futures and clocks in, events; actions, numerics out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from codedinv.errors import (
    CodedInvError,
    DeadlineExceeded,
    Overloaded,
    ServerClosed,
    Unrecoverable,
)
from codedinv.schemes import Scheme, Source
from codedinv.schemes.scheme import Array, Decoder
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.serving.core import Core
from codedinv.serving.metrics import Metrics, Stats
from codedinv.serving.policy import Policy
from codedinv.serving.prediction import Prediction
from codedinv.workers import Died, Dropped, Message, Pool, Ready, Result, TaskError

Heads = Callable[[Array], Mapping[str, Array]]  # (B, *embedding) -> {task: (B, outputs)}

_ERRORS: dict[act.Failure, type[CodedInvError]] = {
    "deadline_exceeded": DeadlineExceeded,
    "unrecoverable": Unrecoverable,
    "closed": ServerClosed,
}
_ENCODE_BATCH = 4  # groups; more would keep results waiting that come meanwhile
_WORKERS_END_S = 0.5  # after the drain nobody waits for a worker's last task


@dataclass(slots=True)
class _Pending:
    """A query that a caller waits for."""

    future: Future[Prediction]
    submitted_at: float


@dataclass(slots=True)
class _Answer:
    """An embedding on its way through the heads."""

    query: int
    source: Source
    embedding: Array


class Engine:
    """Runs a `Core` in a thread of its own.

    Heads and decoding run in that thread, one batch for all results that arrived together; so does
    the encoder, after the answers that are there have been given.

    Args:
        scheme: plan and numerics.
        heads: embeddings (B, *embedding) -> outputs (B, outputs) per task.
        embedding_shape: what a worker must return.
        policy: see `Policy`.
        pool: the workers; the engine owns it from now on.
        workers: how many.
    """

    def __init__(
        self,
        scheme: Scheme,
        heads: Heads,
        embedding_shape: tuple[int, ...],
        policy: Policy,
        pool: Pool,
        workers: int,
    ) -> None:
        self._scheme = scheme
        self._heads = heads
        self._embedding_shape = embedding_shape
        self._policy = policy
        self._pool = pool
        self._core = Core(scheme.plan, policy, workers)
        self._metrics = Metrics(None)
        self._state_lock = threading.Lock()  # core, metrics: the loop's turn, or a reader
        self._admission = threading.Lock()  # the three below
        self._inbox: deque[ev.Submitted | ev.CloseRequested] = deque()
        self._pending: dict[int, _Pending] = {}
        self._closed: str | None = None  # why no query is taken
        self._next_query = 0
        self._settled_workers: set[int] = set()  # ready, or dead, at least once
        self.settled = threading.Event()  # all of them are, or the engine failed
        self.failure: BaseException | None = None
        self._timer_at: float | None = None
        self._decoders: dict[int, Decoder] = {}
        self._free_decoders: list[Decoder] = []
        self._answers: list[_Answer] = []
        self._failures: list[tuple[int, CodedInvError]] = []
        self._encodes: deque[act.Encode] = deque()
        self._drained = False
        self._do: dict[type, Callable[[Any], None]] = {
            act.Restart: lambda a: self._pool.start(a.worker, a.generation),
            act.Kill: self._kill,
            act.Dispatch: lambda a: self._pool.send(
                a.worker, a.generation, a.task, a.model, a.payload
            ),
            act.Encode: self._encodes.append,
            act.Absorb: self._absorb,
            act.Resolve: self._resolve,
            act.Fail: self._fail,
            act.Reject: self._reject,
            act.Inspect: self._inspect,
            act.Retire: self._retire,
            act.SetTimer: self._set_timer,
            act.Drained: self._set_drained,
        }
        self._thread = threading.Thread(target=self._run, name="codedinv-engine", daemon=True)
        self._thread.start()

    # ---- for any thread

    def submit(self, query: Array, deadline_s: float | None) -> Future[Prediction]:
        """Accepts a query, which nobody may change any more.

        Raises:
            Overloaded: `Policy.max_queue` queries are accepted and not ended.
            ServerClosed: closed, closing, or failed.
        """
        future: Future[Prediction] = Future()
        future.set_running_or_notify_cancel()  # what is sent to a worker cannot be called back
        now = time.monotonic()
        deadline = now + deadline_s if deadline_s is not None else None
        with self._admission:
            if self._closed is not None:
                raise ServerClosed(self._closed) from self.failure
            if len(self._pending) >= self._policy.max_queue:
                self._metrics.overloaded += 1
                raise Overloaded(
                    f"{len(self._pending)} queries are waiting for their answers, which is "
                    f"Policy.max_queue; try again later"
                )
            query_id = self._next_query
            self._next_query += 1
            self._pending[query_id] = _Pending(future, now)
            self._inbox.append(ev.Submitted(now, query_id, query, deadline))
        self._pool.wake()
        return future

    def stats(self) -> Stats:
        """A consistent picture of now."""
        with self._state_lock:
            return self._metrics.stats(self._core)

    def close(self, reason: str, drain_s: float) -> None:
        """Takes no more queries, lets those there end within `drain_s`, ends the workers."""
        with self._admission:
            if self._closed is None:
                self._closed = reason
                self._inbox.append(ev.CloseRequested(time.monotonic(), drain_s))
        self._pool.wake()
        if threading.current_thread() is not self._thread:  # a callback of a future may close
            self._thread.join()

    # ---- the loop

    def _run(self) -> None:
        try:
            self._handle(ev.Opened(time.monotonic()))
            while not self._drained:
                self._turn()
            self._pool.close(_WORKERS_END_S)
        except BaseException as error:
            self._break_down(error)
        finally:
            self.settled.set()

    def _turn(self) -> None:
        """Waits for something to happen, and does all that follows from it."""
        timeout = None
        if self._encodes:
            timeout = 0.0
        elif self._timer_at is not None:
            timeout = max(0.0, self._timer_at - time.monotonic())
        messages = self._pool.poll(timeout)
        with self._state_lock:
            now = time.monotonic()
            for message in messages:
                self._handle(self._event(message, now))
            with self._admission:
                submitted, self._inbox = self._inbox, deque()
            for event in submitted:
                self._handle(event._replace(time=now))
            if self._timer_at is not None and self._timer_at <= now:
                self._timer_at = None
                self._handle(ev.Timer(now))
        self._finish()
        if self._encodes:
            with self._state_lock:
                self._encode([self._encodes.popleft() for _ in range(self._encode_batch())])
            self._finish()

    def _handle(self, event: ev.Event) -> None:
        for action in self._core.handle(event):
            self._do[type(action)](action)

    def _event(self, message: Message, now: float) -> ev.Event:
        match message:
            case Result(worker, generation, task, embedding):
                flaw = self._flaw(embedding)
                if flaw:
                    return self._event(TaskError(worker, generation, task, flaw), now)
                return ev.ResultArrived(now, worker, generation, task, embedding)
            case Dropped(worker, generation, task):
                return ev.TaskFailed(now, worker, generation, task, "cancelled")
            case TaskError(worker, generation, task, reason):
                self._metrics.last_error = f"worker {worker}: {reason}"
                return ev.TaskFailed(now, worker, generation, task, reason)
            case Ready(worker, generation):
                self._worker_settled(worker)
                return ev.WorkerReady(now, worker, generation)
            case Died(worker, generation, reason):
                self._metrics.last_error = f"worker {worker} died: {reason}"
                self._worker_settled(worker)
                return ev.WorkerDied(now, worker, generation, reason)

    def _flaw(self, embedding: Array) -> str:
        """Why a result cannot be used; empty: it can."""
        if embedding.shape != self._embedding_shape:
            return f"expected an embedding {self._embedding_shape}, got {embedding.shape}"
        return "" if np.isfinite(embedding).all() else "the embedding has NaN or infinite values"

    def _worker_settled(self, worker: int) -> None:
        self._settled_workers.add(worker)
        if len(self._settled_workers) == len(self._core.fleet.workers):
            self.settled.set()

    # ---- actions

    def _kill(self, action: act.Kill) -> None:
        self._metrics.last_error = f"worker {action.worker} was killed: {action.reason}"
        self._worker_settled(action.worker)
        self._pool.retire(action.worker, action.generation)

    def _absorb(self, action: act.Absorb) -> None:
        self._decoder(action.group).push(action.slot, action.result)

    def _resolve(self, action: act.Resolve) -> None:
        embedding = action.result
        if embedding is None:
            embedding = np.asarray(self._decoder(action.group).recover()[action.slot], np.float32)
        self._answers.append(_Answer(action.query, action.source, embedding))

    def _fail(self, action: act.Fail) -> None:
        self._failures.append((action.query, _ERRORS[action.failure](action.reason)))

    def _reject(self, action: act.Reject) -> None:
        """`submit` refuses first; this is for a query that was let in just before the close."""
        error = Overloaded if action.refusal == "overloaded" else ServerClosed
        self._failures.append((action.query, error(f"refused: {action.refusal}")))

    def _inspect(self, action: act.Inspect) -> None:
        self._metrics.inspected(float(np.max(self._decoder(action.group).residual())))

    def _retire(self, action: act.Retire) -> None:
        decoder = self._decoders.pop(action.group, None)
        if decoder is not None:
            decoder.reset()
            self._free_decoders.append(decoder)

    def _set_timer(self, action: act.SetTimer) -> None:
        self._timer_at = action.at

    def _set_drained(self, action: act.Drained) -> None:
        self._drained = True

    def _decoder(self, group: int) -> Decoder:
        if group not in self._decoders:
            new = self._free_decoders.pop() if self._free_decoders else self._scheme.decoder()
            self._decoders[group] = new
        return self._decoders[group]

    def _encode_batch(self) -> int:
        return min(len(self._encodes), _ENCODE_BATCH)

    def _encode(self, groups: list[act.Encode]) -> None:
        """Makes the parity queries of some groups in one call of the encoder."""
        parities = self._scheme.encode(np.stack([self._members(group) for group in groups]))
        parities = np.ascontiguousarray(parities, np.float32)
        for group, rows in zip(groups, parities, strict=True):
            self._handle(ev.Encoded(time.monotonic(), group.group, tuple(rows)))

    def _members(self, action: act.Encode) -> Array:
        """The group's k queries; where one is missing an anchor, whose embedding is decoded."""
        anchors = self._scheme.anchors
        queries: list[Array] = []
        used = 0
        for slot, member in enumerate(action.members):
            if member is not None:
                queries.append(member)
                continue
            if anchors is None:
                raise CodedInvError(f"scheme {self._scheme.name!r} has no anchors")
            embedding = np.ascontiguousarray(anchors.embeddings[used], np.float32)
            self._decoder(action.group).push(slot, embedding)
            queries.append(np.asarray(anchors.queries[used], np.float32))
            used += 1
        return np.stack(queries)

    # ---- answers

    def _finish(self) -> None:
        """Gives the answers that are there. Futures end outside of the locks, for their callbacks
        may ask the server for anything."""
        ends: list[tuple[Future[Prediction], Prediction | CodedInvError]] = []
        with self._state_lock:
            answers, self._answers = self._answers, []
            failures, self._failures = self._failures, []
            outputs = self._heads(np.stack([a.embedding for a in answers])) if answers else {}
            now = time.monotonic()
            for i, answer in enumerate(answers):
                pending = self._pop(answer.query)
                latency = now - pending.submitted_at
                self._metrics.answered(answer.source, latency)
                own = {task: rows[i].copy() for task, rows in outputs.items()}
                ends.append((pending.future, Prediction(own, answer.source, latency)))
            for query, error in failures:
                ends.append((self._pop(query).future, error))
        for future, end in ends:
            if isinstance(end, Prediction):
                future.set_result(end)
            else:
                future.set_exception(end)

    def _pop(self, query: int) -> _Pending:
        with self._admission:
            return self._pending.pop(query)

    def _break_down(self, error: BaseException) -> None:
        """A bug, or a scheme that raises: nobody is left waiting, and everybody is told."""
        self.failure = error
        with self._admission:
            self._closed = f"the server failed: {type(error).__name__}: {error}"
            pending, self._pending = list(self._pending.values()), {}
        for query in pending:
            failed = CodedInvError(self._closed)
            failed.__cause__ = error
            query.future.set_exception(failed)
        self._pool.close(_WORKERS_END_S)
