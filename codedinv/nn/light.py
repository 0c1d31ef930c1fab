"""Light models for queries of any shape, as wide as a budget of multiply-accumulates allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codedinv.nn.macs import macs
from codedinv.nn.separable import SeparableNet

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_WIDEST = 1024
_SMALLEST_SIDE = 8  # of an image or series on which convolutions have something to do
_SECOND_LAYER_FROM = 32  # hidden units


class Perceptron(nn.Module):
    """Query [B, *input], flattened and normalised -> calibrated logits [B, outputs].

    Args:
        input_shape: of a query.
        outputs: logits, of all tasks one after the other.
        widths: of the hidden layers; none: a linear model.
    """

    temperature: Tensor

    def __init__(self, input_shape: Sequence[int], outputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self._config = {
            "input_shape": list(input_shape),
            "outputs": outputs,
            "widths": list(widths),
        }
        self.widths = tuple(widths)
        self.register_buffer("temperature", torch.ones(()))
        size = math.prod(input_shape)
        self.norm = nn.BatchNorm1d(size, affine=False)  # queries come in any unit
        sizes = [size, *widths]
        self.hidden = nn.ModuleList(
            nn.Linear(sizes[i], sizes[i + 1]) for i in range(len(sizes) - 1)
        )
        self.linear = nn.Linear(sizes[-1], outputs)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "perceptron", **self._config}

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x.flatten(1))
        for layer in self.hidden:
            h = F.relu(layer(h))
        return self.linear(h) / self.temperature  # type: ignore[no-any-return]


class SeparableSeries(nn.Module):
    """Series [B, C, L] (or [B, L, C], the longer axis is time) -> calibrated logits [B, outputs].

    A strided convolution to `width` channels, depthwise and pointwise ones to twice and four times
    as many, average pool, linear.

    Args:
        input_shape: of a query.
        outputs: logits, of all tasks one after the other.
        width: channels of the first convolution.
    """

    temperature: Tensor

    def __init__(self, input_shape: Sequence[int], outputs: int, width: int) -> None:
        super().__init__()
        self._config = {"input_shape": list(input_shape), "outputs": outputs, "width": width}
        self.register_buffer("temperature", torch.ones(()))
        self.time_first = input_shape[0] > input_shape[1]
        channels = min(input_shape)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(channels, affine=False),
            nn.Conv1d(channels, width, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            *_series_block(width, 2 * width),
            *_series_block(2 * width, 4 * width),
        )
        self.linear = nn.Linear(4 * width, outputs)

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "separable-series", **self._config}

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2) if self.time_first else x
        return self.linear(self.layers(x).mean(2)) / self.temperature  # type: ignore[no-any-return]


def _series_block(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv1d(channels, channels, 5, stride=2, padding=2, groups=channels, bias=False),
        nn.BatchNorm1d(channels),
        nn.ReLU(),
        nn.Conv1d(channels, width, 1, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
    ]


def light_for(
    input_shape: Sequence[int],
    outputs: int,
    budget: float,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> nn.Module:
    """The widest light model for such queries of at most `budget` multiply-accumulates.

    Images (C, H, W) with sides of 8 or more get separable convolutions, series (C, L) or (L, C) of
    8 or more steps convolutions along the longer axis, everything else a perceptron. What
    convolutions are too expensive for gets a perceptron too.

    Args:
        input_shape: of a query.
        outputs: logits, of all tasks.
        budget: multiply-accumulates for one query.
        mean, std: of each channel of images; none: 0 and 1.

    Raises:
        ValueError: the budget does not even pay for a linear model.
    """
    query = torch.zeros(1, *input_shape)
    convolved = _convolved(input_shape, outputs, mean, std)
    found = None if convolved is None else widest(convolved, budget, query)
    return found if found is not None else _perceptron(input_shape, outputs, budget, query)


def _convolved(
    input_shape: Sequence[int],
    outputs: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Callable[[int], nn.Module] | None:
    """Makes a convolutional light model of a width; None: such queries are not convolved."""
    if len(input_shape) == 3 and min(input_shape[1:]) >= _SMALLEST_SIDE:
        channels, height, width = input_shape
        means = tuple(mean) or (0.0,) * channels
        stds = tuple(std) or (1.0,) * channels
        return lambda w: SeparableNet((channels, height, width), outputs, w, means, stds)
    if len(input_shape) == 2 and max(input_shape) >= _SMALLEST_SIDE:
        return lambda w: SeparableSeries(input_shape, outputs, w)
    return None


def _perceptron(
    input_shape: Sequence[int], outputs: int, budget: float, query: Tensor
) -> Perceptron:
    two = widest(lambda w: Perceptron(input_shape, outputs, (w, w)), budget, query)
    if two is not None and two.widths[0] >= _SECOND_LAYER_FROM:
        return two
    one = widest(lambda w: Perceptron(input_shape, outputs, (w,)), budget, query)
    linear = Perceptron(input_shape, outputs, ())
    if one is not None and one.widths[0] >= outputs:
        return one
    if macs(linear, query) <= budget:
        return linear
    if one is not None:
        return one
    raise ValueError(
        f"budget: {budget:,.0f} multiply-accumulates are too few for any light model of queries "
        f"{tuple(input_shape)}; the least takes {least_light(input_shape, outputs):,}"
    )


def least_light(input_shape: Sequence[int], outputs: int) -> int:
    """Multiply-accumulates of the lightest model that `light_for` makes of any budget.

    Args:
        input_shape: of a query.
        outputs: logits, of all tasks.
    """
    query = torch.zeros(1, *input_shape)
    candidates: list[nn.Module] = [
        Perceptron(input_shape, outputs, ()),
        Perceptron(input_shape, outputs, (1,)),
    ]
    if (convolved := _convolved(input_shape, outputs)) is not None:
        candidates.append(convolved(1))
    return min(macs(candidate, query) for candidate in candidates)


def widest(build: Callable[[int], ModuleT], budget: float, example: Tensor) -> ModuleT | None:
    """The widest network of at most `budget` multiply-accumulates; None: not even of width 1.

    Args:
        build: of a width; the work grows with it.
        budget: for one call.
        example: its input, a batch of 1.
    """
    low, high = 0, 1
    while high <= _WIDEST and macs(build(high), example) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if macs(build(middle), example) <= budget:
            low = middle
        else:
            high = middle
    return build(low) if low else None
