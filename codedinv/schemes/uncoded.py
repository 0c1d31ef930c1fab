"""No redundancy: every query to one worker. The baseline; what is lost is sent again."""

from __future__ import annotations

from codedinv.errors import CodedInvError
from codedinv.schemes.scheme import Array, Decoder, Plan, Scheme, ServedModel


def uncoded(model: ServedModel) -> Scheme:
    """Builds a scheme of groups of one query and one slot; it works at n/k = 1."""

    def encode(queries: Array) -> Array:
        raise CodedInvError("scheme 'uncoded' has nothing to encode")

    def decoder() -> Decoder:
        raise CodedInvError("scheme 'uncoded' has nothing to decode")

    return Scheme("uncoded", Plan(k=1, n=1, needed=1), encode, decoder)
