"""Consistency: clean groups pass, one wrong result is found and, with two parities, named."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from codedinv.coding import Code
from codedinv.verification import Consistency, fit_consistency
from tests.verification.synthetic import NOISE, SHAPE, SIZE, Groups

ONE = Groups(Code.uniform(4))
TWO = Groups(Code.mds(4, 2))


@pytest.fixture(scope="module")
def one() -> Consistency:
    return ONE.fitted()


@pytest.fixture(scope="module")
def two() -> Consistency:
    return TWO.fitted()


def alarms(check: Consistency, syndromes: np.ndarray) -> float:
    return float(np.mean([check(syndrome).alarm for syndrome in syndromes]))


def test_clean_groups_raise_fewer_false_alarms_than_one_in_a_thousand(
    one: Consistency, two: Consistency
) -> None:
    for check, groups in ((one, ONE), (two, TWO)):
        assert (check.scores(groups.clean(10_000, seed=2)) > 4).sum() < 10


def test_the_rate_can_be_chosen(one: Consistency) -> None:
    often = replace(one, rate=0.05)
    found = alarms(often, ONE.clean(2000, seed=3))
    assert 0.005 < found < 0.1


def test_a_batch_scores_as_its_groups_do_one_by_one(two: Consistency) -> None:
    syndromes = TWO.clean(5, seed=4)
    scores = [two(syndrome).score for syndrome in syndromes]
    np.testing.assert_allclose(two.scores(syndromes), scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("slot", [0, 4])
def test_noise_that_norm_and_diagonal_miss_is_seen(one: Consistency, slot: int) -> None:
    random = np.random.default_rng(5)
    clean = ONE.clean(300, seed=6)
    size = 5 * NOISE * (4 if slot < 4 else 1)
    wrong = np.stack(
        [ONE.wrong(s, slot, size * random.standard_normal(SHAPE)) for s in clean]
    ).astype(np.float32)
    assert alarms(one, wrong) > 0.98
    # The controls, given the false alarms that they need to see half of it: far too many.
    flat, flat_wrong = (x.reshape(300, SIZE) - one.mean for x in (clean, wrong))
    for scaled in (np.ones(SIZE), one.std[0] * 0 + flat.std(axis=0)):
        norms, norms_wrong = (np.linalg.norm(x / scaled, axis=1) for x in (flat, flat_wrong))
        assert (norms > np.median(norms_wrong)).mean() > 0.2


@pytest.mark.parametrize("slot", [2, 4])
def test_one_wrong_element_is_seen(one: Consistency, slot: int) -> None:
    error = np.zeros(SHAPE)
    error[3, 1, 2] = 30 * NOISE * (4 if slot < 4 else 1)
    assert alarms(one, np.stack([ONE.wrong(s, slot, error) for s in ONE.clean(200, 7)])) > 0.98


def test_errors_of_the_encoders_own_shape_count_only_when_far_too_large(one: Consistency) -> None:
    mean = one.mean.reshape(1, *SHAPE)
    clean = ONE.clean(500, seed=8)
    assert alarms(one, mean + 1.5 * (clean - mean)) < 0.01
    assert alarms(one, mean + 12 * (clean - mean)) > 0.98


@pytest.mark.parametrize("value", [3e38, -3e38, 1e20, np.inf, np.nan])
def test_huge_values_are_alarms_without_a_warning(two: Consistency, value: float) -> None:
    syndrome = TWO.clean(1, seed=9)[0]
    syndrome[1, 2, 3, 1] = value
    with np.errstate(all="raise", under="ignore"):
        verdict = two(syndrome)
    assert verdict.alarm
    assert verdict.slot == 5
    assert verdict.score == math.inf or np.isfinite(value)


@pytest.mark.parametrize("slot", range(6))
def test_two_parities_name_the_slot_of_a_wrong_result(two: Consistency, slot: int) -> None:
    random = np.random.default_rng(slot)
    for syndrome in TWO.clean(40, seed=10):
        verdict = two(TWO.wrong(syndrome, slot, random.standard_normal(SHAPE)))
        assert verdict.alarm
        assert verdict.slot == slot


@pytest.mark.parametrize("slot", range(6))
def test_two_parities_name_the_slot_of_one_wrong_element(two: Consistency, slot: int) -> None:
    error = np.zeros(SHAPE)
    error[1, 2, 3] = 4.0
    named = [two(TWO.wrong(s, slot, error)).slot for s in TWO.clean(40, seed=11)]
    assert named == [slot] * 40


def test_what_two_slots_explain_alike_is_left_open(two: Consistency) -> None:
    # Halfway between the directions in which two neighbouring slots err.
    c = np.concatenate([TWO.code.coefficients, np.eye(2)], axis=1)
    order = np.argsort(np.arctan2(c[1], c[0]))
    c = (c / np.linalg.norm(c, axis=0))[:, order]
    error = np.random.default_rng(12).standard_normal(SHAPE)
    between = np.multiply.outer(c[:, 2] + c[:, 3], error).astype(np.float32)
    clean = TWO.clean(20, seed=13)
    verdicts = [two(syndrome + 0.2 * between) for syndrome in clean]
    assert all(verdict.alarm for verdict in verdicts)
    assert sum(verdict.slot is None for verdict in verdicts) >= 15


def test_two_wrong_results_are_not_taken_for_one(two: Consistency) -> None:
    random = np.random.default_rng(19)
    for syndrome in TWO.clean(20, seed=20):
        wrong = TWO.wrong(syndrome, 0, 5 * random.standard_normal(SHAPE))
        verdict = two(TWO.wrong(wrong, 3, 5 * random.standard_normal(SHAPE)))
        assert verdict.alarm
        assert verdict.slot is None


def test_one_parity_names_nobody(one: Consistency) -> None:
    verdict = one(ONE.wrong(ONE.clean(1, 14)[0], 1, np.full(SHAPE, 9.0)))
    assert verdict.alarm
    assert verdict.slot is None


def test_arrays_bring_the_same_check_back(two: Consistency) -> None:
    back = Consistency.from_arrays(TWO.code, two.to_arrays())
    syndromes = TWO.clean(20, seed=15)
    np.testing.assert_array_equal(back.scores(syndromes), two.scores(syndromes))
    assert back.rate == two.rate


def test_an_element_that_is_always_right_may_stir_by_the_resolution() -> None:
    syndromes = ONE.clean(3000, seed=16)
    syndromes[:, :, 0, 0, 0] = 0.25
    resolution = NOISE / 10
    check = fit_consistency(ONE.code, syndromes, resolution=resolution, rank=16)
    fresh = ONE.clean(200, seed=17)
    fresh[:, :, 0, 0, 0] = 0.25 + resolution * np.random.default_rng(0).standard_normal((200, 1))
    assert alarms(check, fresh) < 0.02
    fresh[:, :, 0, 0, 0] = 0.25 + 20 * NOISE
    assert alarms(check, fresh) > 0.98


@pytest.mark.parametrize(
    ("syndrome", "complaint"),
    [
        (np.zeros((2, *SHAPE), np.float32), "syndrome: .*r = 1 and 96 values"),
        (np.zeros((1, 6, 4, 5), np.float32), "syndrome: .*got"),
    ],
)
def test_a_wrong_shape_is_named(one: Consistency, syndrome: np.ndarray, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        one(syndrome)


def test_arrays_that_cannot_be_are_refused(one: Consistency) -> None:
    for change, complaint in (
        ({"std": one.std[:, 1:]}, "std: expected shape"),
        ({"std": one.std * 0}, "std: expected values above 0"),
        ({"mean": one.mean * np.float32(np.nan)}, "mean: expected finite"),
        ({"variances": -one.variances}, "variances"),
        ({"rate": 0.0}, "rate"),
    ):
        with pytest.raises(ValueError, match=complaint):
            replace(one, **change)


def test_what_cannot_be_fitted_is_refused() -> None:
    clean = ONE.clean(60, seed=18)
    with pytest.raises(ValueError, match="G >= 60"):
        fit_consistency(ONE.code, clean[:59])
    with pytest.raises(ValueError, match=r"\(G, 2, \*embedding\)"):
        fit_consistency(TWO.code, clean)
    with pytest.raises(ValueError, match="finite"):
        fit_consistency(ONE.code, clean * np.float32(np.nan))


def test_the_fit_finds_the_directions_that_made_the_errors(one: Consistency) -> None:
    basis = np.random.default_rng(ONE.seed).standard_normal((1, 5, SIZE))[0] / one.std[0]
    unit = basis / np.linalg.norm(basis, axis=1, keepdims=True)
    captured = np.linalg.norm(unit @ one.factors[0].T, axis=1)
    assert captured.min() > 0.99
