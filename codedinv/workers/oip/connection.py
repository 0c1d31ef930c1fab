"""What the pool wants of a connection to a server, however it speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from codedinv.oip import InferRequest, InferResponse
from codedinv.oip.tensors import shortened
from codedinv.workers.oip.signature import ModelInfo


class Gone(Exception):
    """The server, or its model, is not there (any more)."""


class NoAnswer(Exception):
    """A question about the server was not answered in time."""


class Failed(NamedTuple):
    """A request that was not answered as it should be.

    Attributes:
        reason: what the server or the connection said.
        is_gone: the server or its model is not there any more; else the request alone failed.
    """

    reason: str
    is_gone: bool = False


MOST_BYTES = 2**26  # of an answer: a thousand times a usual embedding, and not all of our memory

Done = Callable[[InferResponse | Failed], None]  # called once, in a thread of the connection's


def belonging(answer: InferResponse, identity: str) -> InferResponse | Failed:
    """An answer, unless it says that it is another request's; some servers say nothing."""
    if answer.id in ("", identity):
        return answer
    return Failed(f"answer: expected that of {identity!r}, got that of {shortened(answer.id)}")


class Connection(Protocol):
    """A connection to one server. `infer` and `close` never block; the questions do."""

    can_cancel: bool

    def is_server_ready(self) -> bool:
        """Does it take requests?

        Raises:
            Gone, NoAnswer: as all questions.
        """

    def is_model_ready(self, model: str, version: str) -> bool:
        """Can the model be asked?

        Raises:
            Gone: there is no such model; or as all questions.
        """

    def describe(self, model: str, version: str) -> ModelInfo:
        """Signature and parameters of a model.

        Raises:
            Gone, NoAnswer: as all questions.
            WrongModel: what the server says is not understood.
        """

    def infer(
        self,
        model: str,
        version: str,
        request: InferRequest,
        done: Done,
        headers: Mapping[str, str],
    ) -> object:
        """Sends a request, with these headers beside those of the connection.

        Returns:
            What `cancel` takes.
        """

    def cancel(self, call: object) -> None:
        """Tells the server that a request is not wanted any more, if `can_cancel`; `done` is
        called soon."""

    def watch(self, lost: Callable[[str], None]) -> None:
        """Has `lost` called, with a reason, if the server goes while nothing is asked of it, as far
        as that can be known."""

    def close(self) -> None:
        """Ends all that is under way; `done` of that may or may not be called."""
