"""A pool of servers of the Open Inference Protocol v2, one endpoint a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from codedinv.workers.backbone import Array, BackboneSpec
from codedinv.workers.base import MailboxPool, Versions
from codedinv.workers.headers import task_headers
from codedinv.workers.oip.connection import Connection
from codedinv.workers.oip.endpoint import Endpoint, Security
from codedinv.workers.oip.remote import Remote
from codedinv.workers.oip.tls import tls_context

_QUESTION_S = 5.0  # a server answers a question in milliseconds, unless it is stopped or overloaded


class OipPool(MailboxPool):
    """A `Pool` of servers that others start, watch and stop.

    A worker is *started* by connecting to its server: until server and model are ready, the model's
    signature (and the content hash, where the server gives one) is that of the backbone, and one
    query is answered. It has *died* when the server or its model is gone; the next generation
    connects again. To *retire* it is to hang up: the server itself is left alone.

    Nothing here has a deadline of its own: a server that does not answer holds its task until the
    owner of the pool retires the worker.

    Args:
        models: what version 0 runs, by name; a bare spec is the model "backbone". None: what it is
            provided with, as by the `CodedServer` that it is given to.
        endpoints: one a worker, see `Endpoint.parse`. The pool has one index more, for the spare
            that a reload uses: it shares the server of a worker that is ready.
        in_flight: tasks at a server at a time; more may be sent, and wait here.
        security: certificates and token for all endpoints.

    Raises:
        ValueError: no models, an endpoint that cannot be understood, files that are no
            certificates, or a number out of range.
        ImportError: what an endpoint's protocol needs is not installed.
    """

    def __init__(
        self,
        models: Mapping[str, BackboneSpec] | BackboneSpec | None,
        endpoints: Sequence[str],
        in_flight: int = 1,
        security: Security | None = None,
    ) -> None:
        if in_flight < 1:
            raise ValueError(f"in_flight: expected 1 or more, got {in_flight}")
        self._endpoints = [Endpoint.parse(url) for url in endpoints]
        if not self._endpoints:
            raise ValueError("endpoints: expected at least one")
        self._security = security or Security()
        for endpoint in self._endpoints:
            self._security.headers(endpoint)  # refuses to send a token unencrypted
            if endpoint.has_tls:
                tls_context(self._security)  # refuses files that are no certificates
            _import_connection(endpoint)
        self._in_flight = in_flight
        self._versions = Versions({} if models is None else {0: _checked(models)})
        super().__init__(len(endpoints) + 1)
        self._workers: list[Remote | None] = [None] * self._count

    def provide(self, version: int, models: Mapping[str, BackboneSpec]) -> None:
        self._versions.provide(version, _checked(models))

    def forget(self, version: int) -> None:
        self._versions.pop(version, None)

    def start(self, worker: int, generation: int, version: int = 0) -> None:
        self._check(worker)
        models = self._versions[version]
        old = self._workers[worker]
        if old is not None:
            old.end(None)
        self._wanted[worker] = generation
        self._workers[worker] = Remote(
            worker,
            generation,
            self._endpoint(worker),
            models,
            self._in_flight,
            self._connect,
            self._say,
        )

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        remote = self._living(worker, generation)
        if remote is not None:
            remote.send(task, model, query, task_headers.get())

    def cancel(self, worker: int, generation: int, task: int) -> None:
        remote = self._living(worker, generation)
        if remote is not None:
            remote.cancel(task)

    def retire(self, worker: int, generation: int) -> None:
        remote = self._living(worker, generation)
        if self._wanted[worker] == generation:
            self._wanted[worker] = None
        if remote is not None:
            remote.end(None)
            self._workers[worker] = None

    def close(self, timeout_s: float) -> None:
        if self._is_forked() or self._is_closed:
            return
        self._is_closed = True
        for remote in self._workers:
            if remote is not None:
                remote.end(None)
        self._close_descriptors()

    def _living(self, worker: int, generation: int) -> Remote | None:
        self._check(worker)
        return self._workers[worker] if self._wanted[worker] == generation else None

    def _endpoint(self, worker: int) -> Endpoint:
        if worker < len(self._endpoints):
            return self._endpoints[worker]
        ready = [i for i, w in enumerate(self._workers[:-1]) if w is not None and w.is_ready]
        return self._endpoints[ready[0] if ready else 0]

    def _connect(self, endpoint: Endpoint) -> Connection:
        connection: Connection = _import_connection(endpoint)(
            endpoint, self._security, _QUESTION_S, self._in_flight
        )
        return connection


def _import_connection(endpoint: Endpoint) -> Any:
    """The class of the endpoint's connections.

    Raises:
        ImportError: it names what to install.
    """
    name = "grpc" if endpoint.is_grpc else "http"
    try:
        module = import_module(f"codedinv.workers.oip.{name}_connection")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{endpoint} needs {error.name}, which is not installed: pip install 'codedinv[oip]'"
        ) from error
    return getattr(module, f"{name.capitalize()}Connection")


def _checked(models: Mapping[str, BackboneSpec] | BackboneSpec) -> dict[str, BackboneSpec]:
    found = {"backbone": models} if isinstance(models, BackboneSpec) else dict(models)
    if not found:
        raise ValueError("models: expected at least one")
    if any(spec.parity is not None for spec in found.values()):
        raise ValueError(
            "models: servers of the Open Inference Protocol run the backbone alone, so the scheme "
            "'worker-encoded' needs workers of another kind; 'invertible' encodes at the front end"
        )
    return found
