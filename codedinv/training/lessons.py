"""What a classifier or a light model learns from: images in fresh views, with soft targets."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codedinv.model import CodedModel
from codedinv.training.augment import augmented
from codedinv.training.fixed import mirrored_where, of_both_views
from codedinv.training.images import LabelledImages
from codedinv.training.recipe import ClassifierRecipe, LightRecipe


class Lessons:
    """Batches of images, each image as it is or mirrored, shifted and erased as the recipe says.

    Args:
        learnt: the images.
        settings: batch size and what is done to the images.
        seed: of the epochs' permutations.
        answers: what a teacher says, probabilities [2, N, outputs] of the images and of their
            mirrors; None: the labels alone are learnt.
        outputs: number of classes.
    """

    def __init__(
        self,
        learnt: LabelledImages,
        settings: ClassifierRecipe | LightRecipe,
        seed: int,
        answers: Tensor | None,
        outputs: int,
    ) -> None:
        self._learnt = learnt
        self._settings = settings
        self._seed = seed
        labels = F.one_hot(learnt.labels, outputs).float()
        mixed = labels if answers is None else torch.lerp(labels, answers, settings.distillation)
        self._targets = mixed.expand(2, *labels.shape)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; what is left over of the images sits out."""
        return len(self._learnt) // self._settings.batch_size

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Queries [B, 1, H, W] and target probabilities [B, outputs] of a step."""
        device = self._learnt.images.device
        picked = epoch_batch(len(self._learnt), self._settings.batch_size, step, self._seed)
        picked = picked.to(device)
        view = torch.randint(2 if self._settings.flip else 1, (len(picked),), device=device)
        x = mirrored_where(self._learnt.queries(picked), view)
        x = augmented(x, shift=self._settings.shift, erase=self._settings.erase)
        return x, self._targets[view, picked]


def teacher_answers(name_or_folder: str, learnt: LabelledImages, outputs: int) -> Tensor:
    """Probabilities [2, N, outputs] that a bundle's first head gives to images and their mirrors.

    Args:
        name_or_folder: of the teacher's bundle.
        learnt: the images.
        outputs: number of classes that the pupil has.

    Raises:
        ValueError: the bundle takes queries of another shape, or tells other classes apart.
    """
    teacher = CodedModel.load(name_or_folder)
    shape = (1, *learnt.images.shape[1:])
    if teacher.input_shape != shape:
        raise ValueError(
            f"teacher: expected a model of queries {shape}, got {name_or_folder!r}, whose queries "
            f"are {teacher.input_shape}"
        )

    def answer(queries: Tensor) -> Tensor:
        logits = teacher.head(teacher.embed(np.ascontiguousarray(queries.cpu().numpy())))
        return torch.from_numpy(logits).softmax(1)

    answers = of_both_views(answer, learnt).to(learnt.images.device)
    if answers.shape[2] != outputs:
        raise ValueError(
            f"teacher: expected a model of {outputs} classes, got {name_or_folder!r}, whose first "
            f"head has {answers.shape[2]} outputs"
        )
    return answers


def epoch_batch(size: int, batch: int, step: int, seed: int) -> Tensor:
    """Indices of a step's batch: every epoch is its own permutation, so a resume continues it."""
    per_epoch = size // batch
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    return order[position * batch : (position + 1) * batch]
