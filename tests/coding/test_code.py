from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codedinv import Code


def worst_by_brute_force(code: Code) -> float:
    """Condition number over every k rows of the generator, straight from the definition."""
    return max(
        float(np.linalg.cond(code.generator[list(rows)]))
        for rows in itertools.combinations(range(code.n), code.k)
    )


@pytest.mark.parametrize("k", [1, 2, 3, 10, 100])
def test_the_uniform_code_averages_its_data(k: int) -> None:
    code = Code.uniform(k)
    assert (code.n, code.k, code.r) == (k + 1, k, 1)
    np.testing.assert_array_equal(code.coefficients, np.full((1, k), 1 / k))
    assert Code.mds(k, 1) == code


def test_the_generator_is_systematic() -> None:
    code = Code([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    np.testing.assert_array_equal(code.generator[:3], np.eye(3))
    np.testing.assert_array_equal(code.generator[3:], code.coefficients)


# Bounds a little above what was found; for scale, (12, 10) with powers as rows has 168, and the
# search this one replaced had 165 at (13, 10), 1,219 at (14, 10) and 28,900 at (24, 20).
@pytest.mark.parametrize(
    ("k", "r", "bound"),
    [
        (2, 2, 5),
        (3, 2, 6),
        (4, 2, 6.5),
        (10, 2, 28),
        (4, 3, 11),
        (4, 4, 17),
        (10, 3, 100),
        (2, 3, 9),
        (10, 4, 260),
    ],
)
def test_mds_codes_are_affine_and_well_conditioned(k: int, r: int, bound: float) -> None:
    code = Code.mds(k, r)
    assert (code.k, code.r) == (k, r)
    assert code.coefficients.sum(axis=1).tolist() == [1.0] * r
    assert np.abs(code.coefficients).sum(axis=1).max() <= 2.001
    assert code.condition_number() < bound
    assert worst_by_brute_force(code) == pytest.approx(code.condition_number(), rel=1e-6)


@pytest.mark.parametrize(("k", "r", "bound"), [(20, 3, 1000), (20, 4, 7000), (12, 5, 7000)])
def test_larger_codes_of_the_table_are_as_good_as_it_says(k: int, r: int, bound: float) -> None:
    code = Code.mds(k, r)
    assert code.condition_number() < bound
    assert Code(code.coefficients).condition_number() == pytest.approx(code.condition_number())


def test_every_code_of_the_table_is_affine_bounded_and_of_its_size() -> None:
    from codedinv.coding.mds_search import SIZES

    for r, largest in SIZES.items():
        for k in range(2, largest + 1):
            code = Code.mds(k, r)
            assert (code.k, code.r) == (k, r)
            assert code.coefficients.sum(axis=1).tolist() == [1.0] * r
            assert np.abs(code.coefficients).sum(axis=1).max() <= 2.001


@pytest.mark.parametrize(("k", "r"), [(3, 7), (26, 2)])
def test_codes_outside_the_table_are_searched_for(k: int, r: int) -> None:
    code = Code.mds(k, r)
    assert (code.k, code.r) == (k, r)
    assert code.coefficients.sum(axis=1).tolist() == [1.0] * r
    assert np.abs(code.coefficients).sum(axis=1).max() <= 2.001
    assert code.condition_number() < 1000


@pytest.mark.parametrize(("k", "r", "m"), [(10, 3, 2), (4, 4, 3), (5, 3, 2), (9, 4, 4), (2, 3, 2)])
def test_the_gradient_of_the_condition_number_is_that_of_differences(
    k: int, r: int, m: int
) -> None:
    from codedinv.coding.conditioning import conditions, decompose, patterns

    rng = np.random.default_rng(k)
    c, direction = rng.normal(size=(2, r, k))
    parities, missing = patterns(k, r, m, 20)
    extremes = decompose(c, parities, missing)
    found = extremes.largest / extremes.smallest
    np.testing.assert_allclose(found, conditions(c, parities, missing), rtol=1e-6)
    slope = (extremes.log_condition_gradient(c.shape, parities) * direction).sum(axis=(1, 2))
    ahead, behind = (conditions(c + s * direction, parities, missing) for s in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, np.log(ahead / behind) / 2e-6, rtol=1e-4, atol=1e-6)


def test_mds_codes_are_exact_in_float32_and_the_same_every_time() -> None:
    code = Code.mds(5, 2)
    np.testing.assert_array_equal(code.coefficients.astype(np.float32), code.coefficients)
    assert Code.mds(5, 2) is code
    from codedinv.coding.mds_search import effort_at_run_time, search

    found = [search(3, 2, effort_at_run_time(2)) for _ in range(2)]
    np.testing.assert_array_equal(*found)
    np.testing.assert_array_equal(found[0].astype(np.float32), found[0])


def test_mds_beats_powers() -> None:
    powers = np.arange(1.0, 11.0)[None, :] ** np.arange(3)[:, None]
    powers /= powers.sum(axis=1, keepdims=True)
    assert Code.mds(10, 3).condition_number() < Code(powers).condition_number() / 5


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_the_condition_number_is_the_worst_over_all_patterns(k: int, r: int, seed: int) -> None:
    code = Code(np.random.default_rng(seed).normal(size=(r, k)))
    assert code.condition_number() == pytest.approx(worst_by_brute_force(code), rel=1e-4)


@pytest.mark.parametrize(
    ("coefficients", "slots"),
    [
        ([[0.0, 1.0]], r"\(1, 2\)"),  # without slot 0 the parity says nothing of it
        ([[1.0, 1.0], [2.0, 2.0]], r"\(2, 3\)"),
        ([[0.2, 0.3, 0.5], [0.4, 0.6, 0.0]], r"slots \("),
    ],
)
def test_a_singular_pattern_is_named(coefficients: list[list[float]], slots: str) -> None:
    with pytest.raises(ValueError, match=rf"nonsingular, got condition number .* {slots}"):
        Code(coefficients)


@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        ([0.5, 0.5], r"expected shape \(r, k\), r, k >= 1, got \(2,\)"),
        ([[]], r"got \(1, 0\)"),
        ([[0.5, np.nan]], "got a NaN or an infinity"),
        ([[0.5, np.inf]], "got a NaN or an infinity"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(coefficients: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Code(coefficients)  # type: ignore[arg-type]


def test_sizes_below_one_are_refused() -> None:
    for make in (lambda: Code.uniform(0), lambda: Code.mds(0, 2), lambda: Code.mds(4, 0)):
        with pytest.raises(ValueError, match="expected 1 or more, got 0"):
            make()


def test_a_code_cannot_be_changed() -> None:
    code = Code.uniform(4)
    with pytest.raises(FrozenInstanceError):
        code.coefficients = np.zeros((1, 4))  # type: ignore[misc]
    for array in (code.coefficients, code.generator):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 2.0


def test_later_changes_of_the_given_array_do_not_reach_the_code() -> None:
    given_array = np.full((1, 2), 0.5)
    code = Code(given_array)
    given_array[:] = 7.0
    assert code == Code.uniform(2)


@pytest.mark.parametrize("code", [Code.uniform(10), Code.mds(4, 2)])
def test_a_code_survives_json_pickle_and_its_own_repr(code: Code) -> None:
    assert Code(json.loads(json.dumps(code.coefficients.tolist()))) == code
    assert pickle.loads(pickle.dumps(code)) == code
    assert eval(repr(code), {"Code": Code}) == code
    assert len({code, Code(code.coefficients)}) == 1
    assert code != Code.uniform(3)
    assert code != "a code"


def test_a_large_code_is_checked_on_a_sample() -> None:
    code = Code(np.random.default_rng(0).normal(size=(4, 60)))
    assert 1 < code.condition_number() < 1e12
