"""`codedinv evaluate`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from codedinv import data
from codedinv.bundle import CodedModel
from codedinv.cli.reports import as_table, full_report
from codedinv.experiments.receipts import command_line, write_receipt
from codedinv.runtimes import Runtime

_BUNDLED_NOTE = (
    "the full test set is not installed: these numbers are of the 1,000 bundled test images "
    "(apt install dataset-fashion-mnist, or --data FOLDER, for all 10,000)"
)


def run_evaluation(
    name_or_folder: str,
    folder: Path | None,
    groupings: int,
    seed: int,
    task: str | None,
    runtime: Runtime,
    as_json: bool,
    receipt: Path | None,
) -> None:
    """Evaluates a model, prints the result and writes the receipt if one is asked for."""
    console = Console(stderr=True)
    model = CodedModel.load(name_or_folder, runtime=runtime, threads=len(os.sched_getaffinity(0)))
    images, labels, note = test_set(model, folder)
    queries = data.to_queries(images)
    if queries.shape[1:] != model.input_shape:
        raise ValueError(
            f"--data: the model takes queries of shape {model.input_shape}, "
            f"the images are {queries.shape[1:]}"
        )
    if note and not as_json:
        console.print(f"Note: {note}.", style="yellow")
    start = time.monotonic()
    with console.status("evaluating") as status:
        report = full_report(
            model,
            queries,
            labels,
            task=task,
            groupings=groupings,
            seed=seed,
            progress=lambda message: status.update(message),
        )
    report |= {"note": note, "seconds": round(time.monotonic() - start, 1)}
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        Console().print(as_table(report))
    if receipt is not None:
        write_receipt(receipt, command_line(), report)


def test_set(
    model: CodedModel, folder: Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64], str | None]:
    """The test set of the model's data set, or the bundled 1,000 images and a note that says so.

    Raises:
        FileNotFoundError: a folder is given and lacks the files, or the model's data set is
            another than Fashion-MNIST and not installed.
    """
    name = (model.metadata.get("provenance") or {}).get("data_set", "fashion-mnist")
    try:
        return *data.load_image_set(name, "test", folder), None
    except FileNotFoundError:
        if folder is not None or name != "fashion-mnist":
            raise
        return *data.load_test_images(), _BUNDLED_NOTE
