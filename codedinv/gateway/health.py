"""grpc.health.v1: whether the gateway is ready, asked at the moment of the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from codedinv.oip.messages import SERVICE

_NAMES = ("", SERVICE)
_LOOK_S = 0.25  # at the models, for those who watch: they change by many hands
_States = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The service.

    Args:
        is_ready: is the gateway?
    """

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        self._is_ready = is_ready
        self._over = asyncio.Event()

    def end(self) -> None:
        """Ends the watches, which would last for ever, after a last word."""
        self._over.set()

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in _NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return self._answer(request.service)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        said = None
        while True:
            is_over = self._over.is_set()
            now = self._answer(request.service)
            if now != said:
                yield now
            if is_over:
                return
            said = now
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _LOOK_S)

    def _answer(self, service: str) -> Any:
        if service not in _NAMES:
            state = _States.SERVICE_UNKNOWN
        else:
            state = _States.SERVING if self._is_ready() else _States.NOT_SERVING
        return health_pb2.HealthCheckResponse(status=state)
