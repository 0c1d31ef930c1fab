"""What went wrong with a request, and how HTTP and gRPC say it."""

from __future__ import annotations

from codedinv.errors import (
    CodedInvError,
    DeadlineExceeded,
    Overloaded,
    ServerClosed,
    Unrecoverable,
)


class RequestError(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        code: of gRPC, the name of a `grpc.StatusCode`.
    """

    status = 400
    code = "INVALID_ARGUMENT"


class Unauthenticated(RequestError):
    """No token, or a wrong one."""

    status, code = 401, "UNAUTHENTICATED"


class NotFound(RequestError):
    """No such model, version, or page."""

    status, code = 404, "NOT_FOUND"


class MethodNotAllowed(RequestError):
    """The page takes another method."""

    status, code = 405, "UNIMPLEMENTED"


class TooLarge(RequestError):
    """A body, tensor or batch beyond the gateway's limits."""

    status, code = 413, "RESOURCE_EXHAUSTED"


class Unavailable(RequestError):
    """The model is not ready, or the gateway is going."""

    status, code = 503, "UNAVAILABLE"


_OF_THE_SERVER: tuple[tuple[type[Exception], int, str], ...] = (
    (Overloaded, 429, "RESOURCE_EXHAUSTED"),
    (ServerClosed, 503, "UNAVAILABLE"),
    (Unrecoverable, 503, "UNAVAILABLE"),
    (DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    (CodedInvError, 500, "INTERNAL"),
    (ValueError, 400, "INVALID_ARGUMENT"),  # `ProtocolError` too
)


_MOST_WORDS = 1000  # characters: a client's own words may be in them, megabytes long


def status_of(error: Exception) -> tuple[int, str]:
    """The HTTP status and the name of the gRPC code for an error; a bug's are 500 and INTERNAL."""
    if isinstance(error, RequestError):
        return error.status, error.code
    for kind, status, code in _OF_THE_SERVER:
        if isinstance(error, kind):
            return status, code
    return 500, "INTERNAL"


def message_of(error: Exception) -> str:
    """What the caller is told. Of a bug only its type: its text may hold what is not theirs."""
    if isinstance(error, RequestError | CodedInvError | ValueError):
        text = str(error) or type(error).__name__
        return text if len(text) <= _MOST_WORDS else f"{text[: _MOST_WORDS - 3]}..."
    return f"internal error: {type(error).__name__}"
