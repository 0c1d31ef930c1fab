"""One worker of an `OipPool`: its connection, from the first question to the end."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import numpy as np

from codedinv.oip import InferResponse, ProtocolError
from codedinv.workers.backbone import Array, BackboneSpec
from codedinv.workers.headers import NO_HEADERS
from codedinv.workers.oip.connection import Connection, Done, Failed, Gone, NoAnswer
from codedinv.workers.oip.endpoint import Endpoint
from codedinv.workers.oip.signature import Signature
from codedinv.workers.pool import Died, Dropped, Message, Ready, Result, TaskError

_ASK_AGAIN_S = 0.1
_Answer = TypeVar("_Answer")


class _Call:
    """A task at the server; `abandoned`: nobody wants its result, and it takes its place still."""

    def __init__(self) -> None:
        self.handle: object = None
        self.abandoned = False


class Remote:
    """One generation of one worker.

    A thread of its own asks the server whether it is ready and whether its model is the right one,
    and sends it one query: a server that is busy with requests that an earlier generation abandoned
    answers that one late, and is not ready before.

    Args:
        index, generation: which.
        endpoint: where the server is.
        models: what it is to run, by name.
        in_flight: tasks at the server at a time; others wait here, where it costs nothing to take
            them back.
        connect: makes the connection.
        say: takes its messages, from any thread.
    """

    def __init__(
        self,
        index: int,
        generation: int,
        endpoint: Endpoint,
        models: Mapping[str, BackboneSpec],
        in_flight: int,
        connect: Callable[[Endpoint], Connection],
        say: Callable[[Message], None],
    ) -> None:
        self.endpoint = endpoint
        self._origin = index, generation
        self._models = models
        self._in_flight = in_flight
        self._connect = connect
        self._say = say
        self._lock = threading.RLock()  # of all below; a call may be done before it is returned
        self._over = threading.Event()
        self._connection: Connection | None = None
        self._signatures: dict[str, Signature] = {}
        self._waiting: OrderedDict[int, tuple[str, Array, Mapping[str, str]]] = OrderedDict()
        self._calls: OrderedDict[int, _Call] = OrderedDict()  # at the server, in their order
        name = f"codedinv-remote-{index}.{generation}"
        threading.Thread(target=self._begin, name=name, daemon=True).start()

    @property
    def is_ready(self) -> bool:
        """Does it take tasks?"""
        return bool(self._signatures) and not self._over.is_set()

    def send(
        self, task: int, model: str, query: Array, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        """Gives it a task; `headers` go along with it."""
        with self._lock:
            if self._over.is_set():
                return  # its death is told already
            if model not in self._models:
                reason = f"model: expected one of {list(self._models)}, got {model!r}"
                self._say(TaskError(*self._origin, task, reason))
                return
            self._waiting[task] = model, query, headers
            self._send_waiting()

    def cancel(self, task: int) -> None:
        """Takes a task back, if it waits here or behind another at the server.

        The first at the server has probably begun: it ends as ever. One behind it is taken back
        where the protocol can, and counts as in flight until all before it have ended, for only
        then the server has surely passed it.
        """
        with self._lock:
            if self._over.is_set():
                return
            if self._waiting.pop(task, None) is not None:
                self._say(Dropped(*self._origin, task))
                return
            call, connection = self._calls.get(task), self._connection
            if call is None or call is next(iter(self._calls.values())):
                return
            if connection is not None and connection.can_cancel and not call.abandoned:
                call.abandoned = True
                connection.cancel(call.handle)

    def end(self, reason: str | None) -> None:
        """Lets go of the server; the death is told once, or not at all if `reason` is None."""
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
            if reason is not None:
                self._say(Died(*self._origin, f"{self.endpoint}: {reason}"))
            connection = self._connection
        if connection is not None:
            # Elsewhere: this may be a thread of the connection's, or one that must not wait.
            threading.Thread(target=connection.close, name="codedinv-hang-up", daemon=True).start()

    # ---- tasks; with the lock held

    def _send_waiting(self) -> None:
        connection = self._connection
        while connection is not None and self._waiting and len(self._calls) < self._in_flight:
            task, (model, query, headers) = self._waiting.popitem(last=False)
            self._calls[task] = call = _Call()
            done = partial(self._done, task, model)
            call.handle = self._ask(connection, model, query, f"task-{task}", done, headers)

    def _ask(
        self,
        connection: Connection,
        model: str,
        query: Array,
        identity: str,
        done: Done,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> object:
        remote = self.endpoint.model or self._models[model].name or model
        request = self._signatures[model].request(query, identity)
        return connection.infer(remote, self.endpoint.version, request, done, headers)

    def _done(self, task: int, model: str, outcome: InferResponse | Failed) -> None:
        """A call has ended; called in threads of the connection's."""
        with self._lock:
            call = self._calls.get(task)
            if call is None or self._over.is_set():
                return
            if call.abandoned and isinstance(outcome, Failed) and not outcome.is_gone:
                return  # it keeps its place until those before it have ended
            if isinstance(outcome, Failed) and outcome.is_gone:
                self.end(outcome.reason)
                return
            del self._calls[task]
            self._say(self._message(task, model, outcome))
            self._pass_abandoned()
            self._send_waiting()

    def _pass_abandoned(self) -> None:
        while self._calls:
            task, call = next(iter(self._calls.items()))
            if not call.abandoned:
                return
            del self._calls[task]
            self._say(Dropped(*self._origin, task))

    def _message(self, task: int, model: str, outcome: InferResponse | Failed) -> Message:
        if isinstance(outcome, Failed):
            return TaskError(*self._origin, task, outcome.reason)
        try:
            return Result(*self._origin, task, self._signatures[model].result(outcome))
        except ProtocolError as error:
            return TaskError(*self._origin, task, str(error))

    # ---- the thread that begins

    def _begin(self) -> None:
        try:
            connection = self._connect(self.endpoint)
            with self._lock:
                if self._over.is_set():
                    connection.close()
                    return
                self._connection = connection
            signatures = {n: self._meet(connection, n, spec) for n, spec in self._models.items()}
            self._signatures = signatures
            for model in signatures:
                self._try_out(connection, model)
        except Gone as error:
            self.end(f"cannot be reached: {error}")
        except Exception as error:  # whatever it is, somebody must know
            self.end(f"{type(error).__name__}: {error}")
        else:
            with self._lock:
                if not self._over.is_set():
                    self._say(Ready(*self._origin))
                    connection.watch(self.end)

    def _meet(self, connection: Connection, model: str, spec: BackboneSpec) -> Signature:
        """Waits until server and model are ready, and checks the model.

        Raises:
            Gone, WrongModel: it is of no use to wait.
        """
        remote, version = self.endpoint.model or spec.name or model, self.endpoint.version
        self._wait_for(connection.is_server_ready)
        info = self._wait_for(lambda: connection.describe(remote, version))
        self._wait_for(lambda: connection.is_model_ready(remote, version))
        return Signature.of(info, spec)

    def _wait_for(self, question: Callable[[], _Answer]) -> _Answer:
        """Asks until the answer is yes; whoever has waited long enough ends this worker."""
        while not self._over.is_set():
            try:
                if answer := question():
                    return answer
            except NoAnswer:
                continue
            self._over.wait(_ASK_AGAIN_S)
        raise Gone("it was not waited for")

    def _try_out(self, connection: Connection, model: str) -> None:
        """One query, so that a worker that says it is ready has answered.

        Raises:
            Gone: it cannot be reached any more.
            ProtocolError: it does not answer as it should.
        """
        ended = threading.Event()
        outcomes: list[InferResponse | Failed] = []

        def done(outcome: InferResponse | Failed) -> None:
            outcomes.append(outcome)
            ended.set()

        query = np.zeros(self._models[model].query_shape, np.float32)
        self._ask(connection, model, query, "readiness", done)
        while not ended.wait(_ASK_AGAIN_S):
            if self._over.is_set():
                return
        (outcome,) = outcomes
        if isinstance(outcome, Failed):
            raise Gone(outcome.reason) if outcome.is_gone else ProtocolError(outcome.reason)
        self._signatures[model].result(outcome)
