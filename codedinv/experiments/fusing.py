"""fit_fusion: the weights with which decoded and light answers are mixed, for a finished model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.accuracy import CHOICE, known_of
from codedinv.experiments.degraded import Floats, Known, decoded_logits
from codedinv.experiments.groupings import Groups, alike_groups, arrival_groups
from codedinv.model import CodedModel
from codedinv.model.light import Fusion, log_softmax

_GROUPINGS = 4
_STEPS = 200


def fit_fusion(
    model: CodedModel, queries: Floats, labels: NDArray[np.int64], seed: int = 0
) -> Fusion:
    """Fits the weights at which the labels of lost queries are likeliest.

    Args:
        model: with an encoder and a light model, r = 1.
        queries: float32 (N, *input) that none of its networks has seen: on learnt ones f looks
            better than it is, and would be trusted too much.
        labels: int (N,).
        seed: of the groupings.

    Raises:
        ValueError: no light model, or fewer queries than a group holds.
    """
    if model.light is None:
        raise ValueError("model: fusion mixes with a light model's answers, and it has none")
    if len(queries) < model.code.k:
        raise ValueError(
            f"queries: expected at least k = {model.code.k} held-out ones, got {len(queries)}"
        )
    known = known_of(model, queries)
    weights = {}
    for kind in ("arrival", "alike"):
        decoded, light, truth = [], [], []
        for groups in _held_out_groups(kind, known, model.code.k, seed):
            for lost, logits in decoded_logits(model, queries, known.embeddings, groups, None):
                images = groups[:, lost].ravel()
                decoded.append(log_softmax(logits.reshape(len(images), -1)))
                light.append(log_softmax(_light(known)[images]))
                truth.append(labels[images])
        weights[kind] = likeliest_weights(
            np.concatenate(decoded), np.concatenate(light), np.concatenate(truth)
        )
    return Fusion(weights)


def likeliest_weights(
    decoded: NDArray[np.float64], light: NDArray[np.float64], truth: NDArray[np.int64]
) -> tuple[float, float]:
    """(a, b) that maximise the likelihood of the truth under softmax(a decoded + b light).

    The loss is convex in (a, b), and Newton's method with halved steps finds its minimum.

    Args:
        decoded, light: log probabilities (M, outputs).
        truth: int (M,).
    """
    features = np.stack([decoded, light], axis=-1)  # (M, outputs, 2)
    rows = np.arange(len(truth))

    def loss(weights: NDArray[np.float64]) -> float:
        return float(-log_softmax(features @ weights)[rows, truth].mean())

    weights = np.array([0.5, 0.5])
    for _ in range(_STEPS):
        share = np.exp(log_softmax(features @ weights))
        mean = np.einsum("mo,moi->mi", share, features)
        slope = (mean - features[rows, truth]).mean(axis=0)
        spread = np.einsum("mo,moi,moj->ij", share, features, features) / len(truth)
        curvature = spread - mean.T @ mean / len(truth)
        move = np.linalg.solve(curvature + 1e-9 * np.eye(2), slope)
        while loss(weights - move) > loss(weights) and np.abs(move).max() > 1e-9:
            move /= 2
        if np.abs(move).max() < 1e-7:
            break
        weights -= move
    return float(weights[0]), float(weights[1])


def _held_out_groups(kind: str, known: Known, k: int, seed: int) -> Iterator[Groups]:
    generator = np.random.default_rng(seed)
    for _ in range(_GROUPINGS):
        order = generator.permutation(len(known.exact))
        if kind == "arrival":
            yield arrival_groups(order, k)
        else:
            yield alike_groups(order, _light(known).argmax(axis=1), k, among=CHOICE * k)


def _light(known: Known) -> Floats:
    if known.light is None:
        raise ValueError("known: expected the light model's logits, got None")
    return known.light
