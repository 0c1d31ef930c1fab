"""Small models that are quickly trained, and the bundled images as data for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from codedinv.data import load_test_images


class Trained(NamedTuple):
    """A model with the data that it was trained on."""

    backbone: nn.Module
    heads: dict[str, nn.Module]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def learn(
    backbone: nn.Module, head: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int
) -> None:
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(backbone(x[part])), y[part]).backward()
            optimizer.step()


def split(x: np.ndarray) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """700 training and 300 test examples of the bundled images' labels."""
    labels = load_test_images()[1]
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = order[:700], order[700:]
    return (x[first], labels[first]), (x[second], labels[second])


@pytest.fixture(scope="session")
def tabular() -> Trained:
    """A perceptron on 49 numbers of each image: the means of its 4x4 patches."""
    images = load_test_images()[0].astype(np.float32) / 255
    train, test = split(images.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(-1, 49))
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Linear(49, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32)
    )
    head = nn.Sequential(nn.ReLU(), nn.Linear(32, 10))
    learn(backbone, head, *map(torch.from_numpy, train), epochs=15)
    return Trained(backbone.eval(), {"label": head.eval()}, train, test)


QUICK: dict[str, Any] = {"light_epochs": 6, "encoder_steps": 40, "quiet": True, "threads": 1}


@pytest.fixture(scope="session")
def quick() -> dict[str, Any]:
    """Arguments of a fit that is over in seconds."""
    return QUICK
