"""`codedinv evaluate`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from rich.console import Console

from codedinv.cli.reports import as_table, full_report
from codedinv.experiments.images import load_test_images
from codedinv.experiments.receipts import command_line, write_receipt
from codedinv.model import CodedModel
from codedinv.model.runtimes import Runtime


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
    test = load_test_images(model, folder)
    if test.note and not as_json:
        console.print(f"Note: {test.note}.", style="yellow")
    start = time.monotonic()
    with console.status("evaluating") as status:
        report = full_report(
            model,
            test.queries,
            test.labels,
            task=task,
            groupings=groupings,
            seed=seed,
            progress=lambda message: status.update(message),
        )
    report |= {"note": test.note, "seconds": round(time.monotonic() - start, 1)}
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        Console().print(as_table(report))
    if receipt is not None:
        write_receipt(receipt, command_line(), report)
