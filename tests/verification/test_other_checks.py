"""Checks that need no calibration, and `same`."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from codedinv.coding import Code, StreamingDecoder
from codedinv.model import CodedModel
from codedinv.verification import ExactConsistency, OnlineConsistency, same
from tests.serving.linear_model import LinearModel
from tests.verification.synthetic import NOISE, SHAPE, Groups

ONE = Groups(Code.uniform(4))


# ---- exact


def syndrome_and_scale(code: Code, results: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the n results (n, *embedding), the scale by way of the decoder's residual."""
    decoder = StreamingDecoder(code, shape=results.shape[1:])
    for slot, result in enumerate(results):
        decoder.push(slot, result)
    rows = results.reshape(code.n, -1)
    syndrome = rows[code.k :] - code.coefficients.astype(np.float32) @ rows[: code.k]
    scale = np.linalg.norm(syndrome, axis=1) / np.maximum(decoder.residual(), 1e-30)
    return syndrome.reshape(code.r, *results.shape[1:]), scale


def results_of(model: LinearModel, seed: int) -> np.ndarray:
    queries = model.queries(model.k, seed)
    parities = model.encode(queries[None])[0]
    return model.embed(np.concatenate([queries, parities]).astype(np.float32))


@pytest.mark.parametrize("r", [1, 2])
def test_a_linear_models_wrong_result_is_found_and_with_two_parities_named(r: int) -> None:
    model = LinearModel(k=4, r=r)
    check = ExactConsistency(model.code)
    for seed in range(20):
        results = results_of(model, seed)
        verdict = check(*syndrome_and_scale(model.code, results))
        assert not verdict.alarm
        assert verdict.score < 3
        for slot in range(model.code.n):
            wrong = results.copy()
            wrong[slot, 1, 0, 1] += 0.2
            verdict = check(*syndrome_and_scale(model.code, wrong))
            assert verdict.alarm
            assert verdict.slot == (None if r == 1 else slot)
            assert verdict.score > 4


def test_of_three_copies_the_one_that_differs_is_named() -> None:
    code = Code(np.ones((2, 1)))
    check = ExactConsistency(code)
    results = np.random.default_rng(0).standard_normal((1, 6)).repeat(3, 0).astype(np.float32)
    assert not check(*syndrome_and_scale(code, results)).alarm
    for slot in range(3):
        wrong = results.copy()
        wrong[slot] += 0.1
        assert check(*syndrome_and_scale(code, wrong)).slot == slot


def test_an_exact_check_wants_its_scale_and_sees_what_is_not_finite() -> None:
    check = ExactConsistency(Code.uniform(4))
    with pytest.raises(ValueError, match="scale"):
        check(np.zeros((1, 3), np.float32))
    assert check(np.full((1, 3), np.nan, np.float32), [1.0]).score == math.inf
    with pytest.raises(ValueError, match="tolerance"):
        ExactConsistency(Code.uniform(4), tolerance=0)


# ---- online


def test_an_online_check_learns_what_is_clean_and_then_finds_noise() -> None:
    check = OnlineConsistency(ONE.code, SHAPE, groups=1500)
    clean = ONE.clean(1500, seed=1)
    assert not any(check(syndrome).alarm for syndrome in clean)
    assert check.wait(60)
    assert check.fitted is not None
    fresh = ONE.clean(3000, seed=2)
    assert sum(check(syndrome).alarm for syndrome in fresh) <= 6
    noise = np.random.default_rng(3).standard_normal((200, *SHAPE)) * 6 * NOISE
    assert np.mean([check(s + e).alarm for s, e in zip(fresh, noise, strict=False)]) > 0.95


def test_an_online_check_neither_learns_nor_passes_a_gross_outlier() -> None:
    check = OnlineConsistency(ONE.code, SHAPE, groups=120)
    clean = ONE.clean(200, seed=4)
    for syndrome in clean[:20]:
        check(syndrome)
    assert check(50 * clean[20]).alarm
    assert check(np.full((1, *SHAPE), np.nan, np.float32)).score == math.inf
    for syndrome in clean[20:119]:
        check(syndrome)
    assert not check.wait(0)  # the outliers were not counted
    check(clean[119])
    assert check.wait(60)


def test_an_online_check_of_large_embeddings_keeps_to_its_memory() -> None:
    check = OnlineConsistency(Code.uniform(2), (1000, 300))
    assert check._rows is not None
    assert (
        check._rows.nbytes <= 120 * 1000 * 300 * 4
    )  # the fewest groups, where 64 MiB would hold fewer
    with pytest.raises(ValueError, match="groups"):
        OnlineConsistency(Code.uniform(2), (4,), groups=119)


# ---- same


@pytest.fixture(scope="module")
def results() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((50, 16, 7, 7)).astype(np.float32)


def test_runtimes_and_batch_sizes_give_the_same_results(small_bundle: Path) -> None:
    queries = np.random.default_rng(6).random((8, 1, 28, 28), dtype=np.float32)
    onnx, two = (CodedModel.load(small_bundle, runtime="onnx", threads=n) for n in (1, 2))
    torch = CodedModel.load(small_bundle, runtime="torch")
    for i, batched in enumerate(onnx.embed(queries)):
        for model in (onnx, two, torch):
            assert same(batched, model.embed(queries[i : i + 1])[0])


def test_what_a_broken_worker_says_differs(results: np.ndarray) -> None:
    random = np.random.default_rng(7)
    for result, other in itertools.pairwise(results):
        assert same(result, result.copy())
        assert not same(result, other)  # an old answer
        assert not same(result, result + 0.01 * random.standard_normal(result.shape))
        assert not same(result, result * 1.01)
        assert not same(result, result * np.float32(np.nan))


@pytest.mark.parametrize("bit", range(23, 31))
def test_a_flipped_exponent_bit_of_one_element_differs(results: np.ndarray, bit: int) -> None:
    for result in results:
        flipped = result.copy().ravel()
        at = int(np.argmin(np.abs(np.abs(flipped) - 0.01)))  # small, but no zero
        flipped.view(np.uint32)[at] ^= np.uint32(1 << bit)
        assert not same(result, flipped.reshape(result.shape))


def test_same_refuses_two_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        same(np.zeros(3), np.zeros(4))
