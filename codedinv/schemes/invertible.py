"""Coded-InvNet: r learned parity queries per k queries, decoded linearly in the embedding space.

The encoder runs at the front end, or at the worker that gets the parity query.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codedinv.coding import StreamingDecoder
from codedinv.schemes.scheme import (
    BACKBONE,
    Array,
    Decoder,
    Plan,
    Scheme,
    ServedModel,
    parity_model,
)


def invertible(model: ServedModel) -> Scheme:
    """Builds the scheme from the model's own code, encoder and anchors.

    Source: Dinh & Lee, "Coded-InvNet for Resilient Prediction Serving Systems", ICML 2021,
    section 3.
    """
    code = model.code

    def encode(queries: Array) -> Array:
        return np.asarray(model.encode(queries), np.float32)

    plan = Plan(k=code.k, n=code.n, needed=code.k)
    return Scheme("invertible", plan, encode, _decoders(model), anchors=model.anchors)


def worker_encoded(model: ServedModel) -> Scheme:
    """As `invertible`, for an encoder too heavy for the front end: a parity slot carries all k
    queries of its group, and its worker runs encoder and backbone, the *parity model* (a term of
    Kosaian et al., "Parity models", SOSP 2019, whose parity model is trained whole).

    The front end only copies; the parity worker gets k times the bytes, and as much more to do as
    the encoder takes.
    """
    code = model.code

    def encode(queries: Array) -> Array:
        return np.repeat(queries[:, np.newaxis], code.r, axis=1)

    models = (BACKBONE,) * code.k + tuple(parity_model(i) for i in range(code.r))
    plan = Plan(k=code.k, n=code.n, needed=code.k, models=models)
    shape = (code.k, *model.input_shape)
    return Scheme(
        "worker-encoded", plan, encode, _decoders(model), anchors=model.anchors, parity_shape=shape
    )


def _decoders(model: ServedModel) -> Callable[[], Decoder]:
    def decoder() -> Decoder:
        return StreamingDecoder(model.code, shape=tuple(model.embedding_shape), dtype="float32")

    return decoder
