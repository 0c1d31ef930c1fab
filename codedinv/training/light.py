"""fit_light: the light model l, distilled from a trained classifier within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codedinv.nn import Backbone, light_for, macs
from codedinv.training.descent import Descent
from codedinv.training.fixed import FixedClassifier
from codedinv.training.identity import module_print
from codedinv.training.learnt import LabelledQueries, load_training_queries, recipe_examples
from codedinv.training.lessons import Lessons, teacher_answers
from codedinv.training.loop import Training, autocast, train
from codedinv.training.measures import accuracy
from codedinv.training.recipe import LightRecipe, Recipe
from codedinv.training.tasks import loss_of, scale_of


def build_recipe_light(recipe: Recipe, backbone: Backbone, outputs: int = 10) -> nn.Module:
    """The widest light model within the recipe's share of the backbone's work, untrained."""
    config = backbone.config
    work = macs(backbone, torch.zeros(1, *config.input_shape))
    budget = light_recipe(recipe).budget * work
    torch.manual_seed(recipe.seed + 2)
    return light_for(config.input_shape, outputs, budget, config.mean, config.std)


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
) -> nn.Module:
    """Trains a light model on a teacher's answers and the labels, then calibrates it.

    Its targets are `distillation` parts the answer of its teacher (the classifier itself, if the
    recipe names no other) to the query as it is or mirrored, and 1 - `distillation` parts the
    label; it sees images shifted and erased afresh at each step. One temperature, fitted on the
    held-out queries, is then folded into its logits.

    Args:
        recipe: see Recipe.
        backbone, head: trained by fit_classifier; left as they are.
        out: folder for `light.pt`, history, plot and checkpoints.
        data: folder of the data set (None: where the system keeps it).
        device: "cpu" or "cuda".
        resume: False starts afresh.
        cache: file for the embeddings of the training queries, see FixedClassifier.embeddings.

    Returns:
        The light model, eval mode.
    """
    settings = light_recipe(recipe)
    target = torch.device(device)
    learnt, held_out = load_training_queries(recipe, data, target)
    test = recipe_examples(recipe, data, "test")
    fixed = FixedClassifier.of(backbone, head, target)
    taught = _answers(settings, learnt, fixed, cache)
    light = build_recipe_light(recipe, backbone, taught.shape[2]).to(target)
    training = light_training(
        light,
        Lessons(learnt, settings, recipe.seed, taught, taught.shape[2]),
        settings,
        title="light model",
        evaluate=lambda: {"light_accuracy": accuracy(nn.Identity(), light, test)},
        about={"seed": recipe.seed, "data": learnt.print(), "classifier": _print_of(fixed)},
    )
    state = train(training, out, resume)
    light.eval()
    if len(held_out):
        light.get_buffer("temperature").fill_(best_temperature(light, held_out))
    torch.save(
        {
            "recipe": recipe.model_dump_json(),
            "data": learnt.print(),
            "light": light.state_dict(),
            "light_accuracy": state.history[-1]["light_accuracy"],
            "seconds": state.seconds,
        },
        out / "light.pt",
    )
    return light


def light_training(
    light: nn.Module,
    lessons: Lessons,
    settings: LightRecipe,
    *,
    title: str,
    evaluate: Callable[[], Mapping[str, float]],
    about: Mapping[str, Any],
    tasks: list[int] | None = None,
) -> Training:
    """The training of a light model, for the loop.

    Args:
        light: on its device.
        lessons: what it learns.
        settings: epochs, rates.
        title: of its progress.
        evaluate: returns named numbers for the history.
        about: what a resumed training must agree in besides the settings.
        tasks: outputs of each task; None: there is one.
    """
    light.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = settings.epochs * lessons.per_epoch
    descent = Descent.one_cycle(
        light.parameters(), steps, settings.learning_rate, settings.weight_decay
    )
    device = next(light.parameters()).device
    scale = scale_of(lessons.targets)

    def step(number: int) -> Mapping[str, Tensor]:
        light.train()
        x, y = lessons(number)
        with autocast(device, settings.autocast):
            logits = light(x).float()
        loss = loss_of(logits, y, [logits.shape[1]] if tasks is None else tasks, scale)
        descent.step(loss)
        return {"loss": loss}

    return Training(
        name="light",
        title=title,
        steps=steps,
        step=step,
        evaluate=evaluate,
        evaluate_every=max(lessons.per_epoch, steps // 8),
        modules={"light": light},
        optimizers=[descent.optimizer],
        schedulers=[descent.schedule],
        identity={"light": settings.model_dump(mode="json"), **about},
    )


def load_light(
    recipe: Recipe, backbone: Backbone, path: Path, learnt: LabelledQueries
) -> nn.Module:
    """Reads what fit_light left for the same backbone, budget and data.

    Args:
        recipe, backbone: as for `fit_light`.
        path: of light.pt.
        learnt: the training data as they are now.

    Raises:
        RuntimeError: the file holds a light model of another width.
        ValueError: it was trained on other data.
    """
    saved = torch.load(path, weights_only=True, map_location="cpu")
    was, now = saved.get("data"), learnt.print()
    if was not in (None, now):  # None: a file of before
        raise ValueError(
            f"{path} was trained on other data ({was}) than these ({now}): train into another "
            "folder by --out, classifier first"
        )
    light = build_recipe_light(recipe, backbone, len(saved["light"]["linear.bias"]))
    light.load_state_dict(saved["light"])
    return light.eval()


def _answers(
    settings: LightRecipe, learnt: LabelledQueries, fixed: FixedClassifier, cache: Path | None
) -> Tensor:
    """Probabilities [2, N, outputs] that the teacher gives to images and their mirrors."""
    if not settings.teacher:
        return fixed.logits(fixed.embeddings(learnt, cache)).softmax(2)
    with torch.no_grad():
        outputs = int(fixed.head(fixed.backbone(learnt.queries(slice(1)))).shape[1])
    return teacher_answers(settings.teacher, learnt, outputs)


def _print_of(fixed: FixedClassifier) -> str:
    return module_print(fixed.backbone) + module_print(fixed.head)


@torch.no_grad()
def best_temperature(
    light: nn.Module, held_out: LabelledQueries, outputs: int | None = None
) -> float:
    """The temperature, of 0.2 to 5, at which the held-out labels are likeliest.

    Args:
        light: of logits [B, all outputs].
        held_out: queries that it has not learnt from.
        outputs: classes of the first task, the one with labels; None: there is one.

    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """
    parts = range(0, len(held_out), 1000)
    logits = torch.cat([light(held_out.queries(slice(at, at + 1000))) for at in parts])
    logits = logits[:, :outputs]
    candidates = torch.logspace(-0.7, 0.7, 281, device=logits.device)
    losses = torch.stack([F.cross_entropy(logits / t, held_out.labels) for t in candidates])
    return float(candidates[losses.argmin()])
