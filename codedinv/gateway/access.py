"""What lies around every HTTP request: its id, its token, its line in the log, its error."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from codedinv.gateway.bodies import ClientGone, Message, Receive
from codedinv.gateway.errors import Unauthenticated, Unavailable, message_of, status_of

Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("codedinv.gateway.access")
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}\Z")
_MOST_PATH = 200  # characters, in the log
_JSON = (b"content-type", b"application/json")


class Token:
    """Who may ask.

    Args:
        token: None: everybody.
    """

    def __init__(self, token: str | None) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()

    def check(self, authorization: bytes) -> None:
        """Refuses others, whatever the header `Authorization` says instead.

        Raises:
            Unauthenticated: not the token.
        """
        if self._expected is None or hmac.compare_digest(self._expected, authorization):
            return
        raise Unauthenticated("authorization: expected `Bearer` and the gateway's token")


class Access:
    """The outermost layer of the ASGI application.

    Args:
        app: what answers. It finds the headers, lower case, in `scope["headers_of"]`.
        token: of all paths but `open_paths`.
        open_paths: for everybody.
        draining: is the gateway going? Then connections are closed after their answer.
        log_all: a line for each request; else only for those with an error.
        max_requests: at a time.
    """

    def __init__(
        self,
        app: App,
        token: Token,
        open_paths: frozenset[str],
        draining: Callable[[], bool],
        log_all: bool,
        max_requests: int,
    ) -> None:
        self._app = app
        self._token = token
        self._open_paths = open_paths
        self._draining = draining
        self._log_all = log_all
        self._max_requests = max_requests
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        scope["headers_of"] = headers
        request_id = headers.get(b"x-request-id", b"")
        if not _ID.match(request_id):
            request_id = secrets.token_hex(8).encode()
        answer = _Answer(send, request_id, self._draining())
        began = time.perf_counter()
        error: Exception | None = None
        self._in_progress += 1
        try:
            if _path(scope) not in self._open_paths:
                self._token.check(headers.get(b"authorization", b""))
                if self._in_progress > self._max_requests:
                    raise Unavailable(f"{self._max_requests} requests are in progress")
            await self._app(scope, receive, answer.send)
        except ClientGone:
            return
        except Exception as raised:
            if answer.status:
                raise  # it had begun: the connection is broken off
            error = raised
            await _send_error(answer.send, raised)
        finally:
            self._in_progress -= 1
        if self._log_all or error is not None:
            _log_request(scope, request_id, answer.status, time.perf_counter() - began, error)


class _Answer:
    """Adds the gateway's headers to an answer, and remembers its status."""

    def __init__(self, send: Send, request_id: bytes, closes: bool) -> None:
        self._send = send
        self._added = [(b"x-request-id", request_id)]
        if closes:
            self._added.append((b"connection", b"close"))
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._added]
        await self._send(message)


async def send_body(
    send: Send, body: bytes, headers: list[tuple[bytes, bytes]], status: int = 200
) -> None:
    """A whole answer."""
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, value: Any, status: int = 200) -> None:
    """An answer of JSON."""
    await send_body(send, orjson.dumps(value), [_JSON], status)


async def _send_error(send: Send, error: Exception) -> None:
    status, _ = status_of(error)
    headers = [_JSON]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status == 405:
        headers.append((b"allow", str(error.args[-1]).encode()))
    if status in (429, 503):
        headers.append((b"retry-after", b"1"))
    await send_body(send, orjson.dumps({"error": message_of(error)}), headers, status)


def _path(scope: Scope) -> str:
    """Below where the application is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _log_request(
    scope: Scope, request_id: bytes, status: int, seconds: float, error: Exception | None
) -> None:
    fields = {
        "request_id": request_id.decode(),
        "protocol": "http",
        "method": scope["method"],
        "path": scope["path"][:_MOST_PATH],
        "status": status,
        "seconds": round(seconds, 6),
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
