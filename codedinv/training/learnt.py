"""The examples that networks learn from, as tensors, and those that no network learns from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codedinv.data import Examples, as_examples, load_image_set, load_split
from codedinv.data.image_sets import Split
from codedinv.training.identity import tensor_print
from codedinv.training.recipe import Recipe


@dataclass(frozen=True)
class LabelledQueries:
    """Queries with their labels.

    Attributes:
        inputs: uint8 images [N, C, H, W], or float32 [N, *input].
        labels: int64 [N].
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def queries(self, picked: Tensor | slice = slice(None)) -> Tensor:
        """float32 [B, *input] of the picked ones; images in [0, 1]."""
        chosen = self.inputs[picked]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen

    def mirrored(self) -> LabelledQueries:
        """The images [N, C, H, W] mirrored left-right."""
        return LabelledQueries(self.inputs.flip(3), self.labels)

    def print(self) -> str:
        """Shape, dtype and hash, by which a checkpoint knows its data."""
        return tensor_print(self.inputs, self.labels)


def split_off(
    examples: Examples, share: float, seed: int, device: torch.device | None = None
) -> tuple[LabelledQueries, LabelledQueries]:
    """Examples that networks learn from, and a `share` of them that none sees.

    On the latter the temperature of the light model and the weights of fusion are fitted: on
    examples that f has learnt, f looks surer and better than it is.

    Args:
        examples: to split.
        share: held out, 0 to 1.
        seed: of the split, the same for every step of training.
        device: for the tensors.
    """
    order = np.random.default_rng(seed).permutation(len(examples))
    held_out = round(share * len(examples))
    fitted, kept = (
        LabelledQueries(
            torch.from_numpy(examples.inputs[part]).to(device),
            torch.from_numpy(examples.labels[part]).to(device),
        )
        for part in (order[held_out:], order[:held_out])
    )
    return fitted, kept


def recipe_examples(recipe: Recipe, folder: Path | None, split: Split) -> Examples:
    """The recipe's data, checked against its backbone.

    Args:
        recipe: names the data set, where there is no folder.
        folder: of data of one's own (see `codedinv.data.load_split`); None: where the system keeps
            the named set.
        split: "train" or "test".

    Raises:
        FileNotFoundError, ValueError: nothing there, damaged, or of another shape than the recipe's
            `backbone.input_shape`.
    """
    if folder is None:
        images, labels = load_image_set(recipe.data, split)
        examples = as_examples((images, labels), f"{recipe.data} ({split})")
    else:
        examples = load_split(folder, split)
    examples.check_fit(recipe.backbone.get("input_shape"))
    return examples


def load_training_queries(
    recipe: Recipe, folder: Path | None, device: torch.device | None = None
) -> tuple[LabelledQueries, LabelledQueries]:
    """What the recipe's networks learn from, and its `held_out` share; see `split_off`.

    Raises:
        ValueError: as `recipe_examples`, or a class between 0 and the largest has no example.
    """
    examples = recipe_examples(recipe, folder, "train")
    check_classes(examples)
    return split_off(examples, recipe.held_out, recipe.seed, device)


def check_group_fits(recipe: Recipe, folder: Path | None) -> None:
    """Refuses data too few for a group of the recipe's k, before anything is trained.

    Raises:
        ValueError: as `recipe_examples`, or fewer than k test examples, or fewer than k to learn
            from (10 k where a calibration follows, as it does after an encoder).
    """
    k = recipe.encoder.k
    splits: tuple[Split, Split] = ("train", "test")
    for split, least in zip(splits, (k if recipe.scheme == "guided" else 10 * k, k), strict=True):
        examples = recipe_examples(recipe, folder, split)
        if len(examples) < least:
            raise ValueError(
                f"{examples.source}: expected {least} {split} examples or more for groups of "
                f"{k} (`k` in [encoder]), got {len(examples)}"
            )


def check_classes(examples: Examples) -> None:
    """Refuses training labels with gaps: a class without an example is a slip, mostly.

    Raises:
        ValueError: names the classes that have none.
    """
    counts = np.bincount(examples.labels)
    if len(counts) < 2:
        raise ValueError(f"{examples.source}: expected two classes or more, got labels all 0")
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        at = int(examples.labels.argmax())
        raise ValueError(
            f"{examples.source}: labels reach {examples.labels[at]} (example {at}), but class "
            f"{empty[0]} has no example; number the classes from 0 without gaps"
        )
