"""Copies of the most doubtful queries: redundancy where the light model is least sure.

A light model at the front end answers every query at a few percent of the backbone's cost, and
knows which of its answers to doubt. Of k queries the r most doubtful are sent to a second worker;
whatever is late or lost besides gets the light model's answer.
"""

from __future__ import annotations

from codedinv.errors import CodedInvError
from codedinv.schemes.scheme import Array, Decoder, Plan, Scheme, ServedModel


def guided(model: ServedModel, copies: int | None = None) -> Scheme:
    """Builds the scheme with groups of the model's k.

    Args:
        model: with a light model, or a server with a fallback of its own.
        copies: of each group, 1 or more; None: the model's r.

    Raises:
        ValueError: no copies; that is the scheme `uncoded` with a fallback.
    """
    copies = model.code.r if copies is None else copies
    if copies < 1:
        raise ValueError(f"copies: expected 1 or more, got {copies}")

    def encode(queries: Array) -> Array:
        raise CodedInvError("scheme 'guided' has nothing to encode")

    def decoder() -> Decoder:
        raise CodedInvError("scheme 'guided' has nothing to decode")

    k = model.code.k
    plan = Plan(k=k, n=k + copies, needed=k, recovered="fallback", guided=True)
    return Scheme("guided", plan, encode, decoder)
