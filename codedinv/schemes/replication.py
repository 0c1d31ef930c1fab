"""Every query to several workers at once: the plain way, at `copies` times the work."""

from __future__ import annotations

import numpy as np

from codedinv.coding import Code, StreamingDecoder
from codedinv.schemes.scheme import Array, Decoder, Plan, Scheme, ServedModel


def replication(model: ServedModel, copies: int = 2) -> Scheme:
    """Builds a scheme of groups of one query and `copies` slots.

    A copy is a parity with coefficient 1, so the coding machinery serves unchanged: the first
    result to come is the answer, and the residual compares the copies. An answer from a copy is
    `exact`: it is the same backbone's result of the same query.

    Args:
        model: the model served.
        copies: worker queries per query, 2 or more: the redundancy factor.

    Raises:
        ValueError: fewer than two copies; that is the scheme `uncoded`.
    """
    if copies < 2:
        raise ValueError(f"copies: expected 2 or more, got {copies}")
    code = Code(np.ones((copies - 1, 1)))

    def encode(queries: Array) -> Array:
        return np.repeat(queries, copies - 1, axis=1)

    def decoder() -> Decoder:
        return StreamingDecoder(code, shape=tuple(model.embedding_shape), dtype="float32")

    return Scheme("replication", Plan(k=1, n=copies, needed=1, recovered="exact"), encode, decoder)
