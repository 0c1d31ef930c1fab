"""The light model l of a bundle, and its mix with decoded answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from codedinv.model.runtimes import ArrayT, Network, check_batch

Grouping = Literal["arrival", "alike"]


class LightModel:
    """A small network at the front end that answers every task, roughly but at once.

    Its logits are calibrated: the largest softmax probability is the share of such answers that
    are right, as far as one temperature can make it so.

    Args:
        network: (B, *input) -> (B, all outputs), the tasks' logits one after the other.
        tasks: outputs of each task, in that order.
        input_shape: of one query.
    """

    def __init__(
        self, network: Network, tasks: Mapping[str, int], input_shape: tuple[int, ...]
    ) -> None:
        self._network = network
        self.tasks = dict(tasks)
        self.input_shape = input_shape

    def __call__(self, x: ArrayT) -> dict[str, ArrayT]:
        """float32 (B, *input) -> {task: calibrated logits (B, outputs)}, of the argument's kind."""
        check_batch("x", x, "B", self.input_shape)
        logits = self._network(x)
        parts: dict[str, ArrayT] = {}
        start = 0
        for task, outputs in self.tasks.items():
            parts[task] = logits[:, start : start + outputs]
            start += outputs
        return parts


@dataclass(frozen=True)
class Fusion:
    """Log-linear mix of a decoded answer with the light model's, fitted for one code.

    log p = a log p_decoded + b log p_light + constant. Alike groups decode better, so their mix
    trusts the decoded answer more: each way of grouping has weights of its own.

    Attributes:
        weights: (a, b) for "arrival" and "alike".
    """

    weights: Mapping[str, tuple[float, float]]

    def __call__(
        self,
        decoded: NDArray[np.float32],
        light: NDArray[np.float32],
        grouping: Grouping = "arrival",
    ) -> NDArray[np.float32]:
        """Mixes logits (..., outputs) of a classification task into logits of the same shape.

        Raises:
            ValueError: no weights for that grouping.
        """
        if grouping not in self.weights:
            raise ValueError(f"grouping: expected one of {sorted(self.weights)}, got {grouping!r}")
        a, b = self.weights[grouping]
        mixed = a * log_softmax(decoded) + b * log_softmax(light)
        return mixed.astype(np.float32)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Natural logarithm of the softmax over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def confidence(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Largest softmax probability over the last axis: (..., outputs) -> (...)."""
    sure: NDArray[np.float64] = np.exp(log_softmax(logits).max(axis=-1))
    return sure


def lead(logits: NDArray[Any]) -> NDArray[np.float64]:
    """How far the likeliest class is ahead of the second: (..., outputs) -> (...), log odds.

    What tells best where a second opinion pays: the better model mostly decides between the light
    model's first two classes, so an answer with several weak rivals is less doubtful than its
    probability says. With a single output there is no rival: infinite.
    """
    if logits.shape[-1] < 2:
        return np.full(logits.shape[:-1], np.inf)
    best = np.partition(logits.astype(np.float64), -2, axis=-1)
    ahead: NDArray[np.float64] = best[..., -1] - best[..., -2]
    return ahead


def least_sure(logits: NDArray[Any], count: int = 1) -> NDArray[np.int64]:
    """Slots of each group's least sure queries, those with the smallest lead, the smallest first.

    Args:
        logits: (..., k, outputs), the light model's for a group.
        count: how many, at most k.

    Returns:
        (..., count) slots; of equally sure ones the lower.
    """
    order = np.argsort(lead(logits), axis=-1, kind="stable")
    return order[..., :count].astype(np.int64)
