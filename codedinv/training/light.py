"""fit_light: the light model l, distilled from a trained classifier within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codedinv.data import load_image_set
from codedinv.nn import Backbone, SeparableNet, macs, widest_separable
from codedinv.training.classifier import accuracy
from codedinv.training.descent import Descent
from codedinv.training.fixed import FixedClassifier
from codedinv.training.images import LabelledImages, load_training_images
from codedinv.training.lessons import Lessons, teacher_answers
from codedinv.training.loop import Run, autocast, run_to
from codedinv.training.recipe import LightRecipe, Recipe


def build_recipe_light(recipe: Recipe, backbone: Backbone, outputs: int = 10) -> SeparableNet:
    """The widest light model within the recipe's share of the backbone's work, untrained."""
    config = backbone.config
    work = macs(backbone, torch.zeros(1, *config.input_shape))
    budget = light_recipe(recipe).budget * work
    torch.manual_seed(recipe.seed + 2)
    return widest_separable(budget, config.input_shape, outputs, config.mean, config.std)


def light_recipe(recipe: Recipe) -> LightRecipe:
    """The recipe's [light].

    Raises:
        ValueError: it has none.
    """
    if recipe.light is None:
        raise ValueError(f"recipe {recipe.name}: it has no [light], so there is nothing to train")
    return recipe.light


def fit_light(
    recipe: Recipe,
    backbone: Backbone,
    head: nn.Module,
    out: Path,
    data: Path | None = None,
    device: str = "cpu",
    resume: bool = True,
    cache: Path | None = None,
) -> SeparableNet:
    """Trains a light model on a teacher's answers and the labels, then calibrates it.

    Its targets are `distillation` parts the answer of its teacher (the classifier itself, if the
    recipe names no other) to the image as it is or mirrored, and 1 - `distillation` parts the
    label; it sees the image shifted and erased afresh at each step. One temperature, fitted on the
    held-out images, is then folded into its logits.

    Args:
        recipe: see Recipe.
        backbone, head: trained by fit_classifier; left as they are.
        out: folder for `light.pt`, history, plot and checkpoints.
        data: folder of the data set (None: where the system keeps it).
        device: "cpu" or "cuda".
        resume: False starts afresh.
        cache: file for the embeddings of the training images, see FixedClassifier.embeddings.

    Returns:
        The light model, eval mode.
    """
    settings = light_recipe(recipe)
    target = torch.device(device)
    learnt, held_out = load_training_images(recipe, data, target)
    test = load_image_set(recipe.data, "test", data)
    taught = _answers(settings, learnt, backbone, head, cache)
    light = build_recipe_light(recipe, backbone, taught.shape[2]).to(target)
    light.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lessons = Lessons(learnt, settings, recipe.seed, taught, taught.shape[2])
    steps = settings.epochs * lessons.per_epoch
    descent = Descent.one_cycle(
        light.parameters(), steps, settings.learning_rate, settings.weight_decay
    )

    def step(number: int) -> Mapping[str, Tensor]:
        light.train()
        x, y = lessons(number)
        with autocast(target, settings.autocast):
            logits = light(x).float()
        loss = F.cross_entropy(logits, y)
        descent.step(loss)
        return {"loss": loss}

    def evaluate() -> Mapping[str, float]:
        return {"light_accuracy": accuracy(nn.Identity(), light, *test)}

    run = Run({"light": light}, [descent.optimizer], [descent.schedule])
    run_to(run, steps, step, evaluate, lessons.per_epoch, out, "light", resume)
    light.eval()
    if len(held_out):
        light.temperature.fill_(best_temperature(light, held_out))
    torch.save(
        {
            "recipe": recipe.model_dump_json(),
            "light": light.state_dict(),
            "light_accuracy": run.history[-1]["light_accuracy"],
            "seconds": run.seconds,
        },
        out / "light.pt",
    )
    return light


def load_light(recipe: Recipe, backbone: Backbone, path: Path) -> SeparableNet:
    """Reads what fit_light left for the same backbone and budget.

    Raises:
        RuntimeError: the file holds a light model of another width.
    """
    saved = torch.load(path, weights_only=True, map_location="cpu")
    light = build_recipe_light(recipe, backbone, len(saved["light"]["linear.bias"]))
    light.load_state_dict(saved["light"])
    return light.eval()


def _answers(
    settings: LightRecipe,
    learnt: LabelledImages,
    backbone: Backbone,
    head: nn.Module,
    cache: Path | None,
) -> Tensor:
    """Probabilities [2, N, outputs] that the teacher gives to images and their mirrors."""
    device = learnt.images.device
    if not settings.teacher:
        fixed = FixedClassifier.of(backbone, head, device)
        return fixed.logits(fixed.embeddings(learnt, cache)).softmax(2)
    embedding = torch.zeros(1, *backbone.embedding_shape, device=next(head.parameters()).device)
    with torch.no_grad():
        outputs = int(head(embedding).shape[1])
    return teacher_answers(settings.teacher, learnt, outputs)


@torch.no_grad()
def best_temperature(light: nn.Module, held_out: LabelledImages) -> float:
    """The temperature, of 0.2 to 5, at which the held-out labels are likeliest.

    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """
    parts = range(0, len(held_out), 1000)
    logits = torch.cat([light(held_out.queries(slice(at, at + 1000))) for at in parts])
    candidates = torch.logspace(-0.7, 0.7, 281, device=logits.device)
    losses = torch.stack([F.cross_entropy(logits / t, held_out.labels) for t in candidates])
    return float(candidates[losses.argmin()])
