"""A CodedServer in a Ray Serve deployment: HTTP, scaling and rollout by Serve, and the answers in
time by the coding inside each replica.

Needs the extras `ray` and `gateway`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from codedinv.errors import CodedInvError
from codedinv.gateway.rest import create_app
from codedinv.serving import CodedServer, Prediction

_log = logging.getLogger("codedinv")


def build_application(
    model: str, *, server: Mapping[str, Any] | None = None, **options: Any
) -> serve.Application:
    """What `serve.run` takes.

        serve.run(build_application("fashion-mnist", server={"workers": 5}, num_replicas=2))

    Args:
        model: a bundled name, or a bundle's folder that every node has.
        server: further arguments of `CodedServer`; with `backend="ray"` the workers are actors,
            spread over the nodes.
        options: of the deployment, as `serve.deployment` takes them. `ray_actor_options` should
            reserve the processors of process workers, which run beside the replica.
    """
    defaults = {"name": "codedinv", "max_ongoing_requests": 1024}  # the server's own queue
    deployment = serve.deployment(**{**defaults, **options})(CodedReplica)
    return deployment.bind(model, dict(server or {}))


class CodedReplica:
    """One replica: a CodedServer with workers of its own.

    HTTP requests are those of the Open Inference Protocol, as `create_app` answers them; Python's
    handles call `predict`.
    """

    def __init__(self, model: str, server: Mapping[str, Any]) -> None:
        self._model = model
        self._server = CodedServer(model, **server)
        self._app = create_app(self._server)

    async def __call__(self, request: Request) -> Response:
        """An HTTP request of the Open Inference Protocol."""
        answer = _Answer()
        await self._app(request.scope, request.receive, answer.take)
        return answer.response()

    async def predict(self, x: Any, deadline: float | None = None) -> Prediction | list[Prediction]:
        """As `CodedServer.predict_async`: `await handle.predict.remote(x)`."""
        return await self._server.predict_async(x, deadline)

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve's `user_config`: {"model": ...} brings out another model without losing a query."""
        model = user_config.get("model", self._model)
        if model != self._model:
            await self._server.reload_async(model)
            self._model = model

    def check_health(self) -> None:
        """Called by Serve now and then.

        Raises:
            CodedInvError: no worker is ready, so that Serve replaces the replica.
        """
        stats = self._server.stats()
        if not any(state in ("ready", "busy") for state in stats.workers):
            raise CodedInvError(f"no worker is ready: {stats.workers}; {stats.last_error}")

    def __del__(self) -> None:
        if hasattr(self, "_server"):
            self._server.close()


class _Answer:
    """Takes an ASGI application's messages and makes a response of them."""

    def __init__(self) -> None:
        self._status = 500
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], list(message["headers"])
        elif message["type"] == "http.response.body":
            self._body.append(message.get("body", b""))

    def response(self) -> Response:
        response = Response(b"".join(self._body), self._status)
        response.raw_headers = self._headers
        return response
