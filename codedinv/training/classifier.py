"""fit_classifier: backbone f and head g, with Manifold Mixup."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from codedinv.data import load_image_set, to_queries
from codedinv.nn import Backbone, build_backbone, build_head, macs
from codedinv.training.descent import Descent
from codedinv.training.images import load_training_images
from codedinv.training.lessons import Lessons, teacher_answers
from codedinv.training.loop import Run, autocast, run_to
from codedinv.training.recipe import Recipe

_OUTPUTS = 10  # the classes of every image set that recipes know


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
) -> tuple[Backbone, nn.Module]:
    """Trains backbone and head, and leaves `classifier.pt`, the history and its plot in `out`.

    Args:
        recipe: see Recipe.
        out: folder for results and checkpoints; a killed run resumes from it.
        data: folder of the data set (None: where the system keeps it).
        device: "cpu" or "cuda".
        resume: False starts afresh.

    Returns:
        (backbone with norm bounds, head), eval mode.

    Source: paper section 4.1 (Manifold Mixup at a random layer, Beta(1, 1) coefficient).
    """
    settings = recipe.classifier
    target = torch.device(device)
    learnt, _ = load_training_images(recipe, data, target)
    test = load_image_set(recipe.data, "test", data)
    backbone, head = build_classifier(recipe)
    backbone.to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head.to(target)
    parameters = [*backbone.parameters(), *head.parameters()]
    taught = teacher_answers(settings.teacher, learnt, _OUTPUTS) if settings.teacher else None
    lessons = Lessons(learnt, settings, recipe.seed, taught, _OUTPUTS)
    steps = settings.epochs * lessons.per_epoch
    descent = Descent.one_cycle(parameters, steps, settings.learning_rate, settings.weight_decay)
    run = Run({"backbone": backbone, "head": head}, [descent.optimizer], [descent.schedule])
    cross_entropy = nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    beta = torch.distributions.Beta(settings.mixup_alpha, settings.mixup_alpha)

    def step(number: int) -> Mapping[str, Tensor]:
        backbone.train()
        head.train()
        x, y = lessons(number)
        mixed = bool(torch.rand(()) < settings.mixup_share)
        partner = torch.randperm(len(x), device=target)
        share = float(beta.sample()) if mixed else 1.0
        at = int(torch.randint(len(backbone.layers) + 1, ())) if mixed else None
        with autocast(target, settings.autocast):
            logits = head(_mixed_forward(backbone, x, partner, share, at)).float()
        loss = cross_entropy(logits, torch.lerp(y[partner], y, share) if mixed else y)
        descent.step(loss)
        return {"loss": loss}

    def evaluate() -> Mapping[str, float]:
        return {"normal_accuracy": accuracy(backbone, head, *test)}

    run_to(run, steps, step, evaluate, lessons.per_epoch, out, "classifier", resume)
    backbone.eval()
    head.eval()
    torch.save(
        {
            "recipe": recipe.model_dump_json(),
            "backbone": backbone.state_dict(),
            "head": head.state_dict(),
            "normal_accuracy": run.history[-1]["normal_accuracy"],
            "seconds": run.seconds,
        },
        out / "classifier.pt",
    )
    return backbone, head


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
    backbone, head = fit_classifier(recipe.model_copy(update=changes), out, data, device, resume)
    saved = torch.load(out / "classifier.pt", weights_only=True)
    embedding = torch.zeros(1, *backbone.embedding_shape, device=next(head.parameters()).device)
    return float(saved["normal_accuracy"]), macs(head, embedding)


def load_classifier(recipe: Recipe, path: Path) -> tuple[Backbone, nn.Module]:
    """Reads what fit_classifier left; the recipe's backbone and head must be the same."""
    backbone, head = build_classifier(recipe)
    saved = torch.load(path, weights_only=True, map_location="cpu")
    backbone.load_state_dict(saved["backbone"])
    head.load_state_dict(saved["head"])
    return backbone, head


@torch.no_grad()
def accuracy(
    backbone: nn.Module, head: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]
) -> float:
    """Share of right answers (in percent) on uint8 images [N, H, W] with labels [N]."""
    backbone.eval()
    head.eval()
    device = next(head.parameters()).device
    right = 0
    for start in range(0, len(images), 1000):
        x = torch.from_numpy(to_queries(images[start : start + 1000])).to(device)
        y = torch.from_numpy(labels[start : start + 1000]).to(device)
        right += int((head(backbone(x)).argmax(1) == y).sum())
    return 100.0 * right / len(images)


def _mixed_forward(
    backbone: Backbone, x: Tensor, partner: Tensor, share: float, at: int | None
) -> Tensor:
    """Forward pass that replaces h by share h + (1 - share) h[partner] before layer `at`."""
    for index, layer in enumerate(backbone.layers):
        if index == at:
            x = share * x + (1 - share) * x[partner]
        x = layer(x)
    if at == len(backbone.layers):
        x = share * x + (1 - share) * x[partner]
    return x
