"""The light model l: a small network of separable convolutions, cheap enough for the front end."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codedinv.nn.iresnet import Normalise


class SeparableBlock(nn.Module):
    """Depthwise 3x3, then 1x1, each with norm and ReLU; added to its input where shapes agree."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, 3, stride, padding=1, groups=channels, bias=False
        )
        self.norm1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.residual = (channels, stride) == (width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.depthwise(x)))
        h = F.relu(self.norm2(self.pointwise(h)))
        return x + h if self.residual else h


class SeparableNet(nn.Module):
    """Query [B, C, H, W] -> calibrated logits [B, outputs], of all tasks one after the other.

    A strided 3x3 convolution to `width` channels, separable blocks to twice and (strided) four
    times as many, two residual ones, average pool, linear.

    Args:
        input_shape: (C, H, W) of a query.
        outputs: logits.
        width: channels of the first convolution; the work grows with its square.
        mean, std: one value per channel.
    """

    temperature: Tensor

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        outputs: int,
        width: int,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> None:
        super().__init__()
        self._config = {
            "input_shape": list(input_shape),
            "outputs": outputs,
            "width": width,
            "mean": list(mean),
            "std": list(std),
        }
        # Divides the logits, so that whoever reads them reads calibrated ones.
        self.register_buffer("temperature", torch.ones(()))
        self.layers = nn.Sequential(
            Normalise(mean, std, padding=0),
            nn.Conv2d(input_shape[0], width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            SeparableBlock(width, 2 * width, 1),
            SeparableBlock(2 * width, 4 * width, 2),
            SeparableBlock(4 * width, 4 * width, 1),
            SeparableBlock(4 * width, 4 * width, 1),
        )
        self.linear = nn.Linear(4 * width, outputs)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "separable", **self._config}

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.layers(x).mean((2, 3)))
        return logits / self.temperature
