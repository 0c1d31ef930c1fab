"""The ways to serve that the demo compares, all with the same number of workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from codedinv.model import CodedModel
from codedinv.serving import Policy

UNCODED, REPLICATION, HEDGED = "uncoded", "replication 2x", "hedged at p95"
GUIDED, INVERTIBLE = "guided", "Coded-InvNet"


@dataclass(frozen=True)
class Column:
    """One run of the demo.

    Attributes:
        label: what it is called.
        scheme: of the server.
        policy: of the server.
        front_end: multiply-accumulates at the front end for every query, over one backbone call.
        coded: is it ours: must it answer every query?
    """

    label: str
    scheme: str
    policy: Policy = field(default_factory=Policy)
    front_end: float = 0.0
    coded: bool = False


def columns_of(model: CodedModel) -> tuple[list[Column], dict[str, str]]:
    """The runs that a model can do, and why it cannot do the others, by their labels."""
    macs = model.metadata["macs"]
    columns = [
        Column(UNCODED, "uncoded"),
        Column(REPLICATION, "replication"),
        Column(HEDGED, "uncoded", Policy(hedge_after="p95")),
    ]
    omitted = {}
    if model.light is not None:
        share = macs["light"] / macs["backbone"]
        columns.append(Column(GUIDED, "guided", front_end=share, coded=True))
    else:
        omitted[GUIDED] = f"{model.name} has no light model"
    if "encoder" in macs:
        at_worker = model.scheme == "worker-encoded"
        share = 0.0 if at_worker else macs["encoder"] / model.code.k / macs["backbone"]
        scheme = model.scheme if at_worker else "invertible"
        columns.append(Column(INVERTIBLE, scheme, front_end=share, coded=True))
    else:
        omitted[INVERTIBLE] = f"{model.name} has no encoder: it is made for scheme {model.scheme!r}"
    return columns, omitted
