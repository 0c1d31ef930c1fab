"""`codedinv.fit`: code a trained model, measure every way to serve it, keep the best."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from codedinv.data import as_examples
from codedinv.fitting.course import Course
from codedinv.fitting.parts import parts_of
from codedinv.fitting.report import Report
from codedinv.fitting.settings import Settings
from codedinv.fitting.stages import fit_classifier
from codedinv.fitting.subject import Subject, check_amounts
from codedinv.model import CodedModel
from codedinv.training.device import check_device
from codedinv.training.threads import use_threads

WORK = "work"  # folder of checkpoints below the one that a fit writes to


def fit(
    *,
    backbone: Any,
    heads: Any = None,
    train: Any,
    test: Any,
    k: int | Sequence[int] = 4,
    budget: float = 0.10,
    name: str = "fitted",
    out: str | Path | None = None,
    unavailable: float = 0.05,
    scheme: str | None = None,
    epochs: int = 0,
    light_epochs: int | None = None,
    encoder_steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    resume: bool = True,
    quiet: bool = False,
) -> CodedModel:
    """Codes a trained model: fits a light model and encoders, measures, keeps the best.

    f and g stay as they are, unless `epochs` asks for training them. Every scheme there is becomes
    a candidate, for every k; all are measured on the test examples, and the model that comes back
    is made for the cheapest that none beats measurably. That may be the advice not
    to code (`model.scheme == "uncoded"`): lost queries are then answered by the light model.
    `model.report` has the table and the reason.

    Args:
        backbone: f, a trained torch module, (B, *input) -> (B, *embedding). Or an ONNX file's
            path, which every scheme can serve that needs no gradient.
        heads: g by task, {"label": g}, (B, *embedding) -> (B, classes); the first task is the one
            that labels are of. None with an ONNX file whose result is the answer.
        train, test: `(x, y)` of arrays or tensors, a torch Dataset or DataLoader, or
            `codedinv.data.Examples`; `codedinv.data.load_data(folder)` reads both from files.
        k: sizes of coding groups to try. A group of k has one worker query more.
        budget: what the front end may spend, as a share of f's multiply-accumulates.
        name: of the model.
        out: folder for the bundle, the table, the figure and checkpoints, from which a killed fit
            goes on; None: nothing is kept.
        unavailable: share of results that do not come, at which ways are compared.
        scheme: that the best is chosen of; None: of all, replication apart.
        epochs: to train f and g first, as copies; 0: they are trained.
        light_epochs, encoder_steps: of the trainings; None: as many as the data call for.
        seed: of everything random.
        device: "cpu" or "cuda".
        threads: of torch; None: as many as there are idle cores.
        resume: False starts afresh although `out` has checkpoints.
        quiet: no progress, no table.

    Returns:
        The model, to be served; its `report` says what it is worth.

    Raises:
        TypeError: parts or data of a kind that is not known.
        ValueError: they do not fit together, or the model cannot be coded; the message says why.
    """
    settings = Settings.checked(
        k, budget, name, seed, unavailable, light_epochs, encoder_steps, scheme
    )
    if not (isinstance(epochs, int) and epochs >= 0):
        raise ValueError(f"epochs: expected an integer of 0 or more, got {epochs!r}")
    check_device(device)
    console = Console(quiet=quiet)
    if not console.is_terminal:
        console.width = max(console.width, 124)
    use_threads(threads)
    examples = as_examples(train, "train"), as_examples(test, "test")
    check_amounts(*examples, settings)
    with tempfile.TemporaryDirectory(prefix="codedinv-fit-") as scratch:
        work = Path(scratch) if out is None else Path(out) / WORK
        work.mkdir(parents=True, exist_ok=True)
        if epochs:
            backbone, heads = fit_classifier(
                backbone,
                heads,
                *examples,
                epochs,
                settings,
                work / "model",
                device,
                resume,
                console,
            )
        subject = Subject.checked(parts_of(backbone, heads), *examples, settings, device)
        model, report = Course(subject, settings, work, resume, console).run()
    model.report = report
    console.print(report.table())
    console.print(report.why, highlight=False)
    if out is not None:
        _write(model, report, Path(out), console)
    return model


def _write(model: CodedModel, report: Report, out: Path, console: Console) -> None:
    """The bundle, the report as JSON and text, and the figure."""
    model.save(out / "bundle")
    (out / "report.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    report.figure(out / "frontier.png")
    console.print(f"wrote {out / 'bundle'}, report.json and frontier.png", highlight=False)
