"""`codedinv train classifier` and `codedinv train encoder`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from codedinv import data
from codedinv.bundle import CodedModel
from codedinv.cli.evaluate import as_report, as_table
from codedinv.experiments.accuracy import evaluate
from codedinv.experiments.receipts import circumstances, command_line
from codedinv.training.classifier import fit_classifier, load_classifier
from codedinv.training.encoder import fit_encoder, recipe_code
from codedinv.training.recipe import Recipe, load_recipe
from codedinv.verification.calibrate import calibrate
from codedinv.verification.store import save_consistency

# The training commands of a bundle, in order; kept in its provenance.
_COMMANDS = "commands.json"


def run_classifier(
    recipe_name: str, folder: Path | None, out: Path | None, device: str, resume: bool
) -> None:
    """Trains backbone and head of a recipe."""
    recipe = load_recipe(recipe_name)
    out = _prepared(out, recipe, device)
    _note_command(out, out, "classifier")
    fit_classifier(recipe, out, folder, device, resume)
    Console().print(f"wrote {out / 'classifier.pt'}", highlight=False)


def run_encoder(
    recipe_name: str,
    folder: Path | None,
    out: Path | None,
    classifier: Path | None,
    device: str,
    resume: bool,
) -> None:
    """Trains the encoder of a recipe, evaluates the model and writes its bundle.

    Raises:
        ValueError: the classifier has not been trained, or by another recipe.
    """
    recipe = load_recipe(recipe_name)
    out = _prepared(out, recipe, device)
    trained = (classifier or out) / "classifier.pt"
    if not trained.is_file():
        raise ValueError(
            f"--classifier: {trained} is missing; train it first: "
            f"codedinv train classifier --recipe {recipe_name} --out {trained.parent}"
        )
    try:
        backbone, head = load_classifier(recipe, trained)
    except RuntimeError as error:
        raise ValueError(f"{trained} was trained by a recipe with another network") from error
    _note_command(trained.parent, out, "encoder")
    encoder = fit_encoder(recipe, backbone, head, out, folder, device, resume)
    model = make_model(recipe, backbone, head, encoder, folder, _read_commands(out), device)
    model.save(out / "bundle")
    console = Console()
    queries = data.to_queries(data.load_image_set(recipe.data, "train", folder)[0])
    check, found = calibrate(model, queries)
    if found.holds:
        save_consistency(out / "bundle", check, found.to_dict())
    else:
        console.print(f"not calibrated (see `codedinv calibrate`): {found}", highlight=False)
    console.print(as_table(model.metadata["metrics"]))
    console.print(f"wrote {out / 'bundle'}", highlight=False)


def make_model(
    recipe: Recipe,
    backbone: nn.Module,
    head: nn.Module,
    encoder: nn.Module,
    folder: Path | None,
    commands: dict[str, str],
    device: str,
) -> CodedModel:
    """A model of trained networks, with anchors from the training set, metrics and provenance."""
    images, _ = data.load_image_set(recipe.data, "train", folder)
    count = max(recipe.anchors, recipe.encoder.k - 1)
    picked = np.random.default_rng(recipe.seed).choice(len(images), count, replace=False)
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "data_set": recipe.data,
        "commands": commands,
        "trained_on": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **circumstances(),
    }
    model = CodedModel.from_modules(
        name=recipe.name,
        code=recipe_code(recipe),
        backbone=backbone,
        heads={"label": head},
        encoder=encoder,
        anchors_queries=data.to_queries(images[picked]),
        metadata={"provenance": provenance},
    )
    model.metadata["metrics"] = _metrics(model, recipe, folder)
    return model


def _metrics(model: CodedModel, recipe: Recipe, folder: Path | None) -> dict[str, Any]:
    images, labels = data.load_image_set(recipe.data, "test", folder)
    return as_report(model, evaluate(model, data.to_queries(images), labels), "label", seed=0)


def _prepared(out: Path | None, recipe: Recipe, device: str) -> Path:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: torch finds no CUDA device here")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected 'cpu' or 'cuda', got {device!r}")
    out = out or Path("runs") / recipe.name
    out.mkdir(parents=True, exist_ok=True)
    return out


def _note_command(source: Path, out: Path, step: str) -> None:
    commands = {**_read_commands(source), step: command_line()}
    (out / _COMMANDS).write_text(json.dumps(commands, indent=1) + "\n")


def _read_commands(out: Path) -> dict[str, str]:
    path = out / _COMMANDS
    return dict(json.loads(path.read_text())) if path.is_file() else {}
