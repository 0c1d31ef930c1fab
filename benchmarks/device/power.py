"""Power iteration of a network's convolutions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codedinv import kernels
from codedinv.kernels import reference

from .networks import Network, draw
from .options import Options
from .receipts import Receipt
from .timing import Timer, attempt, checked


def measure_power(options: Options) -> None:
    """One power iteration of every convolution of a network, as a training step takes it."""
    out = Receipt(f"power-{options.name}", options, tuned=False)
    timer = Timer(options.rehearse)
    weights, vectors = _convolutions(options.network)
    expected, _ = reference.power_iteration(
        [weight.double() for weight in weights], [vector.double() for vector in vectors], 1
    )
    sigma, _ = kernels.power_iteration(weights, vectors, 1)
    row: dict[str, Any] = {"convolutions": len(weights), "error": checked(sigma, expected, 1e-5)}
    attempt(row, "kernels", lambda: timer(lambda: kernels.power_iteration(weights, vectors, 1)))
    attempt(row, "eager", lambda: timer(lambda: reference.power_iteration(weights, vectors, 1)))
    out.results = []
    out.add(row)


def _convolutions(network: Network) -> tuple[list[Tensor], list[Tensor]]:
    """Every weight of a network in float32, and a unit vector of its input size."""
    weights, vectors = [], []
    for (stage, _), blocks in zip(network.stages, draw(network, torch.float32)[0], strict=True):
        for (w1, _, w2, _, w3, _), _ in blocks:
            for weight in (w1, w2, w3):
                size = (stage.height, stage.width) if weight.shape[-1] == 3 else (1, 1)
                vector = torch.randn(1, weight.shape[1], *size, device=weight.device)
                weights.append(weight)
                vectors.append(vector / vector.norm())
    return weights, vectors
