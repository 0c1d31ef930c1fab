"""Encoder: k queries -> r parity queries with f(parity_i) close to sum_j c_ij f(x_j)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
        input_shape: (C, H, W) of a query.
        coefficients: r rows of k parity coefficients c_ij.
        patch: side of the space-to-depth patch the network works on.
        input_channels: features made of each query; the only part whose cost grows with k.
        width: channels of the trunk.
        blocks: residual blocks of the trunk.
    """

    input_shape: tuple[int, int, int]
    coefficients: tuple[tuple[float, ...], ...]
    patch: int = 4
    input_channels: int = 8
    width: int = 32
    blocks: int = 2

    def __post_init__(self) -> None:
        _, height, width = self.input_shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the image ({height}, {width})")
        if not self.coefficients or len({len(row) for row in self.coefficients}) != 1:
            raise ValueError(f"coefficients: expected r equal rows, got {self.coefficients}")

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

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.input_shape[0] * config.patch**2
        self.register_buffer("coefficients", torch.tensor(config.coefficients, dtype=torch.float32))
        self.per_query = nn.Conv2d(pixels, config.input_channels, 3, padding=1)
        self.project = nn.Conv2d(config.input_channels, config.width, 1)
        self.trunk = nn.ModuleList(
            nn.Sequential(
                nn.ELU(),
                nn.Conv2d(config.width, config.width, 3, padding=1),
                nn.ELU(),
                nn.Conv2d(config.width, config.width, 3, padding=1),
            )
            for _ in range(config.blocks)
        )
        self.out = nn.Conv2d(config.width, pixels, 1)
        # Training starts from the weighted sum of the queries.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "sum", **asdict(self.config)}

    def forward(self, queries: Tensor) -> Tensor:
        """[B, k, C, H, W] -> [B, r, C, H, W]."""
        batch, k = queries.shape[:2]
        r = self.coefficients.shape[0]
        patches = F.pixel_unshuffle(queries.flatten(0, 1), self.config.patch)
        features = F.elu(self.per_query(patches))
        h = self.project(self._combine(features, batch, k))
        for block in self.trunk:
            h = h + block(h)
        correction = F.pixel_shuffle(self.out(F.elu(h)), self.config.patch)
        parity = self._combine(queries.flatten(0, 1), batch, k) + correction
        return parity.reshape(batch, r, *queries.shape[2:])

    def _combine(self, x: Tensor, batch: int, k: int) -> Tensor:
        """[B k, ...] -> [B r, ...]: the code's rows applied over the queries of each group."""
        combined = torch.matmul(self.coefficients.to(x.dtype), x.reshape(batch, k, -1))
        return combined.reshape(-1, *x.shape[1:])
