"""What requests came through the gateway, and how they ended."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Any

from codedinv.gateway.errors import status_of
from codedinv.serving.histogram import Histogram

UNKNOWN = "unknown"


class Traffic:
    """Counts inference requests by protocol, model and HTTP status (gRPC's as their HTTP kin).

    Attributes:
        ended: requests by (protocol, model, status). Status 499: the client went away.
        seconds: how long they took, by (protocol, model).
        in_progress: how many there are.
    """

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[tuple[str, str], Histogram] = {}
        self.in_progress = 0

    def request(self, protocol: str) -> Record:
        """A request, to be used in a `with` statement around all of it."""
        return Record(self, protocol)

    def end(self, protocol: str, model: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self.ended[protocol, model, status] += 1
        key = protocol, model
        if key not in self.seconds:
            self.seconds[key] = Histogram()
        self.seconds[key].record(seconds)


class Record:
    """One request in progress.

    Attributes:
        model: whom it asks, once that is known: names that clients make up are no labels.
    """

    __slots__ = ("_began", "_protocol", "_traffic", "model")

    def __init__(self, traffic: Traffic, protocol: str) -> None:
        self._traffic = traffic
        self._protocol = protocol
        self.model: Any = None

    def __enter__(self) -> Record:
        self._traffic.in_progress += 1
        self._began = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._traffic.in_progress -= 1
        if error is None:
            status = 200
        else:
            status = status_of(error)[0] if isinstance(error, Exception) else 499
        name = self.model.name if self.model is not None else UNKNOWN
        self._traffic.end(self._protocol, name, status, time.perf_counter() - self._began)
