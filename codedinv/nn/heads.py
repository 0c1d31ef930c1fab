"""Heads g: embedding -> task output, light enough for the front end."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class PoolHead(nn.Module):
    """The paper's head: batch norm, ReLU, global average pool, linear.

    Args:
        embedding_shape: (C, H, W).
        outputs: number of classes or targets.
    """

    def __init__(self, embedding_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        self._config = {"embedding_shape": list(embedding_shape), "outputs": outputs}
        self.norm = nn.BatchNorm2d(embedding_shape[0])
        self.linear = nn.Linear(embedding_shape[0], outputs)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "pool", **self._config}

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(F.relu(self.norm(z)).mean((2, 3)))  # type: ignore[no-any-return]


class LinearHead(nn.Module):
    """Batch norm and one linear map: all that is nonlinear is the backbone's work.

    Args:
        embedding_shape: (C, H, W).
        outputs: number of classes or targets.
    """

    def __init__(self, embedding_shape: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        channels, height, width = embedding_shape
        self._config = {"embedding_shape": list(embedding_shape), "outputs": outputs}
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels * height * width, outputs)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "linear", **self._config}

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(self.norm(z).flatten(1))  # type: ignore[no-any-return]


class DenseHead(nn.Module):
    """Batch norm, then a two-layer perceptron on the whole embedding.

    A squeezed embedding keeps few channels (16 at 7x7): pooling would leave the classifier 16
    numbers, while this sees all of them for about 1 % of the backbone's work.

    Args:
        embedding_shape: (C, H, W).
        outputs: number of classes or targets.
        hidden: width of the hidden layer.
        dropout: probability of dropping a hidden unit while training.
    """

    def __init__(
        self,
        embedding_shape: tuple[int, int, int],
        outputs: int,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = embedding_shape
        self._config = {
            "embedding_shape": list(embedding_shape),
            "outputs": outputs,
            "hidden": hidden,
            "dropout": dropout,
        }
        self.norm = nn.BatchNorm2d(channels)
        self.linear1 = nn.Linear(channels * height * width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden, outputs)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "dense", **self._config}

    def forward(self, z: Tensor) -> Tensor:
        h = F.elu(self.linear1(self.norm(z).flatten(1)))
        return self.linear2(self.dropout(h))  # type: ignore[no-any-return]


class ConvHead(nn.Module):
    """Batch norm, a few 3x3 convolutions with ELU (the later ones of stride 2), pool, linear.

    Args:
        embedding_shape: (C, H, W).
        outputs: number of classes or targets.
        widths: channels of each convolution.
    """

    def __init__(
        self,
        embedding_shape: tuple[int, int, int],
        outputs: int,
        widths: tuple[int, ...] = (32, 64),
    ) -> None:
        super().__init__()
        self._config = {
            "embedding_shape": list(embedding_shape),
            "outputs": outputs,
            "widths": list(widths),
        }
        channels = (embedding_shape[0], *widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 3, padding=1, stride=2 if i else 1, bias=False)
            for i in range(len(widths))
        )
        self.linear = nn.Linear(channels[-1], outputs)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "conv", **self._config}

    def forward(self, z: Tensor) -> Tensor:
        z = self.norms[0](z)
        for convolution, norm in zip(self.convolutions, list(self.norms)[1:], strict=True):
            z = F.elu(norm(convolution(z)))
        return self.linear(z.mean((2, 3)))  # type: ignore[no-any-return]
