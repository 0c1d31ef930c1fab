"""The training images, and those of them that no network learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codedinv.data import load_image_set
from codedinv.training.recipe import Recipe


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes:
        images: uint8 [N, H, W].
        labels: int64 [N].
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def queries(self, picked: Tensor | slice = slice(None)) -> Tensor:
        """float32 [B, 1, H, W] in [0, 1] of the picked images."""
        return self.images[picked].unsqueeze(1).float() / 255


def load_training_images(
    recipe: Recipe, folder: Path | None, device: torch.device | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """The images that networks learn from, and the `held_out` share that none of them sees.

    On the latter the temperature of the light model and the weights of fusion are fitted: on images
    that f has learnt, f looks surer and better than it is.

    Args:
        recipe: its data, seed and held_out decide the split, the same for every step of training.
        folder: of the data set (None: where the system keeps it).
        device: for the tensors.
    """
    images, labels = (
        torch.tensor(a, device=device) for a in load_image_set(recipe.data, "train", folder)
    )
    order = torch.from_numpy(np.random.default_rng(recipe.seed).permutation(len(images)))
    held_out = round(recipe.held_out * len(images))
    parts = order[held_out:].to(images.device), order[:held_out].to(images.device)
    fitted, kept = (LabelledImages(images[part], labels[part]) for part in parts)
    return fitted, kept
