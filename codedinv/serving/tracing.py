"""OpenTelemetry spans of a query's life: queue, worker, encode, decode, head.

A query is traced if a span that is recorded was current where it was submitted; its spans are that
one's children. Nothing here decides anything: the loop shows it events and actions as they pass.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from codedinv.errors import CodedInvError
from codedinv.serving import actions as act
from codedinv.serving import events as ev
from codedinv.workers.headers import NO_HEADERS, task_headers


class _Traced:
    """A query that is traced. It keeps the payload alive, by whose identity it is found."""

    __slots__ = ("context", "is_sent", "payload", "since_ns")

    def __init__(self, payload: Any, context: Any) -> None:
        self.payload = payload
        self.context = context
        self.since_ns = time.time_ns()
        self.is_sent = False


class Tracing:
    """Makes spans of what passes; `begin` for any thread, the rest for the loop.

    Raises:
        CodedInvError: opentelemetry is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import context, propagate, trace
        except ImportError:
            raise CodedInvError(
                "tracing needs opentelemetry, which is not installed: pip install 'codedinv[otel]'"
            ) from None
        self._context, self._trace, self._propagate = context, trace, propagate
        self._tracer = trace.get_tracer("codedinv")
        self._by_payload: dict[int, _Traced] = {}
        self._by_query: dict[int, _Traced] = {}
        self._tasks: dict[int, tuple[int, Any]] = {}  # task: worker, span
        # group: since when its parities are made, and whose
        self._encoding: dict[int, tuple[int, list[_Traced]]] = {}
        self._parities: dict[int, tuple[Any, _Traced]] = {}  # payload by identity
        self._parities_of: dict[int, list[int]] = {}  # by group
        self._began_ns = 0

    def begin(self, payload: Any) -> None:
        """A query was taken, in the thread and context of its caller."""
        if self._trace.get_current_span().is_recording():
            self._by_payload[id(payload)] = _Traced(payload, self._context.get_current())

    def event(self, event: ev.Event) -> None:
        """An event that the core is about to take."""
        match event:
            case ev.Submitted(_, query, payload):
                traced = self._by_payload.get(id(payload))
                if traced is not None:
                    self._by_query[query] = traced
            case ev.ResultArrived(_, _, _, task, _):
                self._task_ended(task)
            case ev.TaskFailed(_, _, _, task, reason):
                self._task_ended(task, reason)
            case ev.TaskDropped(_, _, _, task):
                self._task_ended(task, "called off")
            case ev.WorkerDied(_, worker, _, reason):
                self._worker_gone(worker, reason)
            case ev.Encoded(_, group, parities):
                self._encoded(group, parities)
            case ev.EncodeFailed(_, group, reason):
                self._encoded(group, (), reason)

    def before(self, action: act.Action) -> None:
        """An action that is about to be done."""
        match action:
            case act.Dispatch(worker, _, task, _, payload):
                task_headers.set(self._sent(worker, task, payload))
            case act.Kill(worker, _, reason):
                self._worker_gone(worker, reason)
            case act.Encode(group, _, members):
                traced = [t for m in members if (t := self._by_payload.get(id(m))) is not None]
                if traced:
                    self._encoding[group] = time.time_ns(), traced
            case act.Resolve():
                self._began_ns = time.time_ns()
            case act.Fail(query) | act.Reject(query):
                self.forget(query)
            case act.Retire(group):
                for key in self._parities_of.pop(group, ()):
                    self._parities.pop(key, None)

    def after(self, action: act.Action) -> None:
        """An action that was just done."""
        if isinstance(action, act.Resolve) and action.result is None:
            traced = self._by_query.get(action.query)
            if traced is not None and action.source != "fallback":
                self._span("decode", traced, self._began_ns, {"codedinv.group": action.group})

    def answered(self, query: int, began_ns: int, ended_ns: int, source: str) -> None:
        """A query's outputs were made, by the heads or the fallback."""
        traced = self._by_query.get(query)
        if traced is not None:
            name = "fallback" if source == "fallback" else "head"
            self._span(name, traced, began_ns, {"codedinv.source": source}, ended_ns)
        self.forget(query)

    def forget(self, query: int) -> None:
        """A query has ended."""
        traced = self._by_query.pop(query, None)
        if traced is not None:
            self._by_payload.pop(id(traced.payload), None)

    def close(self) -> None:
        """The loop has ended: spans that wait for workers end with it."""
        for task in list(self._tasks):
            self._task_ended(task, "the server ended")

    # ---- within

    def _span(
        self,
        name: str,
        traced: _Traced,
        began_ns: int,
        attributes: Mapping[str, Any],
        ended_ns: int | None = None,
        reason: str = "",
    ) -> None:
        span = self._tracer.start_span(
            name, traced.context, attributes=attributes, start_time=began_ns
        )
        self._end(span, ended_ns or time.time_ns(), reason)

    def _end(self, span: Any, ended_ns: int, reason: str) -> None:
        if reason:
            span.set_status(self._trace.StatusCode.ERROR, reason)
        span.end(ended_ns)

    def _sent(self, worker: int, task: int, payload: Any) -> Mapping[str, str]:
        """A task goes to a worker; what is to be told a remote one."""
        traced, role = self._by_payload.get(id(payload)), "query"
        if traced is None:
            _, traced = self._parities.get(id(payload), (None, None))
            role = "parity"
        elif not traced.is_sent:
            traced.is_sent = True
            self._span("queue", traced, traced.since_ns, {})
        if traced is None:
            return NO_HEADERS
        attributes: dict[str, Any] = {"codedinv.worker": worker, "codedinv.role": role}
        span = self._tracer.start_span("worker", traced.context, attributes=attributes)
        self._tasks[task] = worker, span
        headers: dict[str, str] = {}
        self._propagate.inject(headers, self._trace.set_span_in_context(span))
        return headers

    def _task_ended(self, task: int, reason: str = "") -> None:
        _, span = self._tasks.pop(task, (0, None))
        if span is not None:
            self._end(span, time.time_ns(), reason)

    def _worker_gone(self, worker: int, reason: str) -> None:
        for task in [task for task, (at, _) in self._tasks.items() if at == worker]:
            self._task_ended(task, reason)

    def _encoded(self, group: int, parities: tuple[Any, ...], reason: str = "") -> None:
        """A group's parities are there; each member's trace says so, and the first has them."""
        began_ns, members = self._encoding.pop(group, (0, []))
        for traced in members:
            self._span("encode", traced, began_ns, {"codedinv.group": group}, reason=reason)
        if members:
            self._parities |= {id(parity): (parity, members[0]) for parity in parities}
            self._parities_of[group] = [id(parity) for parity in parities]
