"""What cheaper means reach: the controls without which no degraded accuracy means anything.

- light: the light model alone, no redundancy at all. What a coded answer adds to it is all that
  the redundancy buys.
- head alone: the head trained on raw queries, with no backbone (at training; see training.md).
  What A_n adds to it is all that the workers buy.
- plain sum: A_d with sum_j c_ij x_j as parity query. What A_d adds to it is the encoder's doing.
- exact fused: accuracy of exact answers mixed with the light model's, as decoded ones are. Two
  models together err less than either, failure or not: a fused A_d above A_n is that, and no
  wonder of the code.
- affine share: R^2 on unseen images of the best affine map from pixels to embedding. At 1 the
  backbone computes nothing but such a map: easy to encode for, and not worth a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.accuracy import Accuracy, Progress, evaluate
from codedinv.experiments.degraded import Floats, Known
from codedinv.experiments.fusing import likeliest_weights
from codedinv.experiments.intervals import Estimate
from codedinv.model import CodedModel
from codedinv.model.light import log_softmax
from codedinv.model.manifest import ENCODED


@dataclass(frozen=True)
class Controls:
    """Accuracies in percent and a share; None where the model has no such thing.

    Attributes:
        light: A of the light model.
        head_alone: A_n of the head on raw queries, measured when the model was trained.
        plain_sum: A_d with the plain weighted sum as parity query.
        affine_share: at most 1; can be negative.
        exact_fused: accuracy of exact answers fused with the light model's, by weights fitted on
            the other half of the images.
    """

    light: float | None
    head_alone: float | None
    plain_sum: float | None
    affine_share: float
    exact_fused: float | None = None


class PlainSum:
    """A model whose encoder is the code's weighted sum of the queries, and without light model."""

    light = None
    fusion = None
    scheme = "invertible"

    def __init__(self, model: CodedModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, queries: Floats) -> Floats:
        """(B, k, *input) -> (B, r, *input)."""
        coefficients = self._model.code.coefficients
        parity: Floats = np.einsum("rk,gk...->gr...", coefficients, queries).astype(np.float32)
        return parity


def measure_controls(
    model: CodedModel,
    queries: Floats,
    labels: NDArray[np.int64],
    known: Known,
    accuracy: Accuracy,
    *,
    task: str | None = None,
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> Controls:
    """Measures the controls of a model on the images that `evaluate` was given.

    Args:
        model, queries, labels, task, seed: as for `evaluate`.
        known: of these queries.
        accuracy: what `evaluate` found.
    """
    plain_sum = None
    if model.scheme in ENCODED:
        progress("control: plain sum")
        plain: Any = PlainSum(model)
        bare = Known(known.embeddings, known.exact, None)
        measured = evaluate(plain, queries, labels, task=task, groupings=1, seed=seed, known=bare)
        plain_sum = measured.degraded.mean
    progress("control: affine share")
    alone = (model.metadata.get("controls") or {}).get("head_alone")
    return Controls(
        light=None if accuracy.light is None else accuracy.light.mean,
        head_alone=None if alone is None else float(alone["A_n"]),
        plain_sum=plain_sum,
        affine_share=affine_share(queries, known.embeddings),
        exact_fused=exact_fused(known, labels) if model.fusion is not None else None,
    )


def exact_fused(known: Known, labels: NDArray[np.int64]) -> float | None:
    """Percent right of exact answers mixed with light ones; None without a light model.

    The weights for each half of the images are fitted on the other, so none has seen its judges.
    """
    if known.light is None:
        return None
    exact, light = log_softmax(known.exact), log_softmax(known.light)
    right = 0
    for half in range(2):
        a, b = likeliest_weights(exact[1 - half :: 2], light[1 - half :: 2], labels[1 - half :: 2])
        mixed = a * exact[half::2] + b * light[half::2]
        right += int((mixed.argmax(axis=1) == labels[half::2]).sum())
    return 100.0 * right / len(labels)


def retained_gain(over_light: Estimate | None, worth: Estimate | None) -> float | None:
    """R = (A_d - A_light) / (A_n - A_light): the share of the workers' worth that survives.

    Args:
        over_light: A_d - A_light, image by image.
        worth: A_n - A_light, image by image.

    Returns:
        None without a light model, and where f is not measurably better than it (the 95 % interval
        of its worth reaches 0): a ratio of noise says nothing.
    """
    if over_light is None or worth is None or worth.low <= 0:
        return None
    return over_light.mean / worth.mean


def affine_share(queries: Floats, embeddings: Floats) -> float:
    """R^2 on the last quarter of the images of the affine map fitted to the others."""
    x = np.c_[queries.reshape(len(queries), -1), np.ones(len(queries))].astype(np.float64)
    z = embeddings.reshape(len(embeddings), -1).astype(np.float64)
    fitted = len(x) * 3 // 4
    a, b = x[:fitted], z[:fitted]
    if a.shape[0] < a.shape[1]:  # the same by a matrix of images, not of numbers: 224x224 fits too
        predicted = x[fitted:] @ a.T @ np.linalg.solve(a @ a.T + 0.1 * np.eye(len(a)), b)
    else:
        predicted = x[fitted:] @ np.linalg.solve(a.T @ a + 0.1 * np.eye(a.shape[1]), a.T @ b)
    left = ((z[fitted:] - predicted) ** 2).sum()
    return float(1 - left / ((z[fitted:] - z[:fitted].mean(0)) ** 2).sum())


def costs(model: CodedModel) -> dict[str, float | None]:
    """Multiply-accumulates per query of each way to answer; None where a model has no such way.

    `exact` is one backbone call and its head. `degraded` is what the scheme adds to every query,
    failure or not: r backbone calls and one encoder call for k queries, or a guided scheme's light
    model in place of the encoder; replication's second copy; nothing where nothing is added.
    `fused` adds the light model where an answer is missing, `alike` at every query. `light` and
    `head_alone` are paid only where an answer is missing.
    """
    macs = model.metadata["macs"]
    light: float | None = macs.get("light")
    share, coded = model.code.r / model.code.k * macs["backbone"], model.scheme in ENCODED
    degraded = {
        "uncoded": 0,
        "replication": macs["backbone"],
        "guided": share + (light or 0),
    }.get(model.scheme, share + macs.get("encoder", 0) / model.code.k)
    with_light = None if light is None or not coded else degraded + light
    alone = (model.metadata.get("controls") or {}).get("head_alone")
    exact = macs["backbone"] + sum(macs["head"].values())
    return {
        "exact": exact,
        "exact_fused": None if light is None else exact + light,
        "degraded": degraded,
        "fused": with_light,
        "alike": with_light,
        "light": light,
        "head_alone": None if alone is None else alone["macs"],
        "plain_sum": share if coded else None,
    }


def price_of(way: str) -> str:
    """The key in `costs` of a way to group and mix, such as "choosing + fused"."""
    if way == "arrival":
        return "degraded"
    return "fused" if way == "arrival + fused" else "alike"


def beaten_by(
    degraded: float, way: str, controls: Controls, cost: dict[str, float | None]
) -> list[str]:
    """Controls that cost less than that way of answering and answer at least as well.

    Args:
        degraded: A_d of the way.
        way: of grouping and mixing.
        controls, cost: what was measured, and `costs`.
    """
    own = cost[price_of(way)]
    if own is None:
        return []
    found = []
    for name in ("light", "head_alone", "plain_sum"):
        reached, price = getattr(controls, name), cost[name]
        if reached is not None and price is not None and price < own and reached >= degraded:
            found.append(name)
    return found
