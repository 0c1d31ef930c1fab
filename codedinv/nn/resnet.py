"""An ordinary pre-activation residual network (He et al. 2016): a backbone without an inverse.

It classifies better than an invertible one of its size and is far harder to encode for; it is the
backbone of guided redundancy, which needs no code in the embedding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from codedinv.nn.iresnet import Normalise


@dataclass(frozen=True)
class ResNetStage:
    """One stage.

    Attributes:
        blocks: number of residual blocks.
        width: their channels.
        stride: of the first block.
    """

    blocks: int
    width: int
    stride: int = 2


@dataclass(frozen=True)
class ResNetConfig:
    """Shape of a ResNet.

    Attributes:
        input_shape: (C, H, W) of a query.
        stem: channels of the first 3x3 convolution.
        stages: from input to embedding.
        mean, std: one value per channel; the backbone normalises its queries itself.
    """

    input_shape: tuple[int, int, int]
    stem: int
    stages: tuple[ResNetStage, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        channels = self.input_shape[0]
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ValueError(
                f"mean, std: expected {channels} values each and std > 0, "
                f"got {self.mean} and {self.std}"
            )
        if not self.stages:
            raise ValueError("stages: expected at least one, got none")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ResNetConfig:
        """Rebuilds a config from `asdict` or from the JSON of a bundle or recipe."""
        config = dict(config)
        config["stages"] = tuple(ResNetStage(**stage) for stage in config["stages"])
        for name in ("input_shape", "mean", "std"):
            if name in config:
                config[name] = tuple(config[name])
        return cls(**config)


class ResidualBlock(nn.Module):
    """y = shortcut(x) + conv(relu(norm(conv(relu(norm(x)))))), the first convolution strided."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity()
            if (channels, stride) == (width, 1)
            else nn.Conv2d(channels, width, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        # A strided shortcut sees the normalised input, as the branch does; an identity sees x.
        kept = x if isinstance(self.shortcut, nn.Identity) else self.shortcut(h)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(h))))  # type: ignore[no-any-return]


class _Pool(nn.Module):
    """Batch norm, ReLU and global average: [B, C, H, W] -> [B, C, 1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(x)).mean((2, 3), keepdim=True)


class ResNet(nn.Module):
    """Query [B, C, H, W] in [0, 1] -> embedding [B, width, 1, 1], the pooled last features.

    Pooled by the worker, an embedding is as small as it can be, and a linear head suffices.

    Args:
        config: see ResNetConfig.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.stem
        layers: list[nn.Module] = [
            Normalise(config.mean, config.std, padding=0),
            nn.Conv2d(config.input_shape[0], channels, 3, padding=1, bias=False),
        ]
        for stage in config.stages:
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                layers.append(ResidualBlock(channels, stage.width, stride))
                channels = stage.width
        layers.append(_Pool(channels))
        self.layers = nn.ModuleList(layers)
        self.embedding_shape = (channels, 1, 1)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "resnet", **asdict(self.config)}

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
