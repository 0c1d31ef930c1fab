"""What rounding and overflow do to a recovery is either small or said."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from codedinv import Code, StreamingDecoder

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def worst_recovery(code: Code, dtype: str, lost: list[int], seed: int) -> float | None:
    """Relative error of the worst of the lost data slots, or None where recovery is refused."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(code.k, 200)).astype(DTYPES[dtype])
    parities = (code.coefficients @ z.astype(np.float64)).astype(DTYPES[dtype])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder = StreamingDecoder(code, 200, dtype)
    for slot in set(range(code.n)) - set(lost):
        decoder.push(slot, z[slot] if slot < code.k else parities[slot - code.k])
    try:
        recovered = decoder.recover()
    except ValueError:
        return None
    errors = [np.linalg.norm(recovered[j].astype(float) - z[j].astype(float)) for j in lost]
    return max(errors) / float(np.sqrt(200))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "r"), [(4, 2), (10, 2), (10, 4), (12, 5), (20, 4)])
def test_no_recovery_is_far_off_in_silence(k: int, r: int, dtype: str) -> None:
    code = Code.mds(k, r)
    rng = np.random.default_rng(k)
    errors = [
        worst_recovery(code, dtype, rng.choice(k, r, replace=False).tolist(), seed)
        for seed in range(40)
    ]
    # The limit is 0.1 for what is to be expected; 200 elements scatter about it.
    assert max((error for error in errors if error is not None), default=0.0) < 0.15


@pytest.mark.parametrize(("k", "r"), [(4, 2), (10, 2), (10, 4), (20, 4), (12, 5)])
def test_float32_recovers_all_codes_of_the_table(k: int, r: int) -> None:
    lost = np.random.default_rng(r).choice(k, r, replace=False).tolist()
    error = worst_recovery(Code.mds(k, r), "float32", lost, seed=0)
    assert error is not None
    assert error < 1e-3


def test_ones_are_not_recovered_as_zeros() -> None:
    code = Code([[1.0, 1.0], [1.0, 1.0 + 1e-9]])
    with pytest.warns(RuntimeWarning, match="may not be recovered in float32"):
        decoder = StreamingDecoder(code, 4)
    for slot in (2, 3):
        decoder.push(slot, np.full(4, 2.0, np.float32))
    for read in (decoder.recover, lambda: decoder.estimate(0)):
        with pytest.raises(ValueError, match=r"rounding of float32 .* slot 0 off by .* %"):
            read()


@pytest.mark.parametrize(
    ("code", "dtype", "warned"),
    [
        (Code.mds(4, 2), "bfloat16", False),
        (Code.mds(10, 4), "bfloat16", True),
        (Code.mds(10, 4), "float32", False),
        (Code.uniform(10), "bfloat16", False),
    ],
)
def test_a_code_too_ill_for_its_dtype_is_warned_of_when_made(
    code: Code, dtype: str, warned: bool
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        StreamingDecoder(code, 4, dtype)
    assert [w.category for w in caught] == [RuntimeWarning] * warned


@pytest.mark.parametrize("read", ["recover", "residual", "syndrome"])
def test_finite_results_that_overflow_in_sum_are_no_answer(read: str) -> None:
    decoder = StreamingDecoder(Code([[1.0, 1.0, 1.0]]), 4)
    large = np.full(4, 3e38, np.float32)
    for slot in (0, 1, 3) if read == "recover" else range(4):
        decoder.push(slot, large)
    with pytest.raises(ValueError, match=r"overflow: a sum of the results .* float32"):
        getattr(decoder, read)()


@pytest.mark.parametrize(("dtype", "most"), [("float16", 60_000.0), ("bfloat16", 3e38)])
def test_what_exceeds_the_stored_type_is_no_answer(dtype: str, most: float) -> None:
    decoder = StreamingDecoder(Code.uniform(2), 3, dtype)
    row: Any = np.array([1.0, most, -1.0]).astype(DTYPES[dtype])
    decoder.push(2, row)
    for read in (decoder.estimate, lambda _: decoder.recover()):
        decoder.push(0, np.zeros(3, DTYPES[dtype])) if not decoder.ready else None
        with pytest.raises(ValueError, match=f"too large for {dtype}"):
            read(1)


def test_an_accumulator_that_overflowed_is_as_new_after_a_reset() -> None:
    decoder = StreamingDecoder(Code.uniform(1), 2)
    for slot in (0, 1):
        decoder.push(slot, np.full(2, (-1) ** slot * 3e38, np.float32))
    with pytest.raises(ValueError, match="overflow"):
        decoder.syndrome()
    decoder.reset()
    for slot in (0, 1):
        decoder.push(slot, np.ones(2, np.float32))
    assert decoder.residual().tolist() == [0.0]
