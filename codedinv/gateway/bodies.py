"""HTTP bodies: read within a limit, decompressed within it, compressed where the client wants."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from codedinv.gateway.errors import RequestError, TooLarge, Unavailable

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_FASTEST = 1
_LEAST_COMPRESSED = 1024  # bytes; below, the answer is as it is


class Bodies:
    """What requests hold in memory, all together.

    Args:
        most: bytes of bodies and messages at a time.

    Attributes:
        held: bytes now.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def hold(self) -> Hold:
        """Of one request, to be used in a `with` statement around its life."""
        return Hold(self)

    def take(self, size: int) -> None:
        """A request holds so many bytes more.

        Raises:
            Unavailable: all together would be more than there may be.
        """
        if self.held + size > self._most:
            raise Unavailable(f"bodies: {self._most} bytes of other requests are in progress")
        self.held += size


class Hold:
    """The bytes of one request, given back at its end."""

    __slots__ = ("_bodies", "_size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def grow(self, size: int) -> None:
        """So many bytes more have come.

        Raises:
            Unavailable: as `Bodies.take`.
        """
        self._bodies.take(size)
        self._size += size

    def release(self) -> None:
        """The request has ended."""
        self._bodies.held -= self._size
        self._size = 0

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class ClientGone(RequestError):
    """The client went away before its answer: nobody is left to hear it."""

    status, code = 499, "CANCELLED"


async def read_body(
    headers: dict[bytes, bytes], receive: Receive, most: int, hold: Hold | None = None
) -> bytes:
    """The body of a request, decompressed.

    Args:
        headers: lower case.
        receive: of ASGI.
        most: bytes.
        hold: counts them as they come; None: they are few.

    Raises:
        TooLarge: more than that, before or after decompression.
        Unavailable: more than there may be of all requests together.
        RequestError: not compressed as it says.
        ClientGone: it ends before its end.
    """
    stated = headers.get(b"content-length", b"")
    if stated.isdigit() and int(stated) > most:
        raise TooLarge(f"body: expected at most {most} bytes, got {int(stated)}")
    message = await receive()
    parts = [_part(message, hold)]
    size = len(parts[0])
    while message.get("more_body", False) and size <= most:
        message = await receive()
        parts.append(_part(message, hold))
        size += len(parts[-1])
    if size > most:
        raise TooLarge(f"body: expected at most {most} bytes, got more")
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if encoding in ("", "identity"):
        return body
    found = _decompressed(body, encoding, most)
    if hold is not None:
        hold.grow(len(found))
    return found


def compressed(body: bytes, accepted: bytes) -> tuple[bytes, str | None]:
    """A body as the header Accept-Encoding wants it, and what its Content-Encoding is."""
    if not accepted or len(body) < _LEAST_COMPRESSED:
        return body, None
    for choice in accepted.decode("latin-1").lower().split(","):
        name, _, quality = choice.strip().partition(";")
        if name in _WINDOW and quality.replace(" ", "") not in ("q=0", "q=0.0"):
            packer = zlib.compressobj(_FASTEST, zlib.DEFLATED, _WINDOW[name])
            return packer.compress(body) + packer.flush(), name
    return body, None


def _part(message: Message, hold: Hold | None) -> bytes:
    if message["type"] == "http.disconnect":
        raise ClientGone("the client went away")
    part: bytes = message.get("body", b"")
    if hold is not None:
        hold.grow(len(part))
    return part


def _decompressed(body: bytes, encoding: str, most: int) -> bytes:
    if encoding not in _WINDOW:
        raise RequestError(f"content-encoding: expected gzip or deflate, got {encoding[:40]!r}")
    unpacker = zlib.decompressobj(_WINDOW[encoding])
    try:
        found = unpacker.decompress(body, most + 1)
    except zlib.error as error:
        raise RequestError(f"body: not {encoding}: {error}") from None
    if len(found) > most:
        raise TooLarge(f"body: expected at most {most} bytes after decompression, got more")
    if not unpacker.eof or unpacker.unused_data:
        raise RequestError(f"body: expected one whole {encoding} stream")
    return found
