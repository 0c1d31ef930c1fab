"""What a classifier or a light model learns from: queries in fresh views, with soft targets."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codedinv.model import CodedModel
from codedinv.training.augment import augmented
from codedinv.training.fixed import mirrored_where, of_views
from codedinv.training.learnt import LabelledQueries
from codedinv.training.recipe import ClassifierRecipe, LightRecipe


class Lessons:
    """Batches of queries; images as they are or mirrored, shifted and erased as the recipe says.

    Args:
        learnt: the queries.
        settings: batch size and what is done to images.
        seed: of the epochs' permutations.
        answers: what a teacher says, [views, N, all outputs] of the queries and, where the
            settings flip, of their mirrors: probabilities, and the numbers of regressions; None:
            the labels alone are learnt.
        outputs: classes of the first task, the one that has labels.

    Attributes:
        targets: what is to be learnt, [views, N, all outputs].
    """

    def __init__(
        self,
        learnt: LabelledQueries,
        settings: ClassifierRecipe | LightRecipe,
        seed: int,
        answers: Tensor | None,
        outputs: int,
    ) -> None:
        self._learnt = learnt
        self._settings = settings
        self._seed = seed
        self._batch = min(settings.batch_size, len(learnt))
        labels = F.one_hot(learnt.labels, outputs).float()
        if answers is None:
            self.targets = labels.expand(2, *labels.shape)
        else:
            first = torch.lerp(labels, answers[..., :outputs], settings.distillation)
            self.targets = torch.cat([first, answers[..., outputs:]], dim=2)

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; what is left over of the queries sits out."""
        return len(self._learnt) // self._batch

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Queries [B, *input] and target probabilities [B, all outputs] of a step."""
        device = self._learnt.inputs.device
        picked = epoch_batch(len(self._learnt), self._batch, step, self._seed)
        picked = picked.to(device)
        view = torch.randint(2 if self._settings.flip else 1, (len(picked),), device=device)
        x = mirrored_where(self._learnt.queries(picked), view)
        x = augmented(x, shift=self._settings.shift, erase=self._settings.erase)
        return x, self.targets[view, picked]


def teacher_answers(name_or_folder: str, learnt: LabelledQueries, outputs: int) -> Tensor:
    """Probabilities [2, N, outputs] that a bundle's first head gives to images and their mirrors.

    Args:
        name_or_folder: of the teacher's bundle.
        learnt: the images.
        outputs: number of classes that the pupil has.

    Raises:
        ValueError: the bundle takes queries of another shape, or tells other classes apart.
    """
    teacher = CodedModel.load(name_or_folder)
    shape = tuple(learnt.inputs.shape[1:])
    if teacher.input_shape != shape:
        raise ValueError(
            f"teacher: expected a model of queries {shape}, got {name_or_folder!r}, whose queries "
            f"are {teacher.input_shape}"
        )

    def answer(queries: Tensor) -> Tensor:
        logits = teacher.head(teacher.embed(np.ascontiguousarray(queries.cpu().numpy())))
        return torch.from_numpy(logits).softmax(1)

    answers = of_views(answer, learnt).to(learnt.inputs.device)
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
