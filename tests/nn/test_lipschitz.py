"""Operator norms against singular values of the explicit matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from codedinv.nn import lipschitz
from codedinv.nn.lipschitz import bake_operator_norm, bound_operator_norm, operator_norm


def _matrix(weight: torch.Tensor, spatial: tuple[int, int]) -> torch.Tensor:
    inputs = weight.shape[1]
    size = inputs * spatial[0] * spatial[1]
    basis = torch.eye(size, dtype=torch.float64).reshape(size, inputs, *spatial)
    return F.conv2d(basis, weight.double(), padding=weight.shape[-1] // 2).reshape(size, -1)


@settings(max_examples=25, deadline=None)
@given(
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    side=st.integers(2, 7),
    kernel=st.sampled_from([1, 3]),
    seed=st.integers(0, 10_000),
)
def test_the_norm_is_the_largest_singular_value_of_the_operator(
    inputs: int, outputs: int, side: int, kernel: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, kernel, kernel, generator=generator)
    expected = torch.linalg.matrix_norm(_matrix(weight, (side, side)), 2).item()
    assert operator_norm(weight, (side, side)).sigma == pytest.approx(expected, rel=1e-9)


def test_power_iteration_agrees_where_the_gram_matrix_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    dense = operator_norm(weight, (7, 7))
    monkeypatch.setattr(lipschitz, "_LARGEST_DENSE_GRAM", 0)
    iterated = operator_norm(weight, (7, 7))
    assert (dense.method, iterated.method) == ("eigenvalue", "power iteration")
    assert iterated.sigma == pytest.approx(dense.sigma, rel=iterated.tolerance)


def test_training_steps_keep_the_norm_near_the_bound_and_baking_puts_it_below() -> None:
    torch.manual_seed(0)
    convolution = bound_operator_norm(nn.Conv2d(3, 8, 3, padding=1), (6, 6), 0.9)
    optimizer = torch.optim.SGD(convolution.parameters(), lr=0.3)
    x = torch.randn(16, 3, 6, 6)
    for _ in range(100):
        optimizer.zero_grad()
        (-convolution(x).square().mean()).backward()
        optimizer.step()
    raw = convolution.parametrizations.weight.original
    assert operator_norm(raw, (6, 6)).sigma > 1.2, "the loss should have pushed the raw weight up"
    assert operator_norm(convolution.weight, (6, 6)).sigma < 0.93
    plain, certificate = bake_operator_norm(convolution, (6, 6), 0.9)
    assert certificate.sigma <= 0.9
    assert torch.linalg.matrix_norm(_matrix(plain.weight.detach(), (6, 6)), 2).item() <= 0.9


def test_a_weight_below_the_bound_is_left_alone() -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        convolution.weight.mul_(0.01)
    original = convolution.weight.detach().clone()
    bound_operator_norm(convolution, (5, 5), 0.9)
    assert torch.equal(convolution.weight, original)


def test_gradients_flow_through_the_norm() -> None:
    torch.manual_seed(0)
    convolution = bound_operator_norm(nn.Conv2d(2, 3, 3, padding=1), (4, 4), 0.5).double().eval()
    raw = convolution.parametrizations.weight.original
    bound = convolution.parametrizations.weight[0]
    raw.data.mul_(5)
    assert torch.autograd.gradcheck(bound, (raw,))
