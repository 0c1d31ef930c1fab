"""Open Inference Protocol v2 over REST, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from starlette.routing import Route, Router

from codedinv.gateway import pages
from codedinv.gateway.access import Access, Scope, Send, Token, send_body, send_json
from codedinv.gateway.bodies import Bodies, ClientGone, Receive, compressed, read_body
from codedinv.gateway.descriptions import (
    HTTP_EXTENSIONS,
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
)
from codedinv.gateway.errors import MethodNotAllowed, NotFound, RequestError, Unavailable
from codedinv.gateway.exposition import exposition
from codedinv.gateway.hosted import INPUT, HostedModel, HostedModels
from codedinv.gateway.inference import Limits, check_json_size, infer
from codedinv.gateway.openapi import describe
from codedinv.gateway.tracing import RequestTracing
from codedinv.gateway.traffic import Traffic
from codedinv.oip import rest
from codedinv.serving import CodedServer

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
_Answer = TypeVar("_Answer")

OPEN_PATHS = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
_HEADER_LENGTH = rest.HEADER_LENGTH.lower().encode()
_MOST_OBJECT_BYTES = 64 * 2**10  # of a request that has no tensors
_WATCH_AFTER_S = 0.01
_VARY = (b"vary", b"accept-encoding")


def create_app(
    servers: CodedServer | Mapping[str, CodedServer],
    *,
    token: str | None = None,
    max_body_bytes: int = Limits.max_body_bytes,
    max_batch: int = Limits.max_batch,
    tracing: bool = False,
) -> Any:
    """An ASGI application that answers for servers of yours, to run or to mount in another:
    `fastapi_app.mount("/models", create_app(server))`.

    Args:
        servers: one, by its model's name, or several by names of your choice. You start and close
            them; with `async with CodedServer(...)` they run in the application's event loop, else
            in a thread.
        token: of `Authorization: Bearer TOKEN`; None: nobody is asked for it.
        max_body_bytes: of a request, also after decompression.
        max_batch: queries in a request.
        tracing: makes OpenTelemetry spans of inference requests, and of their queries in servers
            that have `tracing` too.
    """
    models = HostedModels.of(servers)
    limits = Limits(max_body_bytes, max_batch)
    return build_app(models, limits, Traffic(), Token(token), tracing=tracing)


def build_app(
    models: HostedModels,
    limits: Limits,
    traffic: Traffic,
    token: Token,
    log_all: bool = False,
    max_requests: int = 1024,
    tracing: bool = False,
    bodies: Bodies | None = None,
) -> Access:
    """The application for models that the gateway loads itself; `bodies`: shared with gRPC."""
    bodies = bodies or Bodies(limits.max_total_body_bytes)
    api = _Api(models, limits, traffic, RequestTracing(tracing), bodies)
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    routes = [
        *_both(model, version, "/infer", POST=api.infer),
        *_both(model, version, "/ready", GET=api.model_ready),
        _route("/v2/health/live", GET=api.live),
        _route("/v2/health/ready", GET=api.ready),
        _route("/v2", GET=api.metadata),
        _route("/v2/", GET=api.metadata),
        _route("/v2/models/stats", GET=api.all_statistics),
        *_both(model, version, "", GET=api.model_metadata),
        *_both(model, version, "/config", GET=api.model_config),
        *_both(model, version, "/stats", GET=api.statistics),
        _route("/v2/repository/index", POST=api.index),
        _route("/v2/repository/models/{name}/load", POST=api.load),
        _route("/v2/repository/models/{name}/unload", POST=api.unload),
        _route("/metrics", GET=api.metrics),
        _route("/status", GET=api.status),
        _route("/openapi.json", GET=api.openapi),
        _route("/", GET=api.page),
    ]
    router = Router(routes, redirect_slashes=False, default=_not_found)
    return Access(router, token, OPEN_PATHS, lambda: models.closing, log_all, max_requests)


class _Endpoint:
    """One path: a handler per method."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)
        if "GET" in handlers:
            self._handlers["HEAD"] = handlers["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["method"])
        if handler is None:
            allowed = ", ".join(sorted(self._handlers))
            raise MethodNotAllowed(f"{scope['method'][:20]}: expected one of", allowed)
        await handler(scope, receive, send)


def _route(path: str, **handlers: Handler) -> Route:
    return Route(path, _Endpoint(handlers))


def _both(model: str, version: str, rest_of_path: str, **handlers: Handler) -> list[Route]:
    return [_route(model + rest_of_path, **handlers), _route(version + rest_of_path, **handlers)]


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotFound(f"no page {scope['path'][:100]!r}")


class _Api:
    """The handlers."""

    def __init__(
        self,
        models: HostedModels,
        limits: Limits,
        traffic: Traffic,
        tracing: RequestTracing,
        bodies: Bodies,
    ) -> None:
        self._models = models
        self._limits = limits
        self._traffic = traffic
        self._tracing = tracing
        self._bodies = bodies

    def _model(self, scope: Scope) -> HostedModel:
        parameters = scope["path_params"]
        return self._models.get(parameters["name"], parameters.get("version", ""))

    # ---- inference

    async def infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers_of"]
        name = scope["path_params"]["name"]
        with (
            self._traffic.request("http") as record,
            self._tracing.http(headers, name) as span,
            self._bodies.hold() as hold,
        ):
            hosted = record.model = self._model(scope)
            body = await read_body(headers, receive, self._limits.max_body_bytes, hold)
            stated = headers.get(_HEADER_LENGTH)
            length = rest.parse_header_length(None if stated is None else stated.decode("latin-1"))
            check_json_size(hosted, len(body) if length is None else length, self._limits)
            request = rest.decode_request(body, length, (INPUT,))
            answer = await _unless_gone(infer(hosted, request, self._limits), receive)
            encoded, header_length = rest.encode_response(answer, request)
            encoded, encoding = compressed(encoded, headers.get(b"accept-encoding", b""))
        added = [(b"content-type", b"application/json")]
        if header_length is not None:
            added = [
                (b"content-type", b"application/octet-stream"),
                (_HEADER_LENGTH, str(header_length).encode()),
            ]
        added += self._tracing.headers(span)
        if encoding is not None:
            added += [(b"content-encoding", encoding.encode()), _VARY]
        await send_body(send, encoded, added)

    # ---- health

    async def live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, {"live": True})

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._models.ready:
            raise Unavailable("not ready")
        await send_json(send, {"ready": True})

    async def model_ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosted = self._model(scope)
        hosted.ready_server()
        await send_json(send, {"name": hosted.name, "ready": True})

    # ---- descriptions

    async def metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, server_metadata(HTTP_EXTENSIONS))

    async def model_metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, model_metadata(self._model(scope)))

    async def model_config(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, model_config(self._model(scope), self._limits))

    async def statistics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send_statistics([self._model(scope)], send)

    async def all_statistics(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._send_statistics(list(self._models), send)

    async def _send_statistics(self, models: list[HostedModel], send: Send) -> None:
        found = [model_statistics(hosted, await hosted.snapshot()) for hosted in models]
        await send_json(send, {"model_stats": found})

    # ---- the repository

    async def index(self, scope: Scope, receive: Receive, send: Send) -> None:
        ready = (await self._object(scope, receive)).get("ready", False)
        if not isinstance(ready, bool):
            raise RequestError(f"ready: expected true or false, got {str(ready)[:40]!r}")
        await send_json(send, self._models.index(ready))

    async def load(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosted = self._model(scope)
        parameters = (await self._object(scope, receive)).get("parameters") or {}
        if parameters:
            raise RequestError("parameters: expected none: a model is loaded as it is configured")
        await hosted.load()
        await send_json(send, {"name": hosted.name, "version": hosted.version})

    async def unload(self, scope: Scope, receive: Receive, send: Send) -> None:
        hosted = self._model(scope)
        await self._object(scope, receive)
        await asyncio.shield(asyncio.ensure_future(hosted.unload()))
        await send_json(send, {"name": hosted.name})

    async def _object(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The JSON object in the body; an empty body is an empty one."""
        most = min(_MOST_OBJECT_BYTES, self._limits.max_body_bytes)
        body = await read_body(scope["headers_of"], receive, most)
        return rest.parse_object(body) if body.strip() else {}

    # ---- for people and their monitors

    async def metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        snapshots = [(hosted, await hosted.snapshot()) for hosted in self._models]
        accept = scope["headers_of"].get(b"accept", b"").decode("latin-1")
        body, content_type = exposition(snapshots, self._traffic, accept)
        await send_body(send, body, [(b"content-type", content_type.encode())])

    async def status(self, scope: Scope, receive: Receive, send: Send) -> None:
        snapshots = [(hosted, await hosted.snapshot()) for hosted in self._models]
        await send_json(send, pages.status(self._models.ready, snapshots))

    async def openapi(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, describe([hosted.name for hosted in self._models]))

    async def page(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_body(send, pages.page(), pages.PAGE_HEADERS)


async def _unless_gone(answering: Awaitable[_Answer], receive: Receive) -> _Answer:
    """Awaits an answer; a client that goes away meanwhile cancels it, and its queries."""
    watch = _Watch(receive)
    try:
        return await answering
    except asyncio.CancelledError:
        if not watch.is_gone:
            raise
        watch.task.uncancel()
        raise ClientGone("the client went away") from None
    finally:
        watch.end()


class _Watch:
    """Cancels the present task when its client goes away, from a moment on: most answers come
    before, and need not pay for it.

    Args:
        receive: of ASGI; the next message can only be a disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("expected to run in a task of asyncio, got a bare coroutine")
        self.task = task
        self.is_gone = False
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        self._beginning = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._begin)

    def end(self) -> None:
        self._beginning.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def _begin(self) -> None:
        self._watching = asyncio.ensure_future(self._wait())

    async def _wait(self) -> None:
        await self._receive()
        self.is_gone = True
        self.task.cancel()
