"""A perceptron for tables of numbers, with a class and a number to predict."""

import torch
from torch import Tensor, nn


class Backbone(nn.Module):
    """[B, columns] -> [B, width]; each column is brought to mean 0 and variance 1 within it."""

    def __init__(self, columns: int, width: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("std", torch.ones(columns))
        self.layers = nn.Sequential(
            nn.Linear(columns, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )

    def fit_scale(self, x: Tensor) -> None:
        self.mean, self.std = x.mean(0), x.std(0).clamp_min(1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.mean) / self.std)


def build(columns: int = 13, classes: int = 3) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Backbone and heads: a class, and a regression."""
    return Backbone(columns), {"label": nn.Linear(64, classes), "alcohol": nn.Linear(64, 1)}
