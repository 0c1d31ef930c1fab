"""The trainings of a fit: the light model, and an encoder for each k. f stays as it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from codedinv.coding import Code
from codedinv.data import Examples
from codedinv.fitting.parts import TorchParts, as_modules
from codedinv.fitting.settings import HELD_OUT, LIGHT_SHARE, Settings
from codedinv.fitting.subject import Subject, anchors_of, check_budget
from codedinv.nn import Encoder, encoder_for, light_for
from codedinv.training.classifier import classifier_training
from codedinv.training.draws import classes_of
from codedinv.training.encoder import EncoderLosses, encoder_training
from codedinv.training.identity import module_print
from codedinv.training.learnt import LabelledQueries, split_off
from codedinv.training.lessons import Lessons
from codedinv.training.light import best_temperature, light_training
from codedinv.training.loop import train
from codedinv.training.measures import accuracy, degraded_accuracy
from codedinv.training.recipe import ClassifierRecipe, EncoderRecipe, LightRecipe
from codedinv.training.tasks import targets_of

_GROUPS_PER_STEP = 32
_SCORED = 2000  # test examples for the history of a training


def fit_classifier(
    backbone: Any,
    heads: Any,
    learnt: Examples,
    test: Examples,
    epochs: int,
    settings: Settings,
    out: Path,
    device: str,
    resume: bool,
    console: Console,
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Trained copies of f and its one head, by the cross entropy of the labels.

    Raises:
        ValueError: there are several heads, but labels are of one task; the model does not take
            such data; or the budget does not pay for what follows.
    """
    backbone, heads = as_modules(backbone, heads)
    if len(heads) > 1:
        raise ValueError(
            f"epochs: labels are of one task, so {list(heads)} cannot all be trained here; give "
            "the model trained"
        )
    plain = TorchParts(backbone, heads).model(
        name=settings.name,
        code=Code.uniform(settings.ks[0]),
        anchors_queries=anchors_of(learnt, settings),
        scheme="uncoded",
    )
    check_budget(plain, settings)
    (task, outputs), target = next(iter(plain.tasks.items())), torch.device(device)
    for part in (learnt, test):
        part.check_fit(outputs=outputs)
    backbone, head = (copy.deepcopy(module).to(target) for module in (backbone, heads[task]))
    queries, _ = split_off(learnt, HELD_OUT, settings.seed, target)
    recipe = ClassifierRecipe.model_validate(
        {
            "epochs": epochs,
            "mixup_share": 0,
            "flip": False,
            "autocast": False,
            "batch_size": min(128, max(16, len(queries) // 16)),
            "shift": 1 if queries.inputs.ndim == 4 else 0,
        }
    )
    torch.manual_seed(settings.seed)
    scored = test.part(slice(_SCORED))
    training = classifier_training(
        backbone,
        head,
        Lessons(queries, recipe, settings.seed, None, outputs),
        recipe,
        title="the model itself",
        evaluate=lambda: {"normal_accuracy": accuracy(backbone, head, scored)},
        about={
            "seed": settings.seed,
            "data": queries.print(),
            "untrained": module_print(backbone) + module_print(head),
        },
    )
    train(training, out, resume, console)
    return backbone.cpu().eval(), {task: head.cpu().eval()}


def fit_light(
    subject: Subject, settings: Settings, out: Path, title: str, resume: bool, console: Console
) -> nn.Module:
    """The light model, distilled from f and calibrated."""
    learnt, tasks = subject.learnt, list(subject.plain.tasks.values())
    recipe = LightRecipe.model_validate(
        {
            "budget": LIGHT_SHARE * settings.budget,
            "epochs": settings.epochs_of_light(len(learnt)),
            "batch_size": min(128, max(16, len(learnt) // 16)),
            "flip": subject.views == 2,
            "shift": 1 if learnt.inputs.ndim == 4 else 0,
        }
    )
    torch.manual_seed(settings.seed + 2)
    light = light_for(
        subject.plain.input_shape, sum(tasks), recipe.budget * subject.work, *_scale(subject)
    ).to(subject.device)
    embeddings = subject.fixed.embeddings(learnt, out.parent / "embeddings.pt", subject.views)
    answers = targets_of(subject.fixed.logits(embeddings), tasks)
    lessons = Lessons(learnt, recipe, settings.seed, answers, tasks[0])
    scored = subject.test.part(slice(_SCORED))
    training = light_training(
        light,
        lessons,
        recipe,
        title=title,
        evaluate=lambda: {"light_accuracy": accuracy(nn.Identity(), light, scored, tasks[0])},
        about=_about(subject, settings),
        tasks=tasks,
    )
    train(training, out, resume, console)
    _calibrate(light.eval(), subject.held_out, tasks[0])
    return light


def fit_encoder(
    subject: Subject,
    settings: Settings,
    light: nn.Module,
    k: int,
    out: Path,
    title: str,
    resume: bool,
    console: Console,
) -> nn.Module:
    """An encoder for groups of k, half of which are alike while it learns.

    Raises:
        ValueError: not even a backbone call pays for one.
    """
    learnt, tasks, code = subject.learnt, list(subject.plain.tasks.values()), Code.uniform(k)
    recipe = EncoderRecipe.model_validate(
        {
            "k": k,
            "steps": settings.steps_of_encoder(len(learnt), _GROUPS_PER_STEP),
            "groups_per_step": _GROUPS_PER_STEP,
            "flip": subject.views == 2,
            "autocast": False,
        }
    )
    torch.manual_seed(settings.seed + 1)
    in_unit = subject.train.input_range is not None
    encoder = _encoder_of(subject, settings, code, not in_unit)
    if not in_unit:
        encoder.fit_scale(learnt.queries().cpu())
    encoder.to(subject.device)
    classes = classes_of(light, learnt, subject.device, tasks[0])
    losses = EncoderLosses(
        subject.fixed, encoder, code, recipe, learnt, classes,
        out.parent / "embeddings.pt", tasks,
    )  # fmt: skip
    scored, fixed = subject.test.part(slice(_SCORED)), subject.fixed
    training = encoder_training(
        losses,
        title=title,
        seed=settings.seed,
        evaluate=lambda: degraded_accuracy(
            fixed.backbone, fixed.head, encoder, code, scored, tasks[0]
        ),
        about={"light": module_print(light), **_about(subject, settings)},
    )
    train(training, out, resume, console)
    return encoder.eval()


def _encoder_of(subject: Subject, settings: Settings, code: Code, normalised: bool) -> Encoder:
    """Within the front end's budget, or, if that pays for none, within what a worker does for a
    query: then the parity worker encodes."""
    shape, coefficients = subject.plain.input_shape, code.coefficients
    try:
        return encoder_for(shape, coefficients, settings.budget * subject.work, normalised)
    except ValueError:
        return encoder_for(shape, coefficients, subject.work, normalised)


@torch.no_grad()
def _calibrate(light: nn.Module, held_out: LabelledQueries, outputs: int) -> None:
    """Folds the first task's temperature into its logits; numbers of other tasks have none."""
    temperature = best_temperature(light, held_out, outputs)
    linear = light.get_submodule("linear")
    for name in ("weight", "bias"):
        linear.get_parameter(name)[:outputs] /= temperature


def _about(subject: Subject, settings: Settings) -> dict[str, object]:
    return {
        "budget": settings.budget,
        "seed": settings.seed,
        "data": subject.learnt.print(),
        "model": module_print(subject.fixed.backbone) + module_print(subject.fixed.head),
    }


def _scale(subject: Subject) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of images; of other queries none."""
    if len(subject.plain.input_shape) != 3:
        return [], []
    x = subject.learnt.queries(slice(2000))
    return x.mean((0, 2, 3)).tolist(), x.std((0, 2, 3)).clamp_min(1e-6).tolist()
