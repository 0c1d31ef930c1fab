"""The parts that every training shares: images, views, draws of groups, calibration."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import codedinv
from codedinv.data import write_idx
from codedinv.training.augment import augmented, random_erase, random_flip, random_shift
from codedinv.training.descent import Descent
from codedinv.training.draws import GroupDraw
from codedinv.training.fixed import FixedClassifier
from codedinv.training.learnt import LabelledQueries, load_training_queries
from codedinv.training.light import best_temperature
from codedinv.training.recipe import Recipe
from codedinv.training.tasks import entropy_of, loss_of, scale_of, targets_of


def recipe(**changes: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "parts",
            "backbone": {},
            "head": {},
            "classifier": {},
            "encoder": {},
            **changes,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 images, each of one grey value of its own, labelled by it modulo 10."""
    values = np.arange(40, dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", np.tile(values[:, None, None], (1, 28, 28)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", values % 10)
    return tmp_path


def test_no_network_learns_from_a_held_out_image(folder: Path) -> None:
    learnt, held_out = load_training_queries(recipe(held_out=0.25), folder)
    numbers = [part.inputs[:, 0, 0, 0].tolist() for part in (learnt, held_out)]
    assert (len(numbers[0]), len(numbers[1])) == (30, 10)
    assert sorted(numbers[0] + numbers[1]) == list(range(40))
    for part in (learnt, held_out):
        assert part.labels.tolist() == (part.inputs[:, 0, 0, 0] % 10).tolist()


def test_the_same_images_are_held_out_at_every_step_of_training(folder: Path) -> None:
    first, second = (load_training_queries(recipe(), folder)[1] for _ in range(2))
    other = load_training_queries(recipe(seed=1), folder)[1]
    assert torch.equal(first.inputs, second.inputs)
    assert not torch.equal(first.inputs, other.inputs)


def test_a_flip_mirrors_about_half_of_the_images() -> None:
    torch.manual_seed(0)
    x = torch.rand(400, 1, 5, 5)
    y = random_flip(x)
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    kept = (y == x).flatten(1).all(1)
    assert bool((mirrored | kept).all())
    assert 140 < int(mirrored.sum()) < 260


def test_a_shift_moves_each_image_its_own_way_and_no_further() -> None:
    torch.manual_seed(1)
    x = torch.zeros(300, 1, 9, 9)
    x[:, :, 4, 4] = 1
    places = {(int(p[2]) - 4, int(p[3]) - 4) for p in random_shift(x, 2).nonzero()}
    assert places == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}
    edge = torch.ones(50, 1, 4, 4)
    assert float(random_shift(edge, 2).min()) == 0, "zeros come in at the edge"


def test_an_erased_square_is_no_larger_than_its_side() -> None:
    torch.manual_seed(2)
    blanked = (random_erase(torch.ones(400, 1, 12, 12), 3) == 0).flatten(1).sum(1)
    assert int(blanked.max()) == 9
    assert 140 < int((blanked > 0).sum()) < 260


def test_a_batch_is_left_alone_where_nothing_is_asked_for() -> None:
    x = torch.rand(3, 1, 6, 6)
    assert augmented(x) is x


def test_kept_embeddings_are_used_for_the_same_backbone_and_images_only(tmp_path: Path) -> None:
    class Counting(nn.Module):
        seen = 0

        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.seen += len(x)
            return self.factor * x

    images = torch.arange(40 * 6, dtype=torch.uint8).reshape(40, 1, 2, 3)
    learnt = LabelledQueries(images, torch.zeros(40, dtype=torch.long))
    others = LabelledQueries(images.flip(0), learnt.labels)

    def embed(factor: float, of: LabelledQueries) -> tuple[torch.Tensor, int]:
        Counting.seen = 0
        fixed = FixedClassifier(Counting(factor), nn.Identity())
        return fixed.embeddings(of, tmp_path / "embeddings.pt"), Counting.seen

    first, seen = embed(2.0, learnt)
    assert seen == 80, "every image and its mirror"
    assert torch.equal(first[1], 2 * learnt.queries().flip(3))
    again, seen = embed(2.0, learnt)
    assert seen == 32, "a few, to see whether they are the same"
    assert torch.equal(first, again)
    for factor, of in ((3.0, learnt), (3.0, others)):
        changed, seen = embed(factor, of)
        assert seen == 32 + 80
        assert torch.equal(changed[0], factor * of.queries())


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_recipes_share_of_groups_is_alike(alike: float) -> None:
    torch.manual_seed(3)
    classes = torch.randint(0, 7, (500,))
    picked = GroupDraw(classes, k=6, alike=alike)(40)
    assert tuple(picked.shape) == (40, 6)
    same = torch.tensor([len(set(classes[group].tolist())) == 1 for group in picked])
    assert bool(same[: round(40 * alike)].all())
    assert not bool(same[round(40 * alike) :].any())


def test_alike_groups_use_every_image_of_every_class() -> None:
    torch.manual_seed(4)
    classes = torch.tensor([0] * 5 + [1] * 15)
    picked = GroupDraw(classes, k=4, alike=1.0)(600)
    counts = picked.flatten().bincount(minlength=20) / picked.numel()
    assert float(counts.min()) > 0.02
    assert float(counts.max()) < 0.09, "classes come as often as they do in the traffic"


def test_the_temperature_undoes_logits_that_are_too_sure() -> None:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (4000, 1, 1, 5), generator=generator, dtype=torch.uint8)
    honest = 4 * pixels[:, 0, 0].float() / 255
    labels = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]

    class TooSure(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * (4 * x.flatten(1))

    assert best_temperature(TooSure(), LabelledQueries(pixels, labels)) == pytest.approx(3, rel=0.1)


def test_tasks_of_classes_and_numbers_are_learnt_side_by_side() -> None:
    torch.manual_seed(6)
    outputs = torch.randn(50, 4) * torch.tensor([1.0, 1.0, 1.0, 30.0])
    tasks = [3, 1]
    targets = targets_of(outputs, tasks)
    torch.testing.assert_close(targets[:, :3], outputs[:, :3].softmax(1))
    torch.testing.assert_close(targets[:, 3:], outputs[:, 3:])  # a number stays as it is
    scale = scale_of(targets)
    least = loss_of(outputs, targets, tasks, scale)
    torch.testing.assert_close(least, entropy_of(targets, tasks))
    shifted = outputs + torch.tensor([0.0, 0.0, 0.0, float(scale[3])])
    torch.testing.assert_close(loss_of(shifted, targets, tasks, scale) - least, torch.tensor(1.0))
    flat = torch.zeros(50, 4)
    assert loss_of(flat, targets, tasks, scale) > least + 0.5


def test_no_function_of_training_is_longer_than_sixty_lines() -> None:
    for path in (Path(codedinv.__file__).parent / "training").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("steps", [*range(1, 12), 50])
def test_a_training_of_any_length_has_a_schedule(steps: int) -> None:
    weight = nn.Parameter(torch.ones(1))
    descent = Descent.one_cycle([weight], steps, learning_rate=1e-2)
    for _ in range(steps):
        descent.step((weight**2).sum())
    assert 0 < weight.item() < 1
