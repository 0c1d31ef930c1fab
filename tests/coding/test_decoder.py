"""The C++ decoder against float64 least squares, on random codes, erasures and arrival orders."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codedinv import Code, StreamingDecoder
from codedinv.coding import reference

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Rounding step of the accumulators and of what is stored.
ACCUMULATED = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-23, "bfloat16": 2.0**-23}
STORED = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@dataclass(frozen=True)
class Group:
    code: Code
    dtype: str
    results: list[NDArray[Any]]  # of all n slots, rounded to the dtype
    order: list[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.results[0].shape

    def decoder(self, pushed: int) -> StreamingDecoder:
        with warnings.catch_warnings():  # of the condition of random codes
            warnings.simplefilter("ignore")
            decoder = StreamingDecoder(self.code, self.shape, self.dtype)
        for slot in self.order[:pushed]:
            decoder.push(slot, self.results[slot])
        return decoder

    def noise(self, pushed: int) -> float:
        """What rounding leaves of one recovered embedding, for results that are all of one size."""
        code, arrived = self.code, set(self.order[:pushed])
        missing = [j for j in range(code.k) if j not in arrived]
        parities = [i for i in range(code.r) if code.k + i in arrived]
        if not missing:
            return 0.0
        present = [j for j in range(code.k) if j in arrived]
        weights = np.linalg.pinv(code.coefficients[np.ix_(parities, missing)])
        data = weights @ code.coefficients[np.ix_(parities, present)]
        of_parities = np.square(weights).sum(axis=1)
        stored = STORED[self.dtype] ** 2 * (of_parities + np.square(data).sum(axis=1))
        added = ACCUMULATED[self.dtype] ** 2 * (len(present) + 1) * of_parities
        return float(np.sqrt((stored + added).max() / 12))

    def tolerance(self, wanted: NDArray[np.float64]) -> float:
        """Accumulation error, amplified by the worst pattern, and the rounding of the output."""
        scale = max(float(np.abs(np.asarray(row, np.float64)).max()) for row in self.results)
        rows = 1 + np.abs(self.code.coefficients).sum()
        accumulated = 4 * ACCUMULATED[self.dtype] * self.code.n * rows * scale
        return float(
            accumulated * self.code.condition_number() + STORED[self.dtype] * np.abs(wanted).max()
        )


@st.composite
def groups(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES)) -> Group:
    k, r = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    code = Code(rng.normal(size=(r, k)))
    shape = draw(st.sampled_from([(1,), (7,), (64, 4, 4), (3, 1, 5), ()]))
    dtype = draw(st.sampled_from(dtypes))
    data = rng.normal(size=(k, *shape)).astype(DTYPES[dtype])
    # Parities as inexact as a network's, so that more of them than needed disagree.
    exact = np.tensordot(code.coefficients, data.astype(np.float64), 1)
    parities = (exact + 0.1 * rng.normal(size=exact.shape)).astype(DTYPES[dtype])
    results = [np.asarray(row) for row in (*data, *parities)]
    return Group(code, dtype, results, draw(st.permutations(range(k + r))))


@settings(deadline=None, max_examples=300)
@given(groups(), st.data())
def test_any_k_or_more_results_give_the_least_squares_solution(
    group: Group, data: st.DataObject
) -> None:
    pushed = data.draw(st.integers(group.code.k, group.code.n))
    decoder = group.decoder(pushed)
    arrived = {slot: group.results[slot] for slot in group.order[:pushed]}
    wanted = reference.recover(group.code, arrived)

    assert decoder.ready
    assert decoder.missing == sorted(wanted)
    try:
        recovered = decoder.recover()
    except ValueError:
        assert group.noise(pushed) > 0.09
        return
    assert group.noise(pushed) < 0.11
    assert list(recovered) == sorted(wanted)
    for slot, row in recovered.items():
        assert row.dtype == DTYPES[group.dtype]
        assert row.shape == group.shape
        error = np.abs(row.astype(np.float64) - wanted[slot]).max()
        assert error <= group.tolerance(wanted[slot])
        np.testing.assert_array_equal(decoder.estimate(slot), row)


@settings(deadline=None, max_examples=100)
@given(groups(), st.data())
def test_below_k_results_the_estimate_takes_the_absent_as_zero(
    group: Group, data: st.DataObject
) -> None:
    code = group.code
    pushed = data.draw(st.integers(0, code.k - 1))
    decoder = group.decoder(pushed)
    arrived = {slot: group.results[slot].astype(np.float64) for slot in group.order[:pushed]}

    assert not decoder.ready
    came = [i for i in range(code.r) if code.k + i in arrived] or list(range(code.r))
    for slot in decoder.missing:
        known = np.array(
            [
                arrived.get(code.k + i, np.zeros(group.shape))
                - sum(code.coefficients[i, j] * row for j, row in arrived.items() if j < code.k)
                for i in came
            ]
        )
        c = code.coefficients[came, slot]
        wanted = np.tensordot(c, known, 1) / (c @ c)
        slack = group.tolerance(wanted) * (1 + 1 / np.abs(c).max())
        assert np.abs(decoder.estimate(slot).astype(np.float64) - wanted).max() <= slack


def test_for_one_uniform_parity_the_estimate_is_equation_6_at_every_step() -> None:
    rng = np.random.default_rng(6)
    k = 5
    z = rng.normal(size=(k, 12))
    results = [*z, z.mean(axis=0) + 0.01 * rng.normal(size=12)]
    order = [3, 5, 0, 4, 2]
    decoder = StreamingDecoder(Code.uniform(k), 12, "float64")
    estimates = np.zeros((k, 12))
    for slot in order:
        decoder.push(slot, results[slot])
        estimates += k * results[slot] if slot == k else -results[slot]
        for i in decoder.missing:
            np.testing.assert_allclose(decoder.estimate(i), estimates[i], atol=1e-14)
    np.testing.assert_allclose(decoder.recover()[1], estimates[1], atol=1e-14)


@settings(deadline=None, max_examples=60)
@given(groups(("float32",)))
def test_the_order_of_arrival_does_not_matter(group: Group) -> None:
    one = group.decoder(group.code.k)
    other = StreamingDecoder(group.code, group.shape, group.dtype)
    for slot in sorted(group.order[: group.code.k]):
        other.push(slot, group.results[slot])
    recovered = other.recover()
    for slot, row in one.recover().items():
        tolerance = group.tolerance(row.astype(np.float64))
        assert np.abs(row - recovered[slot]).max() <= tolerance


def test_nothing_missing_is_nothing_to_recover() -> None:
    decoder = StreamingDecoder(Code.uniform(2), 3)
    for slot in (0, 1):
        decoder.push(slot, np.ones(3, np.float32))
    assert decoder.ready
    assert decoder.missing == []
    assert decoder.recover() == {}


def test_one_lost_result_of_many_parities_uses_them_all() -> None:
    """With noisy parities the least-squares answer beats each single parity's on average."""
    rng = np.random.default_rng(1)
    code = Code.mds(4, 3)
    z = rng.normal(size=(4, 4000))
    parities = code.coefficients @ z + 0.1 * rng.normal(size=(3, 4000))
    errors = []
    for used in ([0], [1], [2], [0, 1, 2]):
        decoder = StreamingDecoder(code, 4000, "float64")
        for slot in (1, 2, 3):
            decoder.push(slot, z[slot])
        for i in used:
            decoder.push(4 + i, parities[i])
        errors.append(float(np.std(decoder.recover()[0] - z[0])))
    assert errors[-1] < min(errors[:-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_residual_is_noise_until_a_result_is_corrupt(dtype: str) -> None:
    rng = np.random.default_rng(2)
    code = Code.mds(4, 2)
    z = rng.normal(size=(4, 64, 4, 4)).astype(DTYPES[dtype])
    parities = np.tensordot(code.coefficients, z.astype(np.float64), 1).astype(DTYPES[dtype])
    decoder = StreamingDecoder(code, (64, 4, 4), dtype)
    for corrupt in (False, True):
        decoder.reset()
        for slot, row in enumerate([*z, *parities]):
            decoder.push(slot, z[0] if corrupt and slot == 2 else row)
        residual = decoder.residual()
        assert residual.shape == (2,)
        if corrupt:
            assert (residual > 0.1).all()
        else:
            assert (residual < STORED[dtype]).all()


def test_the_residual_of_zeros_is_zero() -> None:
    decoder = StreamingDecoder(Code.uniform(1), 4)
    for slot in (0, 1):
        decoder.push(slot, np.zeros(4, np.float32))
    assert decoder.residual().tolist() == [0.0]


def test_a_reset_decoder_is_as_new() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(3, 10))
    decoder = StreamingDecoder(Code.uniform(3), 10, "float64")
    for row in (rng.normal(size=10), z[0]):
        decoder.push(0, row)
        decoder.push(3, z.mean(axis=0))
        decoder.push(2, z[2])
        assert decoder.ready
        last = decoder.recover()[1]
        decoder.reset()
        assert not decoder.ready
        assert decoder.missing == [0, 1, 2]
    np.testing.assert_allclose(last, z[1], atol=1e-14)


def test_the_decoder_keeps_no_result() -> None:
    row = np.ones(1000, np.float32)
    before = sys.getrefcount(row)
    decoder = StreamingDecoder(Code.uniform(3), 1000)
    decoder.push(0, row)
    assert sys.getrefcount(row) == before
    row[:] = 5.0
    np.testing.assert_allclose(decoder.estimate(1), -1.0)


def test_recovered_embeddings_are_written_where_the_caller_wants_them() -> None:
    rng = np.random.default_rng(8)
    code = Code.mds(4, 3)
    z = rng.normal(size=(4, 5, 2)).astype(np.float32)
    parities = np.tensordot(code.coefficients, z, 1).astype(np.float32)
    decoder = StreamingDecoder(code, (5, 2))
    for slot in (1, 3, 4, 6):
        decoder.push(slot, z[slot] if slot < 4 else parities[slot - 4])
    out = np.full((3, 5, 2), np.nan, np.float32)  # as many rows as may ever be missing
    recovered = decoder.recover(out=out)
    assert list(recovered) == [0, 2]
    for row, (slot, embedding) in enumerate(recovered.items()):
        assert np.shares_memory(embedding, out[row])
        np.testing.assert_array_equal(out[row], decoder.recover()[slot])
    assert np.isnan(out[2]).all()


@pytest.mark.parametrize(
    ("out", "error", "got"),
    [
        (np.zeros((1, 3), np.float32), ValueError, r"float32 of shape \(1, 3\)"),
        (np.zeros((2, 4), np.float32), ValueError, r"float32 of shape \(2, 4\)"),
        (np.zeros((2, 3), np.float64), ValueError, r"float64 of shape \(2, 3\)"),
        (np.zeros((2, 6), np.float32)[:, ::2], ValueError, "strided"),
        (torch.zeros(2, 3), TypeError, "Tensor"),
    ],
)
def test_an_out_that_cannot_take_the_recovered_is_refused(
    out: Any, error: type[Exception], got: str
) -> None:
    decoder = StreamingDecoder(Code.mds(2, 2), 3)
    for slot in (2, 3):
        decoder.push(slot, np.ones(3, np.float32))
    with pytest.raises(error, match=rf"shape \(2, 3\) or more rows, got .*{got}"):
        decoder.recover(out=out)


def test_recovered_arrays_outlive_the_decoder_and_are_the_callers() -> None:
    decoder = StreamingDecoder(Code.uniform(2), 8)
    decoder.push(0, np.full(8, 1.0, np.float32))
    decoder.push(2, np.full(8, 2.0, np.float32))
    first = decoder.recover()[1]
    first[:] = 0.0
    second = decoder.recover()[1]
    del decoder
    np.testing.assert_allclose(second, 3.0)
    assert second.flags.writeable


def test_the_decoder_says_what_it_is() -> None:
    code = Code.uniform(2)
    decoder = StreamingDecoder(code, (2, 3), "bfloat16")
    assert decoder.shape == (2, 3)
    assert decoder.dtype == ml_dtypes.bfloat16
    assert decoder.code is code
    assert repr(decoder) == (
        "StreamingDecoder(Code.uniform(k=2), shape=(2, 3), dtype='bfloat16', missing=[0, 1])"
    )


def test_the_reference_needs_k_results_too() -> None:
    with pytest.raises(ValueError, match="expected any 2 slots, got 1"):
        reference.recover(Code.uniform(2), {0: np.zeros(1)})


def test_the_online_reference_follows_the_same_equation() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(4, 9))
    online = reference.OnlineDecoder(Code.uniform(4), (9,), np.float64)
    for slot in (0, 1, 3):
        online.push(slot, z[slot])
    online.push(4, z.mean(axis=0))
    np.testing.assert_allclose(online.estimate(2), z[2], atol=1e-14)
    online.reset()
    np.testing.assert_array_equal(online.estimate(2), np.zeros(9))
