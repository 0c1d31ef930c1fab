"""Every way in which a fitted model can be served, measured on the test examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.accuracy import Accuracy, Progress, evaluate
from codedinv.experiments.degraded import Known
from codedinv.experiments.intervals import Estimate, difference, interval
from codedinv.experiments.overall import Answers, always, arrives
from codedinv.fitting.settings import AT, GROUPINGS
from codedinv.model import CodedModel

COPIES = 2  # of replication
_GROUPED = {"arrival": "arrival", "choosing": "alike"}  # as CodedServer takes it
_WAYS = ("arrival", "arrival + fused", "choosing", "choosing + fused")


@dataclass(frozen=True)
class Candidate:
    """One way to serve the model, with what it costs and what it is worth.

    Attributes:
        scheme: as `CodedServer` takes it.
        k: queries in a group; 1: there are no groups.
        grouping: "arrival" or "alike", as `CodedServer` takes it.
        fused: whether decoded answers are mixed with the light model's.
        workers: extra work of the workers for each query, over a backbone call.
        front_end: work of the front end for each query, failure or not, over a backbone call.
        front_end_lost: what it does besides for each lost query.
        normal, degraded: A_n and A_d in percent.
        overall: A_o in percent by the share of unavailable results.
        by_image: (N,) each test example's share of right answers, at the share chosen for.
    """

    scheme: str
    k: int
    grouping: str
    fused: bool
    workers: float
    front_end: float
    front_end_lost: float
    normal: Estimate
    degraded: Estimate
    overall: Mapping[float, Estimate]
    by_image: NDArray[np.float64]

    @property
    def title(self) -> str:
        """As a table names it."""
        if self.scheme == "uncoded":
            return "no redundancy, fall back"
        if self.scheme == "replication":
            return f"replication, {COPIES} copies"
        name = "code" if self.scheme == "invertible" else self.scheme
        how = (", fused" if self.fused else "") + (", alike" if self.grouping == "alike" else "")
        return f"{name}, k = {self.k}{how}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "title": self.title,
            "scheme": self.scheme,
            "k": self.k,
            "grouping": self.grouping,
            "fused": self.fused,
            "workers": self.workers,
            "front_end": self.front_end,
            "front_end_lost": self.front_end_lost,
            "A_n": asdict(self.normal),
            "A_d": asdict(self.degraded),
            "A_o": {f"{share:g}": asdict(found) for share, found in self.overall.items()},
        }


class Measured:
    """A test set with what f and the light model say of it, for all candidates.

    Args:
        known: embeddings and logits of the test queries; with a light model.
        labels: (N,) true classes.
        unavailable: share of unavailable results that candidates are compared at.
    """

    def __init__(self, known: Known, labels: NDArray[np.int64], unavailable: float) -> None:
        if known.light is None:
            raise ValueError("known: expected the light model's logits, got None")
        self.known = known
        self.labels = labels
        self.unavailable = unavailable
        self.exact: NDArray[np.bool_] = known.exact.argmax(axis=1) == labels
        self.light: NDArray[np.bool_] = known.light.argmax(axis=1) == labels
        images = np.arange(len(labels))
        self.normal = interval(self.exact, images)
        self.worth = difference(self.exact.astype(np.float64) - self.light, images)

    def candidate(
        self,
        answers: Answers,
        scheme: str,
        k: int,
        way: str,
        workers: float,
        front_end: float,
        lost: float,
    ) -> Candidate:
        """A candidate with these answers and costs."""
        shares = dict.fromkeys((*AT, self.unavailable))
        overall = {share: answers.overall(share, arrives(scheme, k, share)) for share in shares}
        grouping = next(name for start, name in _GROUPED.items() if way.startswith(start))
        return Candidate(
            scheme=scheme,
            k=k,
            grouping=grouping,
            fused=way.endswith("fused"),
            workers=workers,
            front_end=front_end,
            front_end_lost=lost,
            normal=self.normal,
            degraded=answers.degraded.estimate(),
            overall=overall,
            by_image=answers.by_image(self.unavailable, arrives(scheme, k, self.unavailable)),
        )


def without_code(measured: Measured, light: float) -> Iterator[Candidate]:
    """Falling back to the light model, and replication; `light` is the former's share of F."""
    exact, lightly = measured.exact, measured.light
    yield measured.candidate(
        Answers(exact, lightly, always(lightly)), "uncoded", 1, "arrival", 0.0, 0.0, light
    )
    yield measured.candidate(
        Answers(exact, lightly, always(exact)),
        "replication", 1, "arrival", COPIES - 1.0, 0.0, light,
    )  # fmt: skip


def guided(
    measured: Measured, model: CodedModel, queries: Any, seed: int, progress: Progress
) -> Iterator[Candidate]:
    """Duplicates of the least sure query of each group."""
    found = _evaluated(measured, model, queries, seed, progress)
    macs = model.metadata["macs"]
    yield measured.candidate(
        Answers(measured.exact, measured.light, found.outcomes["arrival"]),
        "guided",
        model.code.k,
        "arrival",
        workers=model.code.r / model.code.k,
        front_end=macs["light"] / macs["backbone"],
        lost=0.0,
    )


def coded(
    measured: Measured,
    model: CodedModel,
    queries: Any,
    seed: int,
    progress: Progress,
    budget: float,
) -> Iterator[Candidate]:
    """The code alone and fused, groups as they arrive and alike; encoded at the front end, if its
    `budget` allows, a share of a backbone call for a group, and at the parity worker."""
    found = _evaluated(measured, model, queries, seed, progress)
    macs, code = model.metadata["macs"], model.code
    light = macs["light"] / macs["backbone"]
    encoder = macs["encoder"] / macs["backbone"] / code.k
    at_front = macs["encoder"] <= budget * macs["backbone"]
    for way in _WAYS:
        if way not in found.outcomes:
            continue
        answers = Answers(measured.exact, measured.light, found.outcomes[way])
        # What grouping takes is paid at every query; else the light model works on what is lost.
        at_every, at_lost = (light, 0.0) if way.startswith("choosing") else (0.0, light)
        own = code.r / code.k
        if at_front:
            yield measured.candidate(
                answers, "invertible", code.k, way, own, encoder + at_every, at_lost
            )
        if not at_front or way == "arrival + fused":
            yield measured.candidate(
                answers, "worker-encoded", code.k, way, own + encoder, at_every, at_lost
            )


def _evaluated(
    measured: Measured, model: CodedModel, queries: Any, seed: int, progress: Progress
) -> Accuracy:
    return evaluate(
        model,
        queries,
        measured.labels,
        groupings=GROUPINGS,
        seed=seed,
        known=measured.known,
        progress=progress,
    )
