"""Networks: the invertible backbone, heads and the encoder (torch)."""

from codedinv.nn.build import (
    Backbone,
    build_backbone,
    build_encoder,
    build_head,
    build_light,
)
from codedinv.nn.encoder import Encoder, EncoderConfig
from codedinv.nn.encoders import encoder_for
from codedinv.nn.heads import ConvHead, DenseHead, LinearHead, PoolHead
from codedinv.nn.iresnet import IResNet, IResNetConfig, SolverStat, StageConfig
from codedinv.nn.light import Perceptron, SeparableSeries, light_for, widest
from codedinv.nn.macs import macs
from codedinv.nn.resnet import ResNet, ResNetConfig, ResNetStage
from codedinv.nn.separable import SeparableNet

__all__ = [
    "Backbone",
    "ConvHead",
    "DenseHead",
    "Encoder",
    "EncoderConfig",
    "IResNet",
    "IResNetConfig",
    "LinearHead",
    "Perceptron",
    "PoolHead",
    "ResNet",
    "ResNetConfig",
    "ResNetStage",
    "SeparableNet",
    "SeparableSeries",
    "SolverStat",
    "StageConfig",
    "build_backbone",
    "build_encoder",
    "build_head",
    "build_light",
    "encoder_for",
    "light_for",
    "macs",
    "widest",
]
