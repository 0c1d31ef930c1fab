"""`codedinv export ...`."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from codedinv.model import CodedModel
from codedinv.model.folder import file_sizes
from codedinv.triton_repo import Backend, write_repository


def run_export(name_or_folder: str, out: Path, shared_weights: bool, as_json: bool) -> None:
    """Writes a bundle anew: every network exported from torch and checked, where the bundle says
    how torch modules are rebuilt; else its ONNX graphs as they are."""
    model = CodedModel.load(name_or_folder)
    folder = model.save(out, shared_weights)
    sizes, onnx = file_sizes(folder), model.metadata["onnx"]
    if as_json:
        print(json.dumps({"folder": str(folder), "files": sizes, "onnx": onnx}, indent=1))
        return
    table = Table(title=f"{model.name} in {folder}")
    table.add_column("file")
    table.add_column("MB", justify="right")
    table.add_column("largest difference from torch, of the largest output", justify="right")
    for name, size in sizes.items():
        error = onnx.get("relative_error", {}).get(name)
        table.add_row(name, f"{size / 1e6:.3f}", "" if error is None else f"{error:.1e}")
    Console().print(table)


def run_triton_export(
    name_or_folder: str,
    out: Path,
    backend: Backend,
    name: str | None,
    version: int,
    threads: int,
    as_json: bool,
) -> None:
    """Adds a model's backbone to a Triton model repository."""
    model = CodedModel.load(name_or_folder)
    folder = write_repository(
        model, out, backend=backend, name=name, version=version, threads=threads
    )
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if as_json:
        print(json.dumps({"folder": str(folder), "files": files}, indent=1))
        return
    print(f"{folder}: {', '.join(files)}")
    print(f"tritonserver --model-repository {out}")
