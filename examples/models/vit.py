"""A small vision transformer for 3x32x32 images: its class token is the embedding."""

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """[B, 3, 32, 32] in [0, 1] -> [B, width]."""

    def __init__(self, width: int = 32, layers: int = 2, heads: int = 4, patch: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 1 + (32 // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x - 0.5).flatten(2).transpose(1, 2)
        # x.shape[0], for len(x) would be a constant of the ONNX graph.
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), tokens], dim=1)
        return self.norm(self.encoder(tokens + self.positions)[:, 0])


def build(classes: int = 4) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Backbone and heads."""
    return Backbone(), {"label": nn.Linear(32, classes)}
