"""`codedinv train classifier`, `codedinv train light` and `codedinv train encoder`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from torch import nn

from codedinv.cli.reports import as_table, full_report
from codedinv.experiments.fusing import fit_fusion
from codedinv.experiments.images import learnt_data
from codedinv.experiments.receipts import circumstances, command_line
from codedinv.model import CodedModel, bundled_names
from codedinv.model.calibration import save_consistency
from codedinv.nn import Backbone
from codedinv.training.classifier import (
    build_classifier,
    fit_classifier,
    fit_head_alone,
    load_classifier,
)
from codedinv.training.device import check_device
from codedinv.training.encoder import fit_encoder, recipe_code
from codedinv.training.learnt import check_group_fits, load_training_queries, recipe_examples
from codedinv.training.light import fit_light, load_light
from codedinv.training.recipe import Recipe, load_recipe
from codedinv.training.threads import use_threads
from codedinv.verification.calibrate import calibrate

# The training commands of a bundle, in order; kept in its provenance.
_COMMANDS = "commands.json"
_HEAD_ALONE = "head-alone.json"
# Of the training images, shared by the light model and the encoders of one classifier.
_EMBEDDINGS = "embeddings.pt"


@dataclass(frozen=True)
class _Job:
    """One training command: its recipe, where it reads and writes, on what it runs."""

    recipe: Recipe
    folder: Path | None
    out: Path
    trained: Path
    device: str
    resume: bool

    @classmethod
    def prepared(
        cls,
        recipe_name: str,
        folder: Path | None,
        out: Path | None,
        classifier: Path | None,
        device: str,
        threads: int | None,
        resume: bool,
    ) -> _Job:
        use_threads(threads)
        check_device(device)
        recipe = load_recipe(recipe_name)
        out = out or Path("runs") / recipe.name
        out.mkdir(parents=True, exist_ok=True)
        return cls(recipe, folder, out, classifier or out, device, resume)

    def note_command(self, step: str) -> None:
        commands = {**self.commands(self.trained), **self.commands(self.out)}
        commands[step] = command_line()
        (self.out / _COMMANDS).write_text(json.dumps(commands, indent=1) + "\n")

    def commands(self, folder: Path) -> dict[str, str]:
        path = folder / _COMMANDS
        if folder == self.trained and (bundle := self.bundle()) is not None:
            return dict(bundle.metadata.get("provenance", {}).get("commands", {}))
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def classifier(self, recipe_name: str) -> tuple[Backbone, nn.Module]:
        """The trained classifier.

        Raises:
            ValueError: it has not been trained, or by a recipe with another network.
        """
        path = self.trained / "classifier.pt"
        if (bundle := self.bundle()) is not None:
            return self._bundled(bundle)
        if not path.is_file():
            raise ValueError(
                f"--classifier: {path} is missing; train it first: "
                f"codedinv train classifier --recipe {recipe_name} --out {path.parent}"
            )
        try:
            return load_classifier(self.recipe, path)
        except RuntimeError as error:
            raise ValueError(f"{path} was trained by a recipe with another network") from error

    def bundle(self) -> CodedModel | None:
        """The bundle that --classifier names, if it names one."""
        is_name = self.trained != self.out and str(self.trained) in bundled_names()
        if not is_name and not (self.trained / "bundle.json").is_file():
            return None
        return CodedModel.load(str(self.trained), runtime="torch")

    @property
    def embeddings(self) -> Path:
        """The cache of what the backbone makes of the training images."""
        return (self.out if self.bundle() is not None else self.trained) / _EMBEDDINGS

    def _bundled(self, bundle: CodedModel) -> tuple[Backbone, nn.Module]:
        backbone, heads = bundle.modules.backbone, bundle.modules.heads
        own: Any = build_classifier(self.recipe)[0]
        if getattr(backbone, "config", None) != own.config or list(heads) != ["label"]:
            raise ValueError(f"--classifier: {bundle.name} has another network than the recipe")
        return cast(Backbone, backbone), heads["label"]


def run_classifier(
    recipe_name: str,
    folder: Path | None,
    out: Path | None,
    device: str,
    threads: int | None,
    resume: bool,
) -> None:
    """Trains backbone and head of a recipe, and the head alone as their control."""
    job = _Job.prepared(recipe_name, folder, out, None, device, threads, resume)
    job.note_command("classifier")
    fit_classifier(job.recipe, job.out, folder, device, resume)
    _train_head_alone(job)
    Console().print(f"wrote {job.out / 'classifier.pt'}", highlight=False)


def run_light(
    recipe_name: str,
    folder: Path | None,
    out: Path | None,
    classifier: Path | None,
    device: str,
    threads: int | None,
    resume: bool,
) -> None:
    """Trains the light model of a recipe; a guided one is complete then, and becomes a bundle.

    Raises:
        ValueError: the recipe has no [light], its classifier has not been trained, or there are too
            few examples for a group.
    """
    job = _Job.prepared(recipe_name, folder, out, classifier, device, threads, resume)
    if job.recipe.scheme == "guided":
        check_group_fits(job.recipe, job.folder)
    backbone, head = job.classifier(recipe_name)
    job.note_command("light")
    light = _light_of(job, backbone, head)
    if job.recipe.scheme == "guided":
        _write_bundle(job, make_model(job, backbone, head, None, light))
    elif light is None:
        raise ValueError(f"--recipe: {recipe_name} has no [light], so there is nothing to train")
    else:
        Console().print(f"wrote {job.trained / 'light.pt'}", highlight=False)


def run_encoder(
    recipe_name: str,
    folder: Path | None,
    out: Path | None,
    classifier: Path | None,
    device: str,
    threads: int | None,
    resume: bool,
) -> None:
    """Trains the encoder of a recipe, evaluates the model and writes its bundle.

    Raises:
        ValueError: the classifier has not been trained, or by another recipe; the recipe is for a
            scheme without an encoder; or there are too few examples for a group.
    """
    job = _Job.prepared(recipe_name, folder, out, classifier, device, threads, resume)
    if job.recipe.scheme == "guided":
        raise ValueError(
            f"--recipe: {recipe_name} is guided and has no encoder; its bundle is written by: "
            f"codedinv train light --recipe {recipe_name}"
        )
    check_group_fits(job.recipe, job.folder)
    backbone, head = job.classifier(recipe_name)
    job.note_command("encoder")
    light = _light_of(job, backbone, head)
    encoder = fit_encoder(
        job.recipe, backbone, head, job.out, folder, device, resume, light, job.embeddings
    )
    _write_bundle(job, make_model(job, backbone, head, encoder, light))


def make_model(
    job: _Job,
    backbone: nn.Module,
    head: nn.Module,
    encoder: nn.Module | None,
    light: nn.Module | None,
) -> CodedModel:
    """A model of trained networks, with anchors from the training set, fusion and provenance."""
    recipe = job.recipe
    learnt, held_out = load_training_queries(recipe, job.folder)
    count = min(len(learnt), max(recipe.anchors, recipe.encoder.k - 1))
    picked = torch.from_numpy(
        np.random.default_rng(recipe.seed).choice(len(learnt), count, replace=False)
    )
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        **learnt_data(recipe.data, job.folder, int(learnt.labels.max()) + 1),
        "commands": job.commands(job.out),
        "trained_on": torch.cuda.get_device_name() if job.device == "cuda" else "cpu",
        **circumstances(),
    }
    parts: dict[str, Any] = {
        "name": recipe.name,
        "code": recipe_code(recipe),
        "backbone": backbone,
        "heads": {"label": head},
        "encoder": encoder,
        "anchors_queries": learnt.queries(picked),
        "metadata": {"provenance": provenance, "controls": {"head_alone": _head_alone_of(job)}},
        "light": light,
        "scheme": recipe.scheme,
        "input_range": recipe_examples(recipe, job.folder, "test").input_range,
    }
    model = CodedModel.from_modules(**parts)
    fusible = encoder is not None and light is not None and recipe.encoder.r == 1
    if not fusible or len(held_out) < recipe.encoder.k:
        return model
    fusion = fit_fusion(model, held_out.queries().numpy(), held_out.labels.numpy(), recipe.seed)
    return CodedModel.from_modules(**parts, fusion=fusion.weights)


def _write_bundle(job: _Job, model: CodedModel) -> None:
    """Evaluates the model on the test set and writes it."""
    test = recipe_examples(job.recipe, job.folder, "test")
    report = full_report(model, test.queries(), test.labels, seed=0)
    model.metadata["metrics"] = report
    model.save(job.out / "bundle")
    console = Console()
    if model.scheme != "guided":
        _calibrate(job, model, console)
    console.print(as_table(report))
    console.print(f"wrote {job.out / 'bundle'}", highlight=False)


def _calibrate(job: _Job, model: CodedModel, console: Console) -> None:
    """Adds to the bundle what wrong results are found by."""
    queries = recipe_examples(job.recipe, job.folder, "train").queries()
    check, found = calibrate(model, queries)
    if found.holds:
        save_consistency(job.out / "bundle", check, found.to_dict())
    else:
        console.print(f"not calibrated (see `codedinv calibrate`): {found}", highlight=False)


def _light_of(job: _Job, backbone: Backbone, head: nn.Module) -> nn.Module | None:
    """The classifier's light model, trained beside it if it is not there; None without [light]."""
    if job.recipe.light is None:
        return None
    if (bundle := job.bundle()) is not None:
        return bundle.modules.light
    path = job.trained / "light.pt"
    if not path.is_file():
        fit_light(
            job.recipe,
            backbone,
            head,
            job.trained,
            job.folder,
            job.device,
            job.resume,
            job.embeddings,
        )
    learnt, _ = load_training_queries(job.recipe, job.folder)
    try:
        return load_light(job.recipe, backbone, path, learnt)
    except RuntimeError as error:
        raise ValueError(f"{path} was trained by a recipe with another budget") from error


def _train_head_alone(job: _Job) -> None:
    reached, work = fit_head_alone(
        job.recipe, job.out / "head-alone", job.folder, job.device, job.resume
    )
    record = {"A_n": reached, "macs": work}
    (job.out / _HEAD_ALONE).write_text(json.dumps(record, indent=1) + "\n")


def _head_alone_of(job: _Job) -> dict[str, Any] | None:
    if (bundle := job.bundle()) is not None:
        return cast("dict[str, Any] | None", bundle.metadata["controls"].get("head_alone"))
    path = job.trained / _HEAD_ALONE
    return dict(json.loads(path.read_text())) if path.is_file() else None
