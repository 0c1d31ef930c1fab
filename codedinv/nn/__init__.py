"""Networks: the invertible backbone, heads and the encoder (torch)."""

from codedinv.nn.build import (
    Backbone,
    build_backbone,
    build_encoder,
    build_head,
    build_light,
)
from codedinv.nn.encoder import Encoder, EncoderConfig
from codedinv.nn.heads import ConvHead, DenseHead, LinearHead, PoolHead
from codedinv.nn.iresnet import IResNet, IResNetConfig, SolverStat, StageConfig
from codedinv.nn.macs import macs
from codedinv.nn.resnet import ResNet, ResNetConfig, ResNetStage
from codedinv.nn.separable import SeparableNet, widest_separable

__all__ = [
    "Backbone",
    "ConvHead",
    "DenseHead",
    "Encoder",
    "EncoderConfig",
    "IResNet",
    "IResNetConfig",
    "LinearHead",
    "PoolHead",
    "ResNet",
    "ResNetConfig",
    "ResNetStage",
    "SeparableNet",
    "SolverStat",
    "StageConfig",
    "build_backbone",
    "build_encoder",
    "build_head",
    "build_light",
    "macs",
    "widest_separable",
]
