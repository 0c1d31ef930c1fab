"""The degraded answers of many coding groups at once, by each scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.coding import Code
from codedinv.model import CodedModel
from codedinv.model.light import Grouping, least_sure
from codedinv.model.manifest import ENCODED

Floats = NDArray[np.float32]
Answers = dict[str, NDArray[np.int64]]
_BATCH = 250  # embeddings and activations of a batch stay within a few tens of MB


@dataclass(frozen=True)
class Known:
    """What the networks make of every query by itself.

    Attributes:
        embeddings: (N, *embedding).
        exact: logits (N, outputs) of exact answers.
        light: calibrated logits (N, outputs) of the light model; None without one.
    """

    embeddings: Floats
    exact: Floats
    light: Floats | None


def degraded_answers(
    model: CodedModel,
    queries: Floats,
    known: Known,
    groups: NDArray[np.int64],
    kind: str,
    task: str | None,
) -> Iterator[tuple[list[int], Answers]]:
    """Answers to lost data slots, every set of lost slots that the code covers in turn.

    Args:
        model: decides by its scheme how they are made.
        queries: float32 (N, *input).
        known: of these queries.
        groups: (G, k) of their numbers.
        kind: of the groups; the name under which answers come, "+ fused" where they are mixed.
        task: None for the model's first.

    Yields:
        (m lost slots, {way: classes (G, m)}).
    """
    if model.scheme == "guided":
        for lost, given in guided_answers(model.code, known, groups):
            yield lost, {kind: given}
        return
    if model.scheme not in ENCODED:
        for lost in patterns_of_lost(model.code):
            yield lost, {kind: answers_without_groups(model.scheme, known)[groups[:, lost]]}
        return
    grouping: Grouping = "arrival" if kind == "arrival" else "alike"
    for lost, logits in decoded_logits(model, queries, known.embeddings, groups, task):
        answers = {kind: logits.argmax(axis=-1)}
        if known.light is not None and model.fusion is not None:
            mixed = model.fusion(logits, known.light[groups[:, lost]], grouping)
            answers[f"{kind} + fused"] = mixed.argmax(axis=-1)
        yield lost, answers


def answers_without_groups(scheme: str, known: Known) -> NDArray[np.int64]:
    """Classes (N,) that are answered to lost queries where there is no group to ask.

    Replication has the other copy's. Uncoded, the light model answers; without one the query is
    sent again, and answered exactly, only later.
    """
    logits = known.exact if scheme == "replication" or known.light is None else known.light
    classes: NDArray[np.int64] = logits.argmax(axis=1)
    return classes


def guided_answers(
    code: Code, known: Known, groups: NDArray[np.int64]
) -> Iterator[tuple[list[int], NDArray[np.int64]]]:
    """Answers when the parity slots carry duplicates of a group's r least sure queries.

    A lost slot whose query has a duplicate is answered exactly, any other by the light model.

    Yields:
        (m lost slots, classes (G, m)).
    """
    if known.light is None:
        raise ValueError("known: the scheme 'guided' needs the light model's answers, got None")
    doubled = least_sure(known.light[groups], min(code.r, code.k))
    exact, light = known.exact.argmax(axis=1), known.light.argmax(axis=1)
    for slots in patterns_of_lost(code):
        covered = (doubled[:, None, :] == np.array(slots)[None, :, None]).any(axis=2)
        images = groups[:, slots]
        yield slots, np.where(covered, exact[images], light[images])


def decoded_logits(
    model: CodedModel,
    queries: Floats,
    embeddings: Floats,
    groups: NDArray[np.int64],
    task: str | None,
) -> Iterator[tuple[list[int], Floats]]:
    """Logits of decoded embeddings.

    Yields:
        (m lost slots, logits (G, m, outputs)) for every pattern of the code.
    """
    parity = parity_embeddings(model, queries, groups)
    for lost, used in patterns(model.code):
        recovered = recover(model.code, embeddings[groups], parity, lost, used)
        flat = recovered.reshape(-1, *model.embedding_shape)
        logits = in_batches(lambda z: model.head(z, task), flat)
        yield list(lost), logits.reshape(len(groups), len(lost), -1)


def patterns_of_lost(code: Code) -> Iterator[list[int]]:
    """Every set of 1..r data slots."""
    for count in range(1, min(code.r, code.k) + 1):
        yield from map(list, combinations(range(code.k), count))


def patterns(code: Code) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways in which exactly k results arrive and data is missing.

    Yields:
        (lost data slots, parity rows that arrived in their place), both of one length 1..r.
    """
    for lost_count in range(1, min(code.r, code.k) + 1):
        for lost in combinations(range(code.k), lost_count):
            for used in combinations(range(code.r), lost_count):
                yield lost, used


def parity_embeddings(model: CodedModel, queries: Floats, groups: NDArray[np.int64]) -> Floats:
    """f(encoder(group)): queries (N, *input), groups (G, k) of their rows -> (G, r, *embedding)."""
    size = max(1, _BATCH // model.code.k)
    return in_batches(lambda rows: _embed_each(model, model.encode(queries[rows])), groups, size)


def recover(
    code: Code, data: Floats, parity: Floats, lost: tuple[int, ...], used: tuple[int, ...]
) -> Floats:
    """Decodes the lost slots of many groups at once; what `StreamingDecoder` does for one.

    Args:
        code: the (n, k) code.
        data: (G, k, *embedding); the lost slots' rows are not looked at.
        parity: (G, r, *embedding).
        lost: m data slots.
        used: m parity rows in 0..r-1.

    Returns:
        (G, m, *embedding) estimates of the lost slots: C[used, lost]^-1 (parity - C data), the
        sum over the slots that arrived.
    """
    arrived = [slot for slot in range(code.k) if slot not in lost]
    coefficients = np.asarray(code.coefficients)[list(used)]
    flat = data.reshape(*data.shape[:2], -1)[:, arrived]
    syndrome = parity.reshape(*parity.shape[:2], -1)[:, list(used)].astype(np.float64)
    syndrome -= np.einsum("rj,gjd->grd", coefficients[:, arrived], flat, optimize=True)
    solved = np.linalg.inv(coefficients[:, list(lost)]) @ syndrome
    return solved.astype(np.float32).reshape(len(data), len(lost), *data.shape[2:])


def _embed_each(model: CodedModel, parity_queries: Floats) -> Floats:
    flat = parity_queries.reshape(-1, *model.input_shape)
    return model.embed(flat).reshape(*parity_queries.shape[:2], *model.embedding_shape)


def in_batches(
    function: Callable[[Any], Floats], inputs: NDArray[Any], size: int = _BATCH
) -> Floats:
    """A network's results for inputs (N, ...), at most `size` of them in one call."""
    return np.concatenate(
        [function(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    )
