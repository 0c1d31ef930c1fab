"""Open Inference Protocol v2 over gRPC, with grpc.health.v1 and reflection."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from codedinv.gateway.access import Token
from codedinv.gateway.bodies import Bodies
from codedinv.gateway.descriptions import (
    EXTENSIONS,
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
)
from codedinv.gateway.errors import NotFound, RequestError, Unavailable, message_of, status_of
from codedinv.gateway.health import Health
from codedinv.gateway.hosted import INPUT, HostedModels
from codedinv.gateway.inference import Limits, check_message_size, infer
from codedinv.gateway.tracing import RequestTracing
from codedinv.gateway.traffic import Traffic
from codedinv.oip import grpc_codec
from codedinv.oip.messages import SERVICE, handlers, message, parse_request, pool

_log = logging.getLogger("codedinv.gateway.access")
_OPEN = frozenset({"ServerLive", "ServerReady"})
_LAST_S = 1.0  # for calls that were taken just before the end
_MOST_DETAILS = 500  # characters, each up to 12 bytes of a header that holds 8 KiB
_FOREVER_S = 365 * 24 * 3600.0  # a client without a deadline has a very late one

Call = Callable[[Any, Any], Awaitable[Any]]


class Rpc:
    """The calls of the service.

    Args:
        models: who answers.
        limits: of requests.
        traffic: counts them.
        token: of all calls but those that ask for the gateway's health.
        log_all: a line for each request; else only for those with an error.
        max_requests: at a time, but for those that ask for the gateway's health.
        tracing: makes OpenTelemetry spans of inference requests.
        bodies: shared with REST; None: of its own.
    """

    def __init__(
        self,
        models: HostedModels,
        limits: Limits,
        traffic: Traffic,
        token: Token,
        log_all: bool = False,
        max_requests: int = 1024,
        tracing: bool = False,
        bodies: Bodies | None = None,
    ) -> None:
        self._models = models
        self._limits = limits
        self._traffic = traffic
        self._tracing = RequestTracing(tracing)
        self._bodies = bodies or Bodies(limits.max_total_body_bytes)
        self._token = token
        self._log_all = log_all
        self._max_requests = max_requests
        self._in_progress = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._health = Health(lambda: models.ready)

    def add_to(self, server: Any) -> None:
        """Makes a `grpc.aio.server` answer them."""
        calls: dict[str, Call] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._statistics,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        guarded = {name: self._guarded(name, call) for name, call in calls.items()}
        server.add_generic_rpc_handlers((handlers(guarded, parsed=False),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server, pool=_described())

    async def drain(self, server: Any, timeout_s: float) -> None:
        """Stops a server when the calls in progress have ended, or after `timeout_s`."""
        self._health.end()
        stopping = asyncio.ensure_future(server.stop(timeout_s))  # takes no calls from now on
        # Who watches the health, or holds the reflection's stream open, is not waited for.
        await asyncio.wait([stopping, asyncio.ensure_future(self._idle.wait())], timeout=timeout_s)
        await server.stop(_LAST_S)
        await stopping

    def _guarded(self, name: str, call: Call) -> Call:
        """The call with token, error codes, and a line in the log."""

        async def guarded(wire: bytes, context: Any) -> Any:
            request: Any = None
            began = time.perf_counter()
            metadata = dict(context.invocation_metadata() or ())
            error: Exception
            hold = self._bodies.hold()
            self._in_progress += 1
            self._idle.clear()
            try:
                if name not in _OPEN:
                    self._token.check(_bytes(metadata.get("authorization", "")))
                    if self._in_progress > self._max_requests:
                        raise Unavailable(f"{self._max_requests} requests are in progress")
                check_message_size(self._models, name, len(wire), self._limits)
                hold.grow(len(wire))
                request = parse_request(name, wire)
                answer = await call(request, context)
            except Exception as raised:
                error = raised
            else:
                if self._log_all:
                    _log_call(name, request, metadata, began, None)
                return answer
            finally:
                hold.release()
                self._in_progress -= 1
                if not self._in_progress:
                    self._idle.set()
            _log_call(name, request, metadata, began, error)
            _, code = status_of(error)
            return await context.abort(grpc.StatusCode[code], message_of(error)[:_MOST_DETAILS])

        return guarded

    # ---- inference

    async def _infer(self, request: Any, context: Any) -> Any:
        name, metadata = request.model_name, context.invocation_metadata()
        with self._traffic.request("grpc") as record, self._tracing.grpc(metadata, name):
            hosted = record.model = self._models.get(request.model_name, request.model_version)
            left_s = context.time_remaining()
            if left_s is not None and left_s > _FOREVER_S:
                left_s = None
            decoded = grpc_codec.decode_request(request, (INPUT,))
            return grpc_codec.encode_response(await infer(hosted, decoded, self._limits, left_s))

    # ---- health and descriptions

    async def _live(self, request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _ready(self, request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._models.ready)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        try:
            ready = self._models.get(request.name, request.version).ready
        except NotFound:  # as Triton answers
            ready = False
        return message("ModelReadyResponse")(ready=ready)

    async def _metadata(self, request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(**server_metadata(EXTENSIONS))

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        found = model_metadata(self._models.get(request.name, request.version))
        return message("ModelMetadataResponse")(**found)

    async def _model_config(self, request: Any, context: Any) -> Any:
        config = model_config(self._models.get(request.name, request.version), self._limits)
        return json_format.ParseDict({"config": config}, message("ModelConfigResponse")())

    async def _statistics(self, request: Any, context: Any) -> Any:
        wanted = list(self._models)
        if request.name:
            wanted = [self._models.get(request.name, request.version)]
        found = [model_statistics(hosted, await hosted.snapshot()) for hosted in wanted]
        return json_format.ParseDict({"model_stats": found}, message("ModelStatisticsResponse")())

    # ---- the repository

    async def _index(self, request: Any, context: Any) -> Any:
        return message("RepositoryIndexResponse")(models=self._models.index(request.ready))

    async def _load(self, request: Any, context: Any) -> Any:
        hosted = self._models.get(request.model_name)
        if request.parameters:
            raise RequestError("parameters: expected none: a model is loaded as it is configured")
        await hosted.load()
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, context: Any) -> Any:
        hosted = self._models.get(request.model_name)
        await asyncio.shield(asyncio.ensure_future(hosted.unload()))
        return message("RepositoryModelUnloadResponse")()


def _described() -> descriptor_pool.DescriptorPool:
    """The pool that reflection reads: the service's, and with it those of health and reflection."""
    own = pool()
    default = descriptor_pool.Default()
    for name in (health.SERVICE_NAME, reflection.SERVICE_NAME):
        own.AddSerializedFile(default.FindFileContainingSymbol(name).serialized_pb)
    return own


def _bytes(value: str | bytes) -> bytes:
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def _log_call(
    name: str, request: Any, metadata: dict[str, Any], began: float, error: Exception | None
) -> None:
    status, code = (200, "OK") if error is None else status_of(error)
    asked = str(metadata.get("x-request-id", "")) or getattr(request, "id", "")
    fields = {
        "request_id": asked[:128],
        "protocol": "grpc",
        "method": name,
        "code": code,
        "seconds": round(time.perf_counter() - began, 6),
    }
    if error is not None:
        fields["error"] = message_of(error)
    is_bug = status == 500
    _log.log(
        logging.ERROR if is_bug else logging.INFO,
        "request",
        extra=fields,
        exc_info=error if is_bug else None,
    )
