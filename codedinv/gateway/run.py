"""A gateway from its start to its end: listeners, models, signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import uvicorn

from codedinv.errors import CodedInvError
from codedinv.gateway.access import Token
from codedinv.gateway.bodies import Bodies
from codedinv.gateway.connection import connection_class
from codedinv.gateway.hosted import HostedModel, HostedModels
from codedinv.gateway.inference import Limits
from codedinv.gateway.logs import log_to_stderr
from codedinv.gateway.rest import build_app
from codedinv.gateway.rpc import Rpc
from codedinv.gateway.settings import GatewaySettings, ModelSettings
from codedinv.gateway.tracing import export_spans
from codedinv.gateway.traffic import Traffic
from codedinv.model import CodedModel

_log = logging.getLogger("codedinv.gateway")

_LOOPBACK = ("127.", "localhost", "::1")
_KEEP_ALIVE_S = 75  # above the 60 s of usual load balancers, which would meet a closed connection
_LAST_S = 1.0  # for connections after their requests have ended


def run_gateway(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT. Prints one JSON line on stdout when ready.

    Raises:
        CodedInvError: a port is taken, or a model cannot be loaded.
    """
    log_to_stderr(settings.log_level)
    with asyncio.Runner(loop_factory=_new_loop()) as runner:
        runner.run(_Gateway(settings).run())


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    new: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new


class _Gateway:
    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._models = HostedModels(
            HostedModel(name_of(model), settings=model, tracing=settings.tracing)
            for model in settings.models
        )
        limits = Limits(settings.max_body_bytes, settings.max_batch, settings.max_total_body_bytes)
        bodies = Bodies(limits.max_total_body_bytes)
        token = Token(settings.token.get_secret_value() if settings.token else None)
        traffic = Traffic()
        log_all = settings.access_log
        tracing = settings.tracing
        if tracing:
            export_spans()
        how = limits, traffic, token, log_all, settings.max_requests, tracing, bodies
        self._app = build_app(self._models, *how)
        self._rpc = Rpc(self._models, *how)
        self._stop = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_all)
        self._warn()
        listener = _listen(self._settings.host, self._settings.http_port)
        http = _Uvicorn(self._settings, self._app)
        rpc, grpc_port = self._grpc_server()
        serving = asyncio.ensure_future(http.serve(sockets=[listener]))
        try:
            if rpc is not None:
                await rpc.start()
            await self._load()
            if not self._stop.is_set():
                self._announce(listener, grpc_port)
                await asyncio.wait(
                    [serving, asyncio.ensure_future(self._stop.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            await self._end(http, serving, rpc)

    def _warn(self) -> None:
        settings = self._settings
        if not settings.host.startswith(_LOOPBACK) and (
            settings.token is None or settings.tls_pair is None
        ):
            _log.warning("listens on %s without a token or without TLS", settings.host)

    async def _load(self) -> None:
        """Loads the models one after another; SIGTERM ends that too."""
        stopped = asyncio.ensure_future(self._stop.wait())
        for hosted in self._models:
            loading = asyncio.ensure_future(hosted.load())
            await asyncio.wait([loading, stopped], return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                await asyncio.wait([loading])  # a start is not broken off half way
                return
            try:
                loading.result()
            except ValueError as error:
                raise CodedInvError(f"model {hosted.name!r}: {error}") from error
        stopped.cancel()

    def _announce(self, listener: socket.socket, grpc_port: int | None) -> None:
        host = self._settings.host
        host = f"[{host}]" if ":" in host else host
        ready: dict[str, Any] = {"http": f"{host}:{listener.getsockname()[1]}"}
        if grpc_port is not None:
            ready["grpc"] = f"{host}:{grpc_port}"
        ready["tls"] = self._settings.tls_pair is not None
        ready["models"] = {hosted.name: hosted.version for hosted in self._models}
        print(json.dumps(ready), flush=True)

    def _reload_all(self) -> None:
        for hosted in self._models:
            if not hosted.is_wanted:
                continue  # who unloaded it would not want it back by a signal
            task = asyncio.ensure_future(_reload(hosted))
            self._reloads.add(task)  # the loop keeps weak references only
            task.add_done_callback(self._reloads.discard)

    async def _end(self, http: _Uvicorn, serving: asyncio.Future[None], rpc: Any) -> None:
        """Unready, then no new requests, then those there are answered, then workers end."""
        settings = self._settings
        self._models.closing = True
        for hosted in self._models:
            hosted.break_off()
        _log.info("draining")
        if serving.done():
            serving.result()  # it has failed
        await asyncio.sleep(settings.drain_delay_s)
        http.should_exit = True
        stopping = [asyncio.ensure_future(_wait(serving))]
        if rpc is not None:
            stopping.append(asyncio.ensure_future(self._rpc.drain(rpc, settings.drain_timeout_s)))
        await asyncio.wait(stopping, timeout=settings.drain_timeout_s + 2 * _LAST_S)
        await asyncio.gather(*(hosted.end() for hosted in self._models), return_exceptions=True)
        _log.info("ended")

    def _grpc_server(self) -> tuple[Any, int | None]:
        settings = self._settings
        if settings.grpc_port is None:
            return None, None
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error
                # Calls that this loop is late to take would be cancelled without a word.
                ("grpc.server_max_unrequested_time_in_server", 3600),
                ("grpc.server.max_pending_requests", 10 * settings.max_requests),
                ("grpc.server.max_pending_requests_hard_limit", 20 * settings.max_requests),
            ],
        )
        self._rpc.add_to(server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            if settings.tls_pair is None:
                return server, server.add_insecure_port(address)
            credentials = _grpc_credentials(*settings.tls_pair, settings.tls_client_ca)
            return server, server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise CodedInvError(f"grpc_port: cannot listen on {address}: {error}") from error


class _Uvicorn(uvicorn.Server):
    """uvicorn without handlers of signals: they are the gateway's."""

    def __init__(self, settings: GatewaySettings, app: Any) -> None:
        tls: dict[str, Any] = {}
        if settings.tls_pair is not None:
            certificate, key = settings.tls_pair
            tls = {
                "ssl_certfile": certificate,
                "ssl_keyfile": key,
                "ssl_ca_certs": settings.tls_client_ca,
                "ssl_cert_reqs": ssl.CERT_REQUIRED if settings.tls_client_ca else ssl.CERT_NONE,
            }
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                http=connection_class(settings.receive_timeout_s),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
                **tls,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CodedInvError(f"http_port: cannot listen on {host}:{port}: {error}") from error
    return listener


def _grpc_credentials(certificate: Path, key: Path, client_ca: Path | None) -> Any:
    pair = key.read_bytes(), certificate.read_bytes()
    ca = None if client_ca is None else client_ca.read_bytes()
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


def name_of(model: ModelSettings) -> str:
    """By which clients ask for a model: as it is configured, else the bundle's own name."""
    if model.name is not None:
        return model.name
    return CodedModel.load(model.model).name


async def _reload(hosted: HostedModel) -> None:
    try:
        await hosted.load()
    except Exception as error:
        # The model goes on as it was: its keeper reads of it here, and in the metrics.
        _log.error("not reloaded", extra={"model": hosted.name, "error": str(error)})


async def _wait(serving: asyncio.Future[None]) -> None:
    await asyncio.wait([serving])
