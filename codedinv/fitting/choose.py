"""Which candidate to serve, and why, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from codedinv.experiments.intervals import Estimate
from codedinv.experiments.overall import better_by
from codedinv.fitting.candidates import Candidate


@dataclass(frozen=True)
class Choice:
    """What to serve.

    Attributes:
        best: the candidate.
        why: a sentence.
    """

    best: Candidate
    why: str


def choose(
    candidates: Sequence[Candidate], unavailable: float, worth: Estimate, scheme: str | None = None
) -> Choice:
    """The cheapest candidate that none beats measurably.

    From the cheapest on, a candidate takes the place of the best so far where its A_o is better by
    more than the 95 % interval of the difference, image by image: redundancy is paid for at every
    query, so it has to show that it is worth it. Replication is left out: it needs no bundle, and
    whoever can pay twice the workers needs no code.

    Args:
        candidates: with the one that falls back.
        unavailable: share of unavailable results that they were compared at.
        worth: A_n minus the light model's accuracy: what the workers are for.
        scheme: that was asked for; the best of it is taken, whatever it is worth.

    Raises:
        ValueError: there is no candidate of that scheme.
    """
    if scheme is not None:
        return _best_of(scheme, candidates, unavailable)
    affordable = sorted(
        (one for one in candidates if one.scheme != "replication"),
        key=lambda one: (one.workers, one.front_end, one.fused, one.grouping == "alike"),
    )
    best = affordable[0]
    for one in affordable[1:]:
        if better_by(one.by_image, best.by_image).low > 0:
            best = one
    return Choice(best, _why(best, affordable, candidates, unavailable, worth))


def _best_of(scheme: str, candidates: Sequence[Candidate], at: float) -> Choice:
    own = [one for one in candidates if one.scheme == scheme]
    if not own:
        raise ValueError(f"scheme: no model of {scheme!r} could be made; see what was left out")
    best = max(own, key=lambda one: one.overall[at].mean)
    fallback = next(one for one in candidates if one.scheme == "uncoded")
    gain = better_by(best.by_image, fallback.by_image)
    verdict = "" if gain.low > 0 else " That is not measurably better: do not code, fall back."
    return Choice(
        best,
        f"Serve {best.title}, as {scheme} was asked for: with {at:.0%} of the results unavailable "
        f"it answers {_percent(best.overall[at])} right, {_points(gain)} over falling back to the "
        f"light model.{verdict}",
    )


def _why(
    best: Candidate,
    affordable: Sequence[Candidate],
    all_: Sequence[Candidate],
    at: float,
    worth: Estimate,
) -> str:
    fallback = affordable[0]
    where = f"with {at:.0%} of the results unavailable"
    if best is fallback:
        rivals = [one for one in affordable if one is not fallback]
        if worth.high < 0:
            return (
                "Do not code: the light model answers better than the backbone (A_n - A_light is "
                f"{_points(worth)}). Look whether the backbone has been trained to its end, and on "
                "such data; if it has, serve the light model alone."
            )
        if worth.low <= 0:
            return (
                "Do not code: fall back to the light model, which answers as well as the backbone "
                f"as far as these examples tell (A_n - A_light is {_points(worth)}); there "
                "is nothing for redundancy to save. Consider serving the light model alone."
            )
        if not rivals:
            return "Do not code: no scheme with redundancy could be made for this model."
        rival = max(rivals, key=lambda one: one.overall[at].mean)
        gain = better_by(rival.by_image, fallback.by_image)
        return (
            f"Do not code: fall back to the light model. {where.capitalize()} that answers "
            f"{_percent(fallback.overall[at])} right; the best with redundancy ({rival.title}) is "
            f"{_points(gain)}, not measurably better, for {rival.workers:.0%} more work."
        )
    gain = better_by(best.by_image, fallback.by_image)
    twice = next((one for one in all_ if one.scheme == "replication"), None)
    beside = (
        "" if twice is None else f"; two copies of each would reach {_percent(twice.overall[at])}"
    )
    return (
        f"Serve {best.title}: {where} it answers {_percent(best.overall[at])} right, "
        f"{_points(gain)} over falling back to the light model, for {best.workers:.0%} more work "
        f"of the workers; nothing cheaper does as well, nothing dearer measurably better{beside}."
    )


def _percent(found: Estimate) -> str:
    return f"{found.mean:.2f} %"


def _points(gain: Estimate) -> str:
    return f"{gain.mean:+.2f} points ({gain.low:+.2f} to {gain.high:+.2f})"
