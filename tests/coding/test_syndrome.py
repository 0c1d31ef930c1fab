"""The raw syndrome rows: equal to the definition, given only when everything came."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from codedinv import Code, StreamingDecoder
from codedinv.coding import reference

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def results_of(code: Code, shape: tuple[int, ...], dtype: str, seed: int) -> list[NDArray[Any]]:
    """Data and inexact parities of all n slots, rounded to the dtype."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(code.k, *shape))
    parities = np.tensordot(code.coefficients, data, 1) + 0.1 * rng.normal(size=(code.r, *shape))
    return [np.asarray(row).astype(DTYPES[dtype]) for row in (*data, *parities)]


def filled(code: Code, shape: tuple[int, ...], dtype: str, rows: Any) -> StreamingDecoder:
    decoder = StreamingDecoder(code, shape, dtype)
    for slot, row in enumerate(rows):
        decoder.push(slot, row)
    return decoder


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (64, 4, 4), (9001,)])
@pytest.mark.parametrize("code", [Code.uniform(5), Code.mds(4, 2), Code([[1.0], [2.0], [-3.0]])])
def test_the_syndrome_is_what_the_definition_says(
    code: Code, shape: tuple[int, ...], dtype: str
) -> None:
    rows = results_of(code, shape, dtype, seed=code.n)
    syndrome = filled(code, shape, dtype, rows).syndrome()
    assert syndrome.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert syndrome.shape == (code.r, *shape)
    wanted = reference.syndrome(code, rows)
    rounding = 4 * np.finfo(syndrome.dtype).eps * code.n * (1 + np.abs(code.coefficients).max())
    largest = max(float(np.abs(row.astype(np.float64)).max()) for row in rows)
    assert np.abs(syndrome - wanted).max() <= rounding * largest


def test_the_syndromes_norms_are_the_residual() -> None:
    code = Code.mds(4, 2)
    rows = results_of(code, (300,), "float64", seed=1)
    decoder = filled(code, (300,), "float64", rows)
    norms = np.array([np.linalg.norm(row) for row in rows])
    scales = norms[4:] + np.abs(code.coefficients) @ norms[:4]
    np.testing.assert_allclose(
        decoder.residual(), np.linalg.norm(decoder.syndrome(), axis=1) / scales, rtol=1e-12
    )


@pytest.mark.parametrize("absent", [(0,), (3,), (1, 4), (0, 1, 2, 3, 4)])
def test_before_all_results_came_the_absent_slots_are_named(absent: tuple[int, ...]) -> None:
    decoder = StreamingDecoder(Code.mds(3, 2), 4)
    for slot in range(5):
        if slot not in absent:
            decoder.push(slot, np.ones(4, np.float32))
    names = ", ".join(str(slot) for slot in absent)
    with pytest.raises(ValueError, match=f"results of all 5 slots, none came for slot {names}$"):
        decoder.syndrome()


def test_the_syndrome_is_the_callers_own_copy() -> None:
    decoder = filled(Code.uniform(2), (3,), "float32", [np.ones(3, np.float32)] * 3)
    first = decoder.syndrome()
    first[:] = 7.0
    np.testing.assert_array_equal(decoder.syndrome(), np.zeros((1, 3)))


def test_the_syndrome_is_written_where_the_caller_wants_it() -> None:
    code = Code.mds(3, 2)
    rows = results_of(code, (2, 5), "float16", seed=3)
    decoder = filled(code, (2, 5), "float16", rows)
    group = np.full((4, 2, 2, 5), np.nan, np.float32)
    assert decoder.syndrome(out=group[1]).base is group
    np.testing.assert_array_equal(group[1], decoder.syndrome())
    assert np.isnan(group[[0, 2, 3]]).all()


@pytest.mark.parametrize(
    ("out", "error", "got"),
    [
        (np.zeros((2, 3)), ValueError, r"got float64 of shape \(2, 3\)"),
        (np.zeros((3, 2), np.float32), ValueError, r"got float32 of shape \(3, 2\)"),
        (np.zeros((3, 2), np.float32).T, ValueError, r"got strided .* \(2, 3\)"),
        (np.broadcast_to(np.float32(0), (2, 3)), ValueError, "got read-only strided"),
        ([[0.0] * 3] * 2, TypeError, "got list"),
    ],
)
def test_an_out_that_cannot_be_written_is_refused(
    out: Any, error: type[Exception], got: str
) -> None:
    decoder = filled(Code.mds(2, 2), (3,), "float32", [np.ones(3, np.float32)] * 4)
    with pytest.raises(error, match=rf"array of float32 and shape \(2, 3\), {got}"):
        decoder.syndrome(out=out)
