"""What the light model does for a server besides answering: who is unsure, who is alike, and a
second opinion on decoded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np

from codedinv.model.light import lead
from codedinv.schemes import Scheme, ServedModel
from codedinv.schemes.scheme import ENCODED, Array

Grouping = Literal["arrival", "alike"]
Outputs = Mapping[str, Array]


class Sorted(NamedTuple):
    """What the core is told of some queries, each (B,)."""

    buckets: list[int]
    doubts: list[float]


def build_sorter(
    model: ServedModel, scheme: Scheme, grouping: Grouping
) -> Callable[[Array], Sorted] | None:
    """A function of queries (B, *input); None where neither guidance nor grouping asks for it.

    Raises:
        ValueError: an unknown grouping, or no light model where one is needed.
    """
    if grouping not in get_args(Grouping):
        raise ValueError(f"grouping: expected one of {list(get_args(Grouping))}, got {grouping!r}")
    if grouping == "arrival" and not scheme.plan.guided:
        return None
    light = getattr(model, "light", None)
    if light is None:
        what = "scheme 'guided'" if scheme.plan.guided else "grouping 'alike'"
        raise ValueError(f"{what}: expected a model with a light model; {model.name!r} has none")
    task = next(iter(model.heads))

    def sort(queries: Array) -> Sorted:
        logits = np.asarray(light(queries)[task])
        alike = grouping == "alike"
        buckets = logits.argmax(axis=1).tolist() if alike else [0] * len(queries)
        return Sorted(buckets, (-lead(logits)).tolist())

    return sort


def build_fusion(
    model: ServedModel, scheme: Scheme, grouping: Grouping
) -> Callable[[Array, Outputs], Outputs] | None:
    """A function of a query (*input) and its decoded outputs {task: (outputs,)}, which mixes the
    light model's answer to the first task into them by the model's own weights; None where the
    model has none."""
    fusion, light = getattr(model, "fusion", None), getattr(model, "light", None)
    if fusion is None or light is None or scheme.name not in ENCODED:
        return None
    task = next(iter(model.heads))

    def fuse(query: Array, outputs: Outputs) -> Outputs:
        own = np.asarray(light(query[np.newaxis])[task][0])
        return {**outputs, task: fusion(outputs[task], own, grouping)}

    return fuse
