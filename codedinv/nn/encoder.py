"""Encoder: k queries -> r parity queries with f(parity_i) close to sum_j c_ij f(x_j)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ACTIVATIONS: dict[str, type[nn.Module]] = {"elu": nn.ELU, "silu": nn.SiLU}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
        input_shape: of a query: images (C, H, W), series (C, L), anything else is a vector.
        coefficients: r rows of k parity coefficients c_ij.
        patch: side of the space-to-depth patch the network works on; 1 for vectors.
        input_channels: features made of each query; the only part whose cost grows with k.
        margin: pixels that a feature sees on each side of its patch of an image; None: a patch.
        width: channels of the trunk.
        blocks: residual blocks of the trunk.
        separable: the trunk's convolutions are separable, a depthwise one and a 1x1.
        activation: "elu", or "silu", which ONNX Runtime makes a part of the convolution before it.
        normalised: queries are centred and scaled by `Encoder.fit_scale` before features are made
            of them: for queries that are not in [0, 1].
    """

    input_shape: tuple[int, ...]
    coefficients: tuple[tuple[float, ...], ...]
    patch: int = 4
    input_channels: int = 8
    margin: int | None = None
    width: int = 32
    blocks: int = 2
    separable: bool = False
    activation: Literal["elu", "silu"] = "elu"
    normalised: bool = False

    def __post_init__(self) -> None:
        if any(size % self.patch for size in self.sides) or (not self.sides and self.patch != 1):
            raise ValueError(f"patch: {self.patch} does not divide {self.sides or 'a vector'}")
        if not self.coefficients or len({len(row) for row in self.coefficients}) != 1:
            raise ValueError(f"coefficients: expected r equal rows, got {self.coefficients}")
        if self.margin is not None and (len(self.sides) != 2 or self.margin < 0):
            raise ValueError(f"margin: expected None or, for images, 0 or more, got {self.margin}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation: expected one of {list(_ACTIVATIONS)}, got {self.activation!r}"
            )

    @property
    def sides(self) -> tuple[int, ...]:
        """The axes along which the encoder convolves: (H, W), (L,) or none."""
        return self.input_shape[1:] if len(self.input_shape) in (2, 3) else ()

    @property
    def channels(self) -> int:
        """Of the queries; of a vector its length."""
        return self.input_shape[0] if self.sides else math.prod(self.input_shape)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> EncoderConfig:
        config = dict(config)
        config["input_shape"] = tuple(config["input_shape"])
        config["coefficients"] = tuple(tuple(row) for row in config["coefficients"])
        return cls(**config)


class Encoder(nn.Module):
    """Light per-query layers, a code-weighted sum, a trunk, and the weighted sum of the queries.

    parity_i = sum_j c_ij x_j + trunk(sum_j c_ij phi(x_j)): a residual network cannot be far from
    linear, so the sum of the queries is a good first guess, and what is left to learn are sums of
    the branches' contributions, which phi sees query by query. Equal coefficients make it
    invariant to the order of the queries (paper, section 4.1 and figure 3).

    Args:
        config: see EncoderConfig.
    """

    coefficients: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.channels * config.patch ** len(config.sides)
        width, activation = config.width, _ACTIVATIONS[config.activation]
        self.register_buffer("coefficients", torch.tensor(config.coefficients, dtype=torch.float32))
        if config.normalised:
            shape = (config.channels, *[1] * max(1, len(config.sides)))
            self.register_buffer("centre", torch.zeros(shape))
            self.register_buffer("spread", torch.ones(shape))
        self.per_query = self._first_layer(pixels)
        self.activation = activation()
        self.project = self._convolution(config.input_channels, width, 1)
        self.trunk = nn.ModuleList(
            nn.Sequential(
                activation(),
                *self._layer(width),
                activation(),
                *self._layer(width),
            )
            for _ in range(config.blocks)
        )
        self.out = self._convolution(width, pixels, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)  # training starts from the weighted sum of the queries

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "sum", **asdict(self.config)}

    @torch.no_grad()
    def fit_scale(self, queries: Tensor) -> None:
        """Centres and scales by what these queries [N, *input] have; for `normalised` encoders."""
        x = self._channels_first(queries)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        self.centre.copy_(x.mean(axes).reshape(self.centre.shape))
        self.spread.copy_(x.std(axes).clamp_min(1e-6).reshape(self.spread.shape))

    def forward(self, queries: Tensor) -> Tensor:
        """[B, k, *input] -> [B, r, *input]."""
        # Only the batch is left open: sizes that the graph had to ask for cost a small call more
        # than its arithmetic.
        flat = queries.reshape(-1, *self.config.input_shape)
        x = self._channels_first(flat)
        if self.config.normalised:
            x = (x - self.centre) / self.spread
        if len(self.config.sides) != 2:
            x = _to_patches(x, self.config.patch)
        features = self.activation(self.per_query(x))
        h = self.project(self._combine(features))
        for block in self.trunk:
            h = h + block(h)
        correction = _from_patches(self.out(self.activation(h)), self.config.patch)
        if self.config.normalised:
            correction = correction * self.spread
        parity = self._combine(flat) + correction.reshape(-1, *self.config.input_shape)
        return parity.reshape(-1, len(self.config.coefficients), *self.config.input_shape)

    def _first_layer(self, pixels: int) -> Any:
        """Queries -> features of each patch; images are not yet cut into patches."""
        config = self.config
        if len(config.sides) != 2:
            return self._convolution(pixels, config.input_channels)
        if config.margin is None:
            return PatchConv2d(config.channels, config.input_channels, config.patch)
        side = config.patch + 2 * config.margin
        return nn.Conv2d(
            config.channels, config.input_channels, side, config.patch, padding=config.margin
        )

    def _layer(self, width: int) -> list[nn.Module]:
        """A convolution of the trunk, or the two of a separable one."""
        if not self.config.separable:
            return [self._convolution(width, width)]
        return [
            self._convolution(width, width, groups=width),
            self._convolution(width, width, 1),
        ]

    def _convolution(
        self, inputs: int, outputs: int, side: int | None = None, groups: int = 1
    ) -> nn.Module:
        """That keeps the size; along as many axes as queries have sides, 3 wide if not told."""
        if side is None:
            side = 3 if self.config.sides else 1  # a vector is a series of length 1
        layer: Any = nn.Conv2d if len(self.config.sides) == 2 else nn.Conv1d
        made: nn.Module = layer(inputs, outputs, side, padding=side // 2, groups=groups)
        return made

    def _channels_first(self, queries: Tensor) -> Tensor:
        """Queries [B, *input] with channels and sides; a vector has one place."""
        return queries if self.config.sides else queries.flatten(1).unsqueeze(2)

    def _combine(self, x: Tensor) -> Tensor:
        """[B k, ...] -> [B r, ...]: the code's rows applied over the queries of each group."""
        each = [int(size) for size in x.shape[1:]]
        groups = x.reshape(-1, len(self.config.coefficients[0]), math.prod(each))
        return torch.matmul(self.coefficients.to(x.dtype), groups).reshape(-1, *each)


class PatchConv2d(nn.Conv2d):
    """A 3x3 convolution over the patches of an image, done as the strided convolution over its
    pixels that it is: the pixels need not be moved, which takes ONNX Runtime as long as the
    arithmetic. Weights are those of the convolution over patches, [outputs, C patch^2, 3, 3].

    Args:
        channels: C of the image.
        outputs: channels of the result.
        patch: side of a patch; it divides the image.
    """

    def __init__(self, channels: int, outputs: int, patch: int) -> None:
        super().__init__(channels * patch**2, outputs, 3, padding=1)
        self._channels, self._patch = channels, patch

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs, H / patch, W / patch]."""
        p = self._patch
        taps = self.weight.reshape(self.out_channels, self._channels, p, p, 3, 3)
        kernel = taps.permute(0, 1, 4, 2, 5, 3).reshape(-1, self._channels, 3 * p, 3 * p)
        return F.conv2d(x, kernel, self.bias, stride=p, padding=p)


def _to_patches(x: Tensor, patch: int) -> Tensor:
    """Space to depth: [B, C, H, W] or [B, C, L] with sides shorter by `patch`, deeper channels."""
    if patch == 1:
        return x
    if x.ndim == 4:
        return F.pixel_unshuffle(x, patch)
    batch, channels, length = x.shape
    split = x.reshape(batch, channels, length // patch, patch).transpose(2, 3)
    return split.reshape(batch, channels * patch, length // patch)


def _from_patches(x: Tensor, patch: int) -> Tensor:
    """The inverse of `_to_patches`."""
    if patch == 1:
        return x
    if x.ndim == 4:
        return F.pixel_shuffle(x, patch)
    batch, channels, length = x.shape
    split = x.reshape(batch, channels // patch, patch, length).transpose(2, 3)
    return split.reshape(batch, channels // patch, length * patch)
