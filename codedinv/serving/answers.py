"""How queries end: answers that the core decided on are made by heads or fallback, and given."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from codedinv.errors import CodedInvError, DeadlineExceeded, Overloaded, ServerClosed, Unrecoverable
from codedinv.schemes.scheme import Array, Source
from codedinv.serving import actions as act
from codedinv.serving.admission import Admission
from codedinv.serving.futures import CallbackThread
from codedinv.serving.metrics import Metrics
from codedinv.serving.prediction import Prediction
from codedinv.serving.tracing import Tracing
from codedinv.serving.versions import CALLERS_ERRORS, Outputs, Served, rows_of

Corrected = Callable[[int, Prediction], object]

_CORRECTABLE = 4096  # ended queries whose time of submission is kept for a correction's latency

_ERRORS: dict[act.Failure, type[CodedInvError]] = {
    "deadline_exceeded": DeadlineExceeded,
    "unrecoverable": Unrecoverable,
    "closed": ServerClosed,
    "cancelled": CodedInvError,  # nobody sees it: its future has ended already
}


@dataclass(slots=True)
class Answer:
    """An answer to be made.

    Attributes:
        query: whose.
        source: where it comes from.
        version: of the model.
        material: an embedding for the heads; with source "fallback" the query itself.
        corrects: it comes after another answer to the same query.
    """

    query: int
    source: Source
    version: int
    material: Array
    corrects: bool = False


class Answers:
    """Collects how queries end during a turn of the loop, and then ends them all.

    Args:
        served: by version.
        admission: where callers wait.
        metrics: told of every answer.
        callbacks: where `on_correction` runs.
        on_correction: told the exact answer to a query that had another one before.
    """

    def __init__(
        self,
        served: Mapping[int, Served],
        admission: Admission,
        metrics: Metrics,
        callbacks: CallbackThread,
        on_correction: Corrected | None,
    ) -> None:
        self._served = served
        self._admission = admission
        self._metrics = metrics
        self._callbacks = callbacks
        self._on_correction = on_correction
        self._submitted_at: OrderedDict[int, float] = OrderedDict()  # only for corrections
        self._answers: list[Answer] = []
        self._errors: list[tuple[int, CodedInvError]] = []

    def add(self, answer: Answer) -> None:
        """A query is to be answered."""
        self._answers.append(answer)

    def correct(self, action: act.Correct) -> None:
        """A query was answered otherwise before."""
        if self._on_correction is not None:
            exact = Answer(action.query, "exact", action.version, action.result, corrects=True)
            self._answers.append(exact)

    def fail(self, action: act.Fail) -> None:
        """A query ends with an error."""
        self._errors.append((action.query, _ERRORS[action.failure](action.reason)))

    def reject(self, action: act.Reject) -> None:
        """`submit` refuses first; this is for a query that was let in just before the close."""
        error = Overloaded if action.refusal == "overloaded" else ServerClosed
        self._errors.append((action.query, error(f"refused: {action.refusal}")))

    def unmade(self, query: int, source: Source, cause: BaseException) -> None:
        """An answer that the core decided on cannot be made."""
        self._metrics.failed_answer(source)
        what = "fallback" if source == "fallback" else "answer"
        reason = self._complain(query, f"its {what} could not be made", cause)
        error = DeadlineExceeded(reason) if source == "fallback" else CodedInvError(reason)
        error.__cause__ = cause
        self._errors.append((query, error))

    def give(self) -> None:
        """Ends the queries."""
        if self._answers:
            answers, self._answers = self._answers, []
            made: Iterable[tuple[Answer, dict[str, Array] | BaseException]] = self._made(answers)
            if self._admission.tracing is not None:
                made = _traced(made, self._admission.tracing)
            for answer, outputs in made:
                if answer.corrects:
                    self._give_correction(answer, outputs)
                elif isinstance(outputs, BaseException):
                    self.unmade(answer.query, answer.source, outputs)
                else:
                    self._give(answer, outputs)
        if self._errors:
            errors, self._errors = self._errors, []
            for query, error in errors:
                if self._admission.tracing is not None:
                    self._admission.tracing.forget(query)
                pending = self._admission.take(query)
                if pending is not None:
                    pending.future.end(error)

    def _made(
        self, answers: list[Answer]
    ) -> Iterator[tuple[Answer, dict[str, Array] | BaseException]]:
        """Outputs of each answer or the error, made together where they need the same function."""
        if len(answers) == 1:  # most often, and worth a few microseconds
            (answer,) = answers
            function = self._function(answer.version, answer.source == "fallback")
            yield answer, rows_of(function, [answer.material])[0]
            return
        batches: dict[tuple[int, bool], list[Answer]] = {}
        for answer in answers:
            key = answer.version, answer.source == "fallback"
            batches.setdefault(key, []).append(answer)
        for (version, is_fallback), batch in batches.items():
            function = self._function(version, is_fallback)
            made = rows_of(function, [answer.material for answer in batch])
            yield from zip(batch, made, strict=True)

    def _function(self, version: int, is_fallback: bool) -> Callable[[Array], Outputs]:
        served = self._served[version]
        return (served.fallback or _no_fallback) if is_fallback else served.heads

    def _give(self, answer: Answer, outputs: dict[str, Array]) -> None:
        pending = self._admission.take(answer.query)
        if pending is None:
            return  # cancelled a moment ago
        if answer.source == "reconstructed":
            outputs = self._fused(answer, pending.query, outputs)
        latency = time.monotonic() - pending.submitted_at
        self._metrics.answered(answer.source, latency)
        version = self._served[answer.version].version
        pending.future.end(Prediction(outputs, answer.source, latency, answer.query, version))
        if self._on_correction is not None:
            self._submitted_at[answer.query] = pending.submitted_at
            if len(self._submitted_at) > _CORRECTABLE:
                self._submitted_at.popitem(last=False)

    def _fused(self, answer: Answer, query: Array, outputs: dict[str, Array]) -> dict[str, Array]:
        """A reconstructed answer with the light model's mixed in, where the model can."""
        fuse = self._served[answer.version].fuse
        if fuse is None:
            return outputs
        try:
            return dict(fuse(query, outputs))
        except CALLERS_ERRORS as error:  # the decoded answer is one, too
            self._complain(answer.query, "its answers could not be fused", error)
            return outputs

    def _give_correction(self, answer: Answer, outputs: dict[str, Array] | BaseException) -> None:
        if isinstance(outputs, BaseException):
            self._complain(answer.query, "its correction could not be made", outputs)
        elif self._on_correction is not None:
            now = time.monotonic()
            latency = now - self._submitted_at.pop(answer.query, now)
            version = self._served[answer.version].version
            prediction = Prediction(outputs, "exact", latency, answer.query, version)
            self._callbacks.post(self._on_correction, answer.query, prediction)

    def _complain(self, query: int, what: str, cause: BaseException) -> str:
        reason = f"{what}: {type(cause).__name__}: {cause}"
        self._metrics.last_error = f"query {query}: {reason}"
        return reason


def _traced(
    made: Iterable[tuple[Answer, dict[str, Array] | BaseException]], tracing: Tracing
) -> list[tuple[Answer, dict[str, Array] | BaseException]]:
    """The same, all made now, with a span for each."""
    began_ns = time.time_ns()
    found = list(made)
    ended_ns = time.time_ns()
    for answer, _ in found:
        if not answer.corrects:
            tracing.answered(answer.query, began_ns, ended_ns, answer.source)
    return found


def _no_fallback(_: Array) -> Outputs:
    raise LookupError("this version of the model has no fallback")
