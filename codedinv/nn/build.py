"""Networks from the JSON that `config_dict()` wrote: how a bundle or a recipe names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from codedinv.nn.encoder import Encoder, EncoderConfig
from codedinv.nn.heads import ConvHead, DenseHead, LinearHead, PoolHead
from codedinv.nn.iresnet import IResNet, IResNetConfig
from codedinv.nn.light import Perceptron, SeparableSeries
from codedinv.nn.resnet import ResNet, ResNetConfig
from codedinv.nn.separable import SeparableNet

Backbone = IResNet | ResNet

BACKBONES: dict[str, type[IResNetConfig] | type[ResNetConfig]] = {
    "iresnet": IResNetConfig,
    "resnet": ResNetConfig,
}
HEADS: dict[str, Callable[..., nn.Module]] = {
    "pool": PoolHead,
    "linear": LinearHead,
    "dense": DenseHead,
    "conv": ConvHead,
}


LIGHTS: dict[str, Callable[..., nn.Module]] = {
    "separable": SeparableNet,
    "separable-series": SeparableSeries,
    "perceptron": Perceptron,
}


def build_backbone(config: dict[str, Any], bounded: bool = False) -> Backbone:
    """Builds a backbone from {"kind": "iresnet" | "resnet", ...}.

    Args:
        config: fields of IResNetConfig or ResNetConfig.
        bounded: register the i-ResNet's spectral-norm parametrization, for training.
    """
    kind, rest = _split(config, "backbone", tuple(BACKBONES))
    if kind == "resnet":
        return ResNet(ResNetConfig.from_dict(rest))
    return IResNet(IResNetConfig.from_dict(rest), bounded=bounded)


def build_head(config: dict[str, Any]) -> nn.Module:
    """Builds a head from {"kind": "pool" | "linear" | "dense" | "conv", "embedding_shape", ...}."""
    kind, rest = _split(config, "head", tuple(HEADS))
    return HEADS[kind](**_lists_as_tuples(rest))


def build_encoder(config: dict[str, Any]) -> Encoder:
    """Builds an encoder from {"kind": "sum", "input_shape", "coefficients", ...}."""
    _, rest = _split(config, "encoder", ("sum",))
    return Encoder(EncoderConfig.from_dict(rest))


def build_light(config: dict[str, Any]) -> nn.Module:
    """Builds a light model from {"kind": "separable" | "separable-series" | "perceptron", ...}."""
    kind, rest = _split(config, "light", tuple(LIGHTS))
    return LIGHTS[kind](**_lists_as_tuples(rest))


def _lists_as_tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.items()
    }


def _split(config: dict[str, Any], what: str, known: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    rest = dict(config)
    kind = rest.pop("kind", None)
    if kind not in known:
        raise ValueError(f"{what}: expected a kind of {', '.join(known)}, got {kind!r}")
    return kind, rest
