"""An HTTP connection that has no patience without end: uvicorn's, with limits of size and time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEAD_BYTES = 64 * 2**10  # request line and headers; usual proxies stop at 8 to 32 KiB
_LAST_REQUEST_S = 0.2  # for one that was sent before its client could know of the end


def connection_class(receive_timeout_s: float) -> type[asyncio.Protocol]:
    """What uvicorn makes for each connection.

    Args:
        receive_timeout_s: that a request may take from its first byte to its last, and a new
            connection until its first request is there.
    """

    class Connection(_Connection):
        limit_s = receive_timeout_s

    return Connection


class _Connection(HttpToolsProtocol):
    limit_s: float

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._steps = 0  # of the parser: heads begun and ended, pieces of bodies, ends
        self._head_bytes = 0
        self._arriving: asyncio.TimerHandle | None = None
        self._expect_all_of_it()

    def connection_lost(self, exc: Exception | None) -> None:
        self._it_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        steps = self._steps
        super().data_received(data)
        if self._steps != steps:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)  # or those of trailers, or of a chunk's extension
        if self._head_bytes > _MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"head: expected at most {_MOST_HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._steps += 1
        self._expect_all_of_it()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._steps += 1
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._steps += 1
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._steps += 1
        self._it_is_there()
        super().on_message_complete()

    def shutdown(self) -> None:
        """Ends the connection; an idle one only after a moment, for a request may be on its way,
        above all where it has just been made. One that comes is answered, and the answer says that
        it is the last."""
        idle = self.cycle is None or self.cycle.response_complete
        if not idle or self.transport.is_closing():
            super().shutdown()
            return
        self.loop.call_later(_LAST_REQUEST_S, super().shutdown)

    def _expect_all_of_it(self) -> None:
        self._it_is_there()
        self._arriving = self.loop.call_later(self.limit_s, self._give_up)

    def _it_is_there(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _give_up(self) -> None:
        if self.pipeline:  # it is not read on while those before it are answered
            self._expect_all_of_it()
        elif not self.transport.is_closing():
            self.transport.close()
