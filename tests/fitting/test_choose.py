"""The choice: the cheapest that none beats measurably, with a reason in a sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codedinv.experiments.intervals import Estimate
from codedinv.fitting.candidates import Candidate
from codedinv.fitting.choose import choose

IMAGES = 4000
RANDOM = np.random.default_rng(0)
EXACT = RANDOM.random(IMAGES) < 0.95
LIGHT = EXACT & (RANDOM.random(IMAGES) < 0.9)
WORTH = Estimate(9.5, 8.6, 10.4)
AT = 0.05


def candidate(scheme: str, right_of_lost: np.ndarray, workers: float, **more: Any) -> Candidate:
    by_image = (1 - AT) * EXACT + AT * right_of_lost
    mean = 100 * float(by_image.mean())
    found = Estimate(mean, mean - 0.5, mean + 0.5)
    about = {"k": 4, "grouping": "arrival", "fused": False, "front_end": 0.0, **more}
    return Candidate(
        scheme=scheme, workers=workers, front_end_lost=0.0, normal=found, degraded=found,
        overall={AT: found}, by_image=by_image, **about,
    )  # fmt: skip


FALLBACK = candidate("uncoded", LIGHT, 0.0, k=1)
TWICE = candidate("replication", EXACT, 1.0, k=1)


def test_the_fallback_is_kept_where_nothing_is_measurably_better() -> None:
    hardly = LIGHT.copy()
    hardly[np.flatnonzero(EXACT & ~LIGHT)[:2]] = True
    choice = choose([TWICE, FALLBACK, candidate("guided", hardly, 0.25)], AT, WORTH)
    assert choice.best is FALLBACK
    assert choice.why.startswith("Do not code: fall back")
    assert "not measurably better, for 25% more work" in choice.why


def test_the_cheaper_of_two_equals_is_taken() -> None:
    cheap, dear = candidate("guided", EXACT, 0.1, k=10), candidate("guided", EXACT, 0.5, k=2)
    choice = choose([dear, FALLBACK, cheap, TWICE], AT, WORTH)
    assert choice.best is cheap
    assert choice.why.startswith("Serve guided, k = 10: with 5% of the results unavailable")
    assert "for 10% more work" in choice.why
    assert "two copies of each would reach" in choice.why


def test_a_dearer_one_is_taken_if_it_is_measurably_better() -> None:
    half = LIGHT | (EXACT & (np.arange(IMAGES) % 2 == 0))
    cheap, dear = candidate("guided", half, 0.1, k=10), candidate("guided", EXACT, 0.5, k=2)
    assert choose([cheap, dear, FALLBACK], AT, WORTH).best is dear


def test_replication_is_shown_and_never_taken() -> None:
    assert choose([TWICE, FALLBACK], AT, WORTH).best is FALLBACK


def test_a_backbone_no_better_than_the_light_model_is_not_coded() -> None:
    choice = choose([FALLBACK, TWICE], AT, Estimate(0.1, -0.4, 0.6))
    assert "answers as well as the backbone" in choice.why


def test_a_backbone_worse_than_the_light_model_is_told_so() -> None:
    choice = choose([FALLBACK, TWICE], AT, Estimate(-30.0, -36.0, -24.0))
    assert choice.best is FALLBACK
    assert "the light model answers better than the backbone" in choice.why
    assert "-30.00 points (-36.00 to -24.00)" in choice.why


def test_the_scheme_that_was_asked_for_is_taken_with_the_verdict() -> None:
    poor = candidate("invertible", LIGHT & (np.arange(IMAGES) % 9 > 0), 0.25)
    choice = choose([FALLBACK, TWICE, poor], AT, WORTH, "invertible")
    assert choice.best is poor
    assert "do not code, fall back" in choice.why
    with pytest.raises(ValueError, match="no model of 'guided' could be made"):
        choose([FALLBACK], AT, WORTH, "guided")
