"""`codedinv calibrate`."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.console import Console

from codedinv.errors import CodedInvError
from codedinv.experiments.images import load_examples
from codedinv.model import CodedModel
from codedinv.model.calibration import save_consistency
from codedinv.model.manifest import CONSISTENCY, ENCODED
from codedinv.model.runtimes import Runtime
from codedinv.verification.calibrate import calibrate


def run_calibration(
    name_or_folder: str,
    folder: Path | None,
    groups: int,
    rate: float,
    seed: int,
    runtime: Runtime,
    as_json: bool,
) -> None:
    """Calibrates a bundle in place and prints what came of it.

    Raises:
        ValueError: it has no encoder.
        CodedInvError: far more false alarms than were aimed at.
    """
    console = Console(stderr=True)
    model = CodedModel.load(name_or_folder, runtime=runtime, threads=len(os.sched_getaffinity(0)))
    if model.scheme not in ENCODED and "encoder" not in model.metadata["macs"]:
        raise ValueError(
            f"{model.name!r} is {model.scheme} and has no encoder: only groups with parities can "
            "be calibrated, by which wrong results are found"
        )
    queries = load_examples(model, "train", folder).queries()
    with console.status("calibrating") as status:
        check, found = calibrate(
            model,
            queries,
            groups=groups,
            rate=rate,
            seed=seed,
            progress=status.update,
        )
    if not found.holds:
        raise CodedInvError(
            f"{found.false_alarms} false alarms in {found.checked} clean groups of other queries, "
            f"where {rate:g} of them were aimed at; calibrate on more queries. Nothing was written"
        )
    if model.folder is None:
        raise ValueError("model: expected one that was loaded from a folder")
    save_consistency(model.folder, check, found.to_dict())
    path = model.folder / CONSISTENCY
    if as_json:
        print(json.dumps({"file": str(path), **found.to_dict()}, indent=1))
    else:
        Console().print(
            f"wrote {path}: fitted on {found.groups:,} clean groups; {found.false_alarms} false "
            f"alarms in {found.checked:,} groups of other queries",
            highlight=False,
        )
