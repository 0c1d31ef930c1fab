"""A ResNet of torchvision's make for 3x32x32 images, cut where its pooling begins."""

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Backbone(nn.Module):
    """[B, 3, 32, 32] in [0, 1] -> [B, 4 * width, 8, 8]."""

    def __init__(self, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        sizes = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    BasicBlock(inputs, outputs, stride),
                    *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)),
                )
                for inputs, outputs, stride in sizes
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.relu(self.bn1(self.conv1(x - 0.5))))


def build_head(width: int = 16, classes: int = 4) -> nn.Module:
    """[B, 4 * width, 8, 8] -> [B, classes]."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


def build(classes: int = 4) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Backbone and heads."""
    return Backbone(), {"label": build_head(classes=classes)}
