"""`codedinv evaluate`."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from codedinv import data
from codedinv.bundle import CodedModel
from codedinv.experiments.accuracy import Accuracy, evaluate
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
        accuracy = evaluate(
            model,
            queries,
            labels,
            task=task,
            groupings=groupings,
            seed=seed,
            progress=lambda message: status.update(message),
        )
    report = as_report(model, accuracy, task or next(iter(model.heads)), seed)
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


def as_report(model: CodedModel, accuracy: Accuracy, task: str, seed: int) -> dict[str, Any]:
    """The result as plain JSON: A_n, A_d, agreement and whole_group in percent, with intervals."""
    return {
        "model": model.name,
        "task": task,
        "n": model.code.n,
        "k": model.code.k,
        "r": model.code.r,
        "images": accuracy.images,
        "groupings": accuracy.groupings,
        "seed": seed,
        "unit": "percent",
        "A_n": accuracy.normal.mean,
        "A_d": accuracy.degraded.mean,
        "agreement": accuracy.agreement.mean,
        "whole_group": accuracy.whole_group.mean,
        "interval95": {
            name: [estimate.low, estimate.high]
            for name, estimate in (
                ("A_n", accuracy.normal),
                ("A_d", accuracy.degraded),
                ("agreement", accuracy.agreement),
                ("whole_group", accuracy.whole_group),
            )
        },
        "A_d_by_slot": accuracy.degraded_by_slot,
        "A_d_by_lost": {
            str(lost): asdict(estimate) for lost, estimate in accuracy.degraded_by_lost.items()
        },
        "encoder_over_backbone": model.metadata["macs"]["encoder"]
        / model.metadata["macs"]["backbone"],
    }


def as_table(report: dict[str, Any]) -> Table:
    """The report for people."""
    k = report["k"]
    table = Table(
        title=f"{report['model']}: {report['images']:,} test images, (n, k) = ({report['n']}, {k})"
        f", {report['groupings']} groupings, seed {report['seed']}",
        caption="A_d: against the true labels. Agreement is with the exact answer, right or wrong.",
    )
    for heading in ("", "%", "95 % interval"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {
        "A_n": "normal accuracy A_n (exact answers)",
        "A_d": f"degraded accuracy A_d (1 of {k} lost, each slot in turn)",
        "agreement": "agreement of reconstructed with exact",
        "whole_group": f"accuracy of a whole group that lost 1 of {k}",
    }
    for key, label in rows.items():
        low, high = report["interval95"][key]
        table.add_row(label, f"{report[key]:.2f}", f"{low:.2f} to {high:.2f}")
    for lost, estimate in report["A_d_by_lost"].items():
        if lost != "1":
            table.add_row(
                f"A_d with {lost} of {k} lost",
                f"{estimate['mean']:.2f}",
                f"{estimate['low']:.2f} to {estimate['high']:.2f}",
            )
    return table
