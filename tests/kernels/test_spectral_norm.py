"""The power-iteration kernel against the oracle in float64."""

from __future__ import annotations

import pytest
import torch

from codedinv.kernels import power_iteration, reference
from codedinv.kernels.testing import DEVICE, relative_error

# (out, in, side of the kernel, side of the image): two of one shape, so that one launch takes both.
CONVOLUTIONS = [(32, 4, 3, 7), (32, 4, 3, 7), (4, 32, 3, 7), (32, 32, 1, 1), (16, 1, 3, 9)]


def draw(dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    weights = [torch.randn(o, i, k, k, dtype=dtype, device=DEVICE) for o, i, k, _ in CONVOLUTIONS]
    vectors = []
    for _, channels, _, side in CONVOLUTIONS:
        vector = torch.randn(1, channels, side, side, dtype=dtype, device=DEVICE)
        vectors.append(vector / vector.norm())
    return weights, vectors


def test_norms_and_vectors_are_the_oracles() -> None:
    weights, vectors = draw()
    sigma, advanced = power_iteration(weights, vectors, iterations=2)
    expected, directions = reference.power_iteration(
        [weight.double() for weight in weights], [vector.double() for vector in vectors], 2
    )
    assert relative_error(sigma, expected) < 1e-5
    for vector, direction in zip(advanced, directions, strict=True):
        assert relative_error(vector, direction) < 1e-5


def test_the_callers_vectors_are_left_alone() -> None:
    weights, vectors = draw()
    kept = [vector.clone() for vector in vectors[-1:]]
    power_iteration(weights[-1:], vectors[-1:], iterations=1)
    assert torch.equal(vectors[-1], kept[0])


def test_other_dtypes_run_in_torch() -> None:
    weights, vectors = draw(torch.float64)
    sigma, _ = power_iteration(weights, vectors, iterations=1)
    assert sigma.dtype == torch.float64
    # To a precision that the kernel, which works in float32, could not reach.
    assert relative_error(sigma, reference.power_iteration(weights, vectors, 1)[0]) < 1e-13


def test_a_vector_of_another_size_is_refused() -> None:
    weights, vectors = draw()
    with pytest.raises(ValueError, match=r"weights\[0\]: expected \[O, I, k, k\]"):
        power_iteration(weights[:1], vectors[2:3], iterations=1)
    with pytest.raises(ValueError, match="iterations: expected at least 1, got 0"):
        power_iteration(weights, vectors, iterations=0)
