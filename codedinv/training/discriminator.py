"""The paper's adversarial option: a small patch discriminator with least-squares losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Judges 4x4-fold reduced patches of an image as ideal (1) or encoded (0).

    Args:
        channels: of the image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 1, H / 4, W / 4]."""
        return self.layers(x)  # type: ignore[no-any-return]


def lsgan_encoder(discriminator: Discriminator, parity: Tensor) -> Tensor:
    """The encoder's side: its parity queries should be judged ideal (Mao et al. 2017)."""
    return _squared_distance(discriminator, parity, 1.0)


def lsgan_discriminator(discriminator: Discriminator, ideal: Tensor, parity: Tensor) -> Tensor:
    """The discriminator's side: ideal parity queries are 1, encoded ones 0."""
    real = _squared_distance(discriminator, ideal, 1.0)
    return 0.5 * (real + _squared_distance(discriminator, parity, 0.0))


def _squared_distance(discriminator: Discriminator, image: Tensor, judgement: float) -> Tensor:
    return torch.square(discriminator(image) - judgement).mean()


class Critic:
    """A discriminator with its optimizer.

    Args:
        channels: of the images.
        device: to train on.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.discriminator = Discriminator(channels).to(device)
        self.optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=2e-4, betas=(0.0, 0.9)
        )

    def step(self, ideal: Tensor, parities: Tensor) -> None:
        """One optimizer step on ideal and encoded parity queries [B, C, H, W]."""
        self.optimizer.zero_grad()
        lsgan_discriminator(self.discriminator, ideal, parities).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
