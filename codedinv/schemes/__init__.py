"""Schemes: what a coding group sends to which workers, and how results become answers."""

from __future__ import annotations

from collections.abc import Callable

from codedinv.schemes.guided import guided
from codedinv.schemes.invertible import invertible, worker_encoded
from codedinv.schemes.replication import replication
from codedinv.schemes.scheme import Plan, Scheme, ServedModel, Source
from codedinv.schemes.uncoded import uncoded

SCHEMES: dict[str, Callable[[ServedModel], Scheme]] = {
    "guided": guided,
    "invertible": invertible,
    "replication": replication,
    "uncoded": uncoded,
    "worker-encoded": worker_encoded,
}

__all__ = [
    "SCHEMES",
    "Plan",
    "Scheme",
    "ServedModel",
    "Source",
    "build_scheme",
    "guided",
    "invertible",
    "replication",
    "uncoded",
    "worker_encoded",
]


def build_scheme(scheme: str | Scheme, model: ServedModel) -> Scheme:
    """A scheme by its name, built for `model`; a `Scheme` is passed through.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {sorted(SCHEMES)} or a Scheme, got {scheme!r}")
    return SCHEMES[scheme](model)
