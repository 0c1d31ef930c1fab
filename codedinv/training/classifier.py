"""fit_classifier: backbone f and head g, with Manifold Mixup."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codedinv.nn import Backbone, build_backbone, build_head, macs
from codedinv.training.descent import Descent
from codedinv.training.learnt import load_training_queries, recipe_examples
from codedinv.training.lessons import Lessons, teacher_answers
from codedinv.training.loop import Training, autocast, train
from codedinv.training.measures import accuracy
from codedinv.training.recipe import ClassifierRecipe, Recipe

_OUTPUTS = 10  # the classes of Fashion-MNIST and MNIST; other data say how many they have


def build_classifier(recipe: Recipe, outputs: int = _OUTPUTS) -> tuple[Backbone, nn.Module]:
    """Makes the recipe's untrained backbone (with norm bounds) and head."""
    torch.manual_seed(recipe.seed)
    backbone = build_backbone({"kind": "iresnet", **recipe.backbone}, bounded=True)
    head = build_head(
        {**recipe.head, "embedding_shape": list(backbone.embedding_shape), "outputs": outputs}
    )
    return backbone, head


def fit_classifier(
    recipe: Recipe,
    out: Path,
    data: Path | None = None,
    device: str = "cpu",
    resume: bool = True,
    title: str = "classifier",
) -> tuple[Backbone, nn.Module]:
    """Trains backbone and head, and leaves `classifier.pt`, the history and its plot in `out`.

    Args:
        recipe: see Recipe.
        out: folder for results and checkpoints; a killed run resumes from it.
        data: folder of the data set (None: where the system keeps it); the head has an output for
            each of its classes.
        device: "cpu" or "cuda".
        resume: False starts afresh.
        title: of the progress.

    Returns:
        (backbone with norm bounds, head), eval mode.

    Source: paper section 4.1 (Manifold Mixup at a random layer, Beta(1, 1) coefficient).
    """
    settings = recipe.classifier
    target = torch.device(device)
    learnt, _ = load_training_queries(recipe, data, target)
    test = recipe_examples(recipe, data, "test")
    outputs = int(learnt.labels.max()) + 1
    test.check_fit(outputs=outputs)
    backbone, head = build_classifier(recipe, outputs)
    backbone.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head.to(target)
    taught = teacher_answers(settings.teacher, learnt, outputs) if settings.teacher else None
    lessons = Lessons(learnt, settings, recipe.seed, taught, outputs)

    def evaluate() -> Mapping[str, float]:
        return {"normal_accuracy": accuracy(backbone, head, test)}

    of: dict[str, Any] = {"backbone": recipe.backbone, "head": {**recipe.head, "outputs": outputs}}
    of |= {"seed": recipe.seed, "data": learnt.print()}
    training = classifier_training(
        backbone, head, lessons, settings, title=title, evaluate=evaluate, about=of
    )
    state = train(training, out, resume)
    backbone.eval()
    head.eval()
    result = {"outputs": outputs, "normal_accuracy": state.history[-1]["normal_accuracy"]}
    weights = {"backbone": backbone.state_dict(), "head": head.state_dict()}
    about = {"recipe": recipe.model_dump_json(), "seconds": state.seconds}
    torch.save({**about, **weights, **result}, out / "classifier.pt")
    return backbone, head


def classifier_training(
    backbone: nn.Module,
    head: nn.Module,
    lessons: Lessons,
    settings: ClassifierRecipe,
    *,
    title: str,
    evaluate: Callable[[], Mapping[str, float]],
    about: Mapping[str, Any],
) -> Training:
    """The training of backbone and head, for the loop.

    Args:
        backbone, head: on their device; Manifold Mixup needs a backbone with `layers`.
        lessons: what they learn.
        settings: epochs, rates, mixup.
        title: of the progress.
        evaluate: returns named numbers for the history.
        about: what a resumed training must agree in besides the settings.
    """
    parameters = [*backbone.parameters(), *head.parameters()]
    device = parameters[0].device
    steps = settings.epochs * lessons.per_epoch
    descent = Descent.one_cycle(parameters, steps, settings.learning_rate, settings.weight_decay)
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    beta = torch.distributions.Beta(settings.mixup_alpha, settings.mixup_alpha)

    def step(number: int) -> Mapping[str, Tensor]:
        backbone.train()
        head.train()
        x, y = lessons(number)
        mixed = bool(torch.rand(()) < settings.mixup_share)
        with autocast(device, settings.autocast):
            if mixed:
                partner, share = torch.randperm(len(x), device=device), float(beta.sample())
                logits = head(_mixed_forward(backbone, x, partner, share)).float()
                y = torch.lerp(y[partner], y, share)
            else:
                logits = head(backbone(x)).float()
        loss = cross_entropy(logits, y)
        descent.step(loss)
        return {"loss": loss}

    return Training(
        name="classifier",
        title=title,
        steps=steps,
        step=step,
        evaluate=evaluate,
        evaluate_every=lessons.per_epoch,
        modules={"backbone": backbone, "head": head},
        optimizers=[descent.optimizer],
        schedulers=[descent.schedule],
        identity={"classifier": settings.model_dump(mode="json"), **about},
    )


def fit_head_alone(
    recipe: Recipe,
    out: Path,
    data: Path | None = None,
    device: str = "cpu",
    resume: bool = True,
) -> tuple[float, int]:
    """Trains the recipe's head on raw queries, with no backbone: the control of the classifier.

    The queries are normalised and squeezed to the embedding's sides, as the backbone would. What
    the classifier reaches above this is the backbone's, so it is what workers are paid for.

    Args:
        recipe, out, data, device, resume: as for fit_classifier; `out` must be another folder.

    Returns:
        (A_n in percent, multiply-accumulates per query).
    """
    config = {"kind": "iresnet", **recipe.backbone}
    squeeze = math.prod(stage.get("squeeze", 2) for stage in config["stages"])
    alone: dict[str, Any] = {
        **{key: config[key] for key in ("input_shape", "mean", "std", "padding") if key in config},
        "kind": "iresnet",
        "stages": [
            {"blocks": 0, "hidden": 1, "squeeze": squeeze if config["kind"] == "iresnet" else 1}
        ],
    }
    changes = {"name": f"{recipe.name}-head-alone", "backbone": alone}
    backbone, head = fit_classifier(
        recipe.model_copy(update=changes), out, data, device, resume, "head alone (control)"
    )
    saved = torch.load(out / "classifier.pt", weights_only=True)
    embedding = torch.zeros(1, *backbone.embedding_shape, device=next(head.parameters()).device)
    return float(saved["normal_accuracy"]), macs(head, embedding)


def load_classifier(recipe: Recipe, path: Path) -> tuple[Backbone, nn.Module]:
    """Reads what fit_classifier left; the recipe's backbone and head must be the same."""
    saved = torch.load(path, weights_only=True, map_location="cpu")
    backbone, head = build_classifier(recipe, saved.get("outputs", _OUTPUTS))
    backbone.load_state_dict(saved["backbone"])
    head.load_state_dict(saved["head"])
    return backbone, head


def _mixed_forward(backbone: nn.Module, x: Tensor, partner: Tensor, share: float) -> Tensor:
    """Forward pass that replaces h by share h + (1 - share) h[partner] before a random layer."""
    layers = list(backbone.layers)  # type: ignore[arg-type]
    at = int(torch.randint(len(layers) + 1, ()))
    for index, layer in enumerate([*layers, nn.Identity()]):
        if index == at:
            x = share * x + (1 - share) * x[partner]
        x = layer(x)
    return x
