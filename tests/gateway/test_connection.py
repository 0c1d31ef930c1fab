"""A connection that the end of the gateway meets before its request has come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from codedinv.gateway import connection
from codedinv.gateway.connection import connection_class


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"5"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


@contextlib.asynccontextmanager
async def ending() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection to a server that takes no new ones any more."""
    config = uvicorn.Config(
        _hello, port=0, http=connection_class(30.0), lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    (listener,) = server.servers
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
    while not server.server_state.connections:
        await asyncio.sleep(0.01)
    server.should_exit = True
    while listener.is_serving():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # by now the connections were told too
    yield reader, writer
    await asyncio.wait_for(serving, 20)
    writer.close()


def test_a_request_on_its_way_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_LAST_REQUEST_S", 10.0)

    async def late() -> bytes:
        async with ending() as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: me\r\n\r\n")
            return await reader.read()

    answer = asyncio.run(late())
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"hello")


def test_a_silent_connection_is_soon_closed() -> None:
    async def silent() -> bytes:
        async with ending() as (reader, _):
            return await asyncio.wait_for(reader.read(), 10)

    assert asyncio.run(silent()) == b""
