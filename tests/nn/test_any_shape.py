"""Light models and encoders for queries of any shape: within their budget, and able to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from codedinv.coding import Code
from codedinv.nn import (
    Perceptron,
    SeparableNet,
    SeparableSeries,
    build_encoder,
    build_light,
    encoder_for,
    light_for,
    macs,
)

SHAPES: list[tuple[tuple[int, ...], type[nn.Module]]] = [
    ((3, 32, 32), SeparableNet),
    ((1, 28, 20), SeparableNet),
    ((64,), Perceptron),
    ((6, 100), SeparableSeries),
    ((128, 16), SeparableSeries),
    ((4, 4, 4, 2), Perceptron),
    ((2, 3), Perceptron),
]


@pytest.mark.parametrize(("shape", "kind"), SHAPES, ids=str)
def test_a_light_model_suits_its_queries_and_its_budget(
    shape: tuple[int, ...], kind: type[nn.Module]
) -> None:
    light = light_for(shape, 7, 2e5)
    assert isinstance(light, kind)
    assert macs(light, torch.zeros(1, *shape)) <= 2e5
    x = torch.rand(5, *shape)
    assert light.eval()(x).shape == (5, 7)
    again = build_light(light.config_dict())  # type: ignore[operator]
    again.load_state_dict(light.state_dict())
    torch.testing.assert_close(again.eval()(x), light(x))


def test_a_small_budget_gets_a_linear_model_and_a_smaller_one_an_error() -> None:
    assert isinstance(light_for((1, 28, 28), 10, 28 * 28 * 10), nn.Module)
    linear = light_for((64,), 10, 640)
    assert isinstance(linear, Perceptron)
    assert linear.widths == ()
    assert isinstance(light_for((64,), 10, 74), Perceptron)  # of one hidden unit
    with pytest.raises(ValueError, match=r"budget: 73 multiply-accumulates .* takes 74"):
        light_for((64,), 10, 73)


@pytest.mark.parametrize("shape", [(64,), (6, 100), (3, 30, 20), (4, 4, 4, 2)], ids=str)
@pytest.mark.parametrize("normalised", [False, True])
def test_an_encoder_starts_as_the_weighted_sum_and_keeps_to_its_budget(
    shape: tuple[int, ...], normalised: bool
) -> None:
    code = Code.mds(3, 2)
    encoder = encoder_for(shape, code.coefficients, 3e5, normalised)
    group = 50 + 9 * torch.randn(4, 3, *shape)
    assert macs(encoder, group[:1]) <= 3e5
    if normalised:
        encoder.fit_scale(group.flatten(0, 1))
    expected = np.einsum("rk,gk...->gr...", code.coefficients, group.numpy())
    np.testing.assert_allclose(encoder(group).detach(), expected, rtol=1e-4, atol=1e-3)
    again = build_encoder(encoder.config_dict())
    again.load_state_dict(encoder.state_dict())
    nn.init.normal_(again.out.weight)
    assert not torch.allclose(again(group), encoder(group)), "what it learns reaches its output"


def test_a_normalised_encoder_sees_every_column_at_one_scale() -> None:
    encoder = encoder_for((2,), Code.uniform(2).coefficients, 1e4, normalised=True)
    queries = torch.randn(500, 2) * torch.tensor([1e-3, 1e4]) + torch.tensor([7.0, -3.0])
    encoder.fit_scale(queries)
    torch.testing.assert_close(encoder.centre[:, 0], queries.mean(0))
    torch.testing.assert_close(encoder.spread[:, 0], queries.std(0))


def test_an_encoder_of_a_budget_that_pays_for_none_is_refused() -> None:
    with pytest.raises(ValueError, match="budget: 10 multiply-accumulates are too few"):
        encoder_for((64,), Code.uniform(2).coefficients, 10)


@pytest.mark.parametrize("shape", [(8,), (3, 16)], ids=str)
def test_an_encoder_learns_another_parity_query_than_the_mean(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = encoder_for(shape, Code.uniform(2).coefficients, 2e5)
    optimizer = torch.optim.Adam(encoder.parameters(), 3e-3)
    losses = []
    for _ in range(300):
        group = torch.rand(64, 2, *shape)
        wanted = 1 - group.mean(1)
        loss = (encoder(group)[:, 0] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
