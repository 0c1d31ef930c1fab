"""One optimizer for every training: AdamW, its rate one cycle, its gradients clipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_LARGEST_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Descent:
    """Optimizer, schedule and the parameters they move."""

    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    parameters: list[nn.Parameter]

    @classmethod
    def one_cycle(
        cls,
        parameters: Iterable[nn.Parameter],
        steps: int,
        learning_rate: float,
        weight_decay: float = 0.0,
    ) -> Descent:
        """AdamW; the rate rises to `learning_rate` in a fifth of the steps and then falls."""
        moved = list(parameters)
        optimizer = torch.optim.AdamW(
            moved, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True
        )
        rise = 0.21 if steps == 5 else 0.2  # a rise that ends with the first step divides by zero
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, steps, pct_start=rise, div_factor=10, final_div_factor=100
        )
        return cls(optimizer, schedule, moved)

    def step(self, loss: Tensor) -> None:
        """Moves the parameters down the loss."""
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, _LARGEST_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
