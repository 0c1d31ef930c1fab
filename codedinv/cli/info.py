"""`codedinv info`."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from codedinv.cli.reports import work
from codedinv.model import CodedModel, bundled_names
from codedinv.model.folder import file_sizes
from codedinv.model.manifest import GROUPED, SCHEMA_VERSION


def show_info(name_or_folder: str | None, as_json: bool) -> None:
    """Prints a model's description, or the bundled names where none is given."""
    if name_or_folder is None:
        names = bundled_names()
        print(json.dumps({"bundled": names}) if as_json else "\n".join(names))
        return
    description = describe(CodedModel.load(name_or_folder))
    if as_json:
        print(json.dumps(description, indent=1))
    else:
        _print_tables(description)


def describe(model: CodedModel) -> dict[str, Any]:
    """What `codedinv info --json` prints."""
    if model.folder is None:
        raise ValueError("model: expected one that was loaded or saved")
    sizes = file_sizes(model.folder)
    macs = model.metadata["macs"]
    share = macs["encoder"] / macs["backbone"] if "encoder" in macs else None
    return {
        "name": model.name,
        "folder": str(model.folder),
        "schema_version": SCHEMA_VERSION,
        "code": {
            "n": model.code.n,
            "k": model.code.k,
            "r": model.code.r,
            "coefficients": model.code.coefficients.tolist(),
            "condition_number": model.code.condition_number(),
        },
        "scheme": model.scheme,
        "default_scheme": model.default_scheme,
        "objection": model.worth.objection,
        "fusion": None if model.fusion is None else dict(model.fusion.weights),
        "input_shape": list(model.input_shape),
        "embedding_shape": list(model.embedding_shape),
        "tasks": model.tasks,
        "anchors": len(model.anchors.queries),
        "macs": macs,
        "encoder_over_backbone": share,
        "encoder_over_backbone_per_query": None if share is None else share / model.code.k,
        "light_over_backbone": macs["light"] / macs["backbone"] if "light" in macs else None,
        "parameters": model.metadata["parameters"],
        "largest_sigma": largest_sigma(model),
        "certificates": model.metadata.get("certificates"),
        "metrics": model.metadata.get("metrics"),
        "provenance": model.metadata.get("provenance"),
        "onnx": model.metadata.get("onnx"),
        "files": sizes,
        "bytes": sum(sizes.values()),
    }


def largest_sigma(model: CodedModel) -> float | None:
    """The largest certified operator norm of the backbone's convolutions; None if none are."""
    certificates = model.metadata.get("certificates")
    if not certificates:
        return None
    return float(max(proof["sigma"] for block in certificates for proof in block.values()))


def _print_tables(description: dict[str, Any]) -> None:
    code, macs = description["code"], description["macs"]
    k = code["k"]
    table = Table(title=f"{description['name']}  ({description['folder']})", show_header=False)
    scheme, default = description["scheme"], description["default_scheme"]
    if default != scheme:
        scheme += f"; a server takes {default!r} unless told, for {description['objection']}"
    table.add_row("scheme", scheme)
    grouped = description["scheme"] in GROUPED
    table.add_row("code", f"n = {code['n']}, k = {k}, r = {code['r']}" if grouped else "none")
    table.add_row("query", _shape(description["input_shape"]))
    table.add_row("embedding", _shape(description["embedding_shape"]))
    tasks = ", ".join(
        f"{task} ({outputs} outputs)" for task, outputs in description["tasks"].items()
    )
    table.add_row("tasks", tasks)
    table.add_row("backbone F", f"{work(macs['backbone'])} MACs per query")
    if "encoder" in macs:
        table.add_row(
            "encoder E_k",
            f"{work(macs['encoder'])} MACs per group of {k}: "
            f"E_k/F = {description['encoder_over_backbone']:.1%}, "
            f"E_k/(k F) = {description['encoder_over_backbone_per_query']:.1%} per query",
        )
    if "light" in macs:
        table.add_row(
            "light model",
            f"{work(macs['light'])} MACs per query: {description['light_over_backbone']:.1%} of F",
        )
    for task, count in macs["head"].items():
        table.add_row(f"head {task}", f"{work(count)} MACs per answer")
    parameters = description["parameters"]
    table.add_row(
        "parameters",
        ", ".join(
            f"{part} {parameters[part]:,}"
            for part in ("backbone", "encoder", "light")
            if part in parameters
        )
        + "".join(f", head {task} {count:,}" for task, count in parameters["head"].items()),
    )
    if description["largest_sigma"] is not None:
        sigma = f"every convolution's operator norm <= {description['largest_sigma']:.4f}"
        table.add_row("invertibility", f"{sigma} (certified)")
    for key, value in (description["metrics"] or {}).items():
        if isinstance(value, float):
            table.add_row(f"metrics: {key}", f"{value:.2f}")
    for key, value in (description["provenance"] or {}).items():
        table.add_row(f"provenance: {key}", _on_one_line(value))
    for name, size in description["files"].items():
        table.add_row(f"file {name}", f"{size / 1e6:.3f} MB")
    Console().print(table)


def _on_one_line(value: Any) -> str:
    """A value's scalars; what is nested deeper is left to --json."""
    if not isinstance(value, dict):
        return str(value)
    shown = [f"{key}: {inner}" for key, inner in value.items() if not isinstance(inner, dict)]
    return ", ".join(shown) + (" ... (--json)" if len(shown) < len(value) else "")


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape)) + " float32"
