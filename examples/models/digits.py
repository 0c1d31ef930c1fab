"""A perceptron for tables of 64 numbers, wide enough to be worth its workers."""

from torch import nn


def build() -> tuple[nn.Module, nn.Module]:
    """Backbone and head."""
    backbone = nn.Sequential(
        nn.BatchNorm1d(64), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
        nn.Linear(256, 64), nn.ReLU(),
    )  # fmt: skip
    return backbone, nn.Linear(64, 10)
