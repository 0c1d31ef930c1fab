"""Coded-InvNet: r learned parity queries per k queries, decoded linearly in the embedding space."""

from __future__ import annotations

import numpy as np

from codedinv.coding import StreamingDecoder
from codedinv.schemes.scheme import Array, Decoder, Plan, Scheme, ServedModel


def invertible(model: ServedModel) -> Scheme:
    """Builds the scheme from the model's own code, encoder and anchors.

    Source: Dinh & Lee, "Coded-InvNet for Resilient Prediction Serving Systems", ICML 2021,
    section 3.
    """
    code = model.code

    def encode(queries: Array) -> Array:
        return np.asarray(model.encode(queries), np.float32)

    def decoder() -> Decoder:
        return StreamingDecoder(code, shape=tuple(model.embedding_shape), dtype="float32")

    plan = Plan(k=code.k, n=code.n, needed=code.k)
    return Scheme("invertible", plan, encode, decoder, anchors=model.anchors)
