"""The paper's linear example: f rotates the plane, so the mean of queries encodes perfectly."""

from __future__ import annotations

import numpy as np
import pytest

from codedinv import Code, StreamingDecoder

TRIALS = 200
ANGLE = np.pi / 3
ROTATION = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])


@pytest.mark.parametrize("k", [*range(2, 11), *range(15, 101, 5)])
def test_a_lost_rotation_is_recovered_to_1e_14(k: int) -> None:
    """Mean over random queries and losses, as in the supplement, A.1."""
    rng = np.random.default_rng(k)
    decoder = StreamingDecoder(Code.uniform(k), 2, "float64")
    errors = []
    for _ in range(TRIALS):
        queries = rng.normal(size=(k, 2))
        lost = int(rng.integers(k))
        results = [ROTATION @ x for x in (*queries, queries.mean(axis=0))]
        decoder.reset()
        for slot in rng.permutation(k + 1):
            if slot != lost:
                decoder.push(slot, results[slot])
        errors.append(np.linalg.norm(decoder.recover()[lost] - results[lost]))
    assert np.mean(errors) <= 1e-14
