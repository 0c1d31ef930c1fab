"""What a scheme is: what a coding group sends to which workers, and how results become answers.

Two halves. `Plan` is numbers only and all that the pure core knows. `Scheme` adds the numerics, as
functions that the server's loop calls when the core asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Source = Literal["exact", "reconstructed", "hedged", "fallback"]

BACKBONE = "backbone"
# Schemes whose parity queries are the model's own encoder's, wherever it runs.
ENCODED = ("invertible", "worker-encoded")


def parity_model(number: int) -> str:
    """The name by which workers know encoder and backbone in one, for the parity of this number."""
    return f"parity-{number}"


@dataclass(frozen=True)
class Plan:
    """A coding group in numbers.

    Slots 0..k-1 carry the queries themselves and are sent the moment they arrive; slots k..n-1 are
    made by `Scheme.encode` once the group has closed.

    Args:
        k: queries per group.
        n: slots per group.
        needed: this many results, of whichever slots, give the answers of all k queries.
        recovered: source of an answer that was not given by the query's own slot.
        models: which model a worker runs for each slot, n names; empty: the backbone for all.
        guided: slots k..n-1 are not encoded: they carry copies of the group's most doubtful
            queries, and a copy's result answers its query as its own would.

    Raises:
        ValueError: counts that contradict each other.
    """

    k: int
    n: int
    needed: int
    recovered: Source = "reconstructed"
    models: tuple[str, ...] = field(default=())
    guided: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise ValueError(f"plan: expected 1 <= k <= n, got k={self.k}, n={self.n}")
        if not 1 <= self.needed <= self.n:
            raise ValueError(f"plan: expected 1 <= needed <= n={self.n}, got {self.needed}")
        if not self.models:
            object.__setattr__(self, "models", (BACKBONE,) * self.n)
        if len(self.models) != self.n:
            raise ValueError(f"plan: expected {self.n} models, one per slot, got {self.models}")


class Decoder(Protocol):
    """Takes results as they come; `codedinv.coding.StreamingDecoder` is one."""

    def push(self, slot: int, embedding: Any, /) -> None: ...
    def recover(self) -> Mapping[int, Any]: ...
    def residual(self) -> Any: ...
    def reset(self) -> None: ...


class Anchors(Protocol):
    """Stored queries with their embeddings; they fill the free slots of a partial group."""

    @property
    def queries(self) -> Any: ...
    @property
    def embeddings(self) -> Any: ...


class ServedModel(Protocol):
    """What serving asks of a model; `codedinv.CodedModel` is one. Shapes as in `CodedModel`."""

    @property
    def name(self) -> str: ...
    @property
    def code(self) -> Any: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def embedding_shape(self) -> tuple[int, ...]: ...
    @property
    def heads(self) -> Mapping[str, Any]: ...
    @property
    def anchors(self) -> Anchors: ...
    @property
    def folder(self) -> Any: ...

    def encode(self, queries: Any, /) -> Any: ...
    def embed(self, x: Any, /) -> Any: ...
    def head(self, z: Any, /, task: str | None = None) -> Any: ...
    def save(self, folder: Any, /) -> Any: ...


@dataclass(frozen=True)
class Scheme:
    """A plan with its numerics.

    Attributes:
        name: as in `CodedServer(scheme=...)`.
        plan: what the core knows.
        encode: queries (G, k, *input) of G groups -> what their slots k..n-1 carry,
            (G, n - k, *parity_shape).
        decoder: makes an empty decoder of one group. Of it only `recover` and `residual` are asked
            after at least `plan.needed`, or all n, results were pushed.
        anchors: queries and embeddings for partial groups: k - 1 or more, where k > 1 and n > k.
        parity_shape: of what a parity slot carries; None: of a query.

    Raises:
        ValueError: too few anchors, or anchors that are not finite.
    """

    name: str
    plan: Plan
    encode: Callable[[Array], Array]
    decoder: Callable[[], Decoder]
    anchors: Anchors | None = None
    parity_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        encodes = self.plan.n > self.plan.k and not self.plan.guided
        needed = self.plan.k - 1 if encodes else 0
        got = len(self.anchors.queries) if self.anchors is not None else 0
        if got < needed:
            raise ValueError(f"anchors: expected {needed} or more for k={self.plan.k}, got {got}")
        if self.anchors is not None:
            for what, values in (
                ("queries", self.anchors.queries),
                ("embeddings", self.anchors.embeddings),
            ):
                if not np.isfinite(values).all():
                    raise ValueError(f"anchors: expected finite {what}, got NaN or infinity")

    @property
    def redundancy(self) -> float:
        """Worker queries per user query, n / k, for full groups."""
        return self.plan.n / self.plan.k
