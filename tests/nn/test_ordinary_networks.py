"""The ResNet backbone and the separable light model."""

from __future__ import annotations

import pytest
import torch

from codedinv.nn import (
    ResNet,
    ResNetConfig,
    ResNetStage,
    SeparableNet,
    build_backbone,
    build_light,
    light_for,
    macs,
)

SMALL = ResNetConfig(
    (1, 28, 28), stem=4, stages=(ResNetStage(1, 6), ResNetStage(2, 8)), mean=(0.3,), std=(0.4,)
)


def test_a_resnet_pools_its_last_features_into_the_embedding() -> None:
    network = ResNet(SMALL).eval()
    z = network(torch.rand(3, 1, 28, 28))
    assert tuple(z.shape) == (3, *network.embedding_shape) == (3, 8, 1, 1)
    assert bool((z >= 0).all()), "it ends with a ReLU before the average"


def test_a_resnet_is_rebuilt_from_its_config() -> None:
    network = ResNet(SMALL).eval()
    again = build_backbone(network.config_dict()).eval()
    again.load_state_dict(network.state_dict())
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(again(x), network(x))
    assert again.config == SMALL


@pytest.mark.parametrize(
    ("change", "complaint"),
    [({"stages": []}, "stages"), ({"std": [0.0]}, "std"), ({"kind": "vgg"}, "iresnet, resnet")],
)
def test_an_impossible_resnet_is_refused_by_field(
    change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_backbone({**ResNet(SMALL).config_dict(), **change})


@pytest.mark.parametrize("budget", [3e4, 6e5])
def test_a_light_model_is_the_widest_that_its_budget_pays(budget: float) -> None:
    light = light_for((1, 28, 28), 10, budget, (0.3,), (0.4,))
    x = torch.zeros(1, 1, 28, 28)
    wider = {**light.config_dict(), "width": light.config_dict()["width"] + 1}
    assert macs(light, x) <= budget < macs(build_light(wider), x)


def test_a_budget_too_small_for_any_light_model_is_refused() -> None:
    with pytest.raises(ValueError, match="budget"):
        light_for((1, 28, 28), 10, 10)


def test_the_temperature_divides_the_logits_and_is_saved_with_the_weights() -> None:
    light = SeparableNet((1, 28, 28), 10, 4).eval()
    x = torch.rand(2, 1, 28, 28)
    before = light(x)
    light.temperature.fill_(2.0)
    torch.testing.assert_close(light(x), before / 2)
    again = build_light(light.config_dict()).eval()
    again.load_state_dict(light.state_dict())
    torch.testing.assert_close(again(x), before / 2)
