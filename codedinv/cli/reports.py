"""What `codedinv evaluate` reports: as plain JSON, and as a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from codedinv.experiments.accuracy import Accuracy, Progress, evaluate, known_of
from codedinv.experiments.controls import (
    Controls,
    beaten_by,
    costs,
    measure_controls,
    price_of,
    retained_gain,
)
from codedinv.experiments.intervals import few_examples
from codedinv.model import CodedModel
from codedinv.model.manifest import GROUPED

_WAYS = {
    "arrival": "code alone, groups in order of arrival",
    "arrival + fused": "fused with the light model, in order of arrival",
    "choosing": "code alone, alike groups chosen among 16 k queries",
    "choosing + fused": "fused, alike groups chosen among 16 k queries",
    "alike": "code alone, all groups alike",
    "alike + fused": "fused, all groups alike",
}
_CONTROLS = {
    "light": "light model alone",
    "head_alone": "head alone on raw queries",
    "plain_sum": "plain sum as parity query",
    "exact_fused": "exact answers fused with the light model",
}


def full_report(
    model: CodedModel,
    queries: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    task: str | None = None,
    groupings: int = 3,
    seed: int = 0,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """Evaluates a model and its controls; arguments as for `experiments.accuracy.evaluate`."""
    progress(f"exact answers of {len(queries)} images")
    known = known_of(model, queries, task)
    accuracy = evaluate(
        model,
        queries,
        labels,
        task=task,
        groupings=groupings,
        seed=seed,
        known=known,
        progress=progress,
    )
    controls = measure_controls(
        model, queries, labels, known, accuracy, task=task, seed=seed, progress=progress
    )
    return as_report(model, accuracy, controls, task or next(iter(model.heads)), seed)


def as_report(
    model: CodedModel, accuracy: Accuracy, controls: Controls, task: str, seed: int
) -> dict[str, Any]:
    """The result as plain JSON: accuracies in percent with intervals, controls, costs in MACs."""
    macs = model.metadata["macs"]
    degraded, served = accuracy.degraded.mean, accuracy.served
    worth, over = accuracy.worth, accuracy.over_light
    cost = costs(model)
    return {
        "model": model.name,
        "scheme": model.scheme,
        "task": task,
        "n": model.code.n,
        "k": model.code.k,
        "r": model.code.r,
        "images": accuracy.images,
        "groupings": accuracy.groupings,
        "seed": seed,
        "unit": "percent",
        "A_n": accuracy.normal.mean,
        "A_d": degraded,
        "served": served,
        "agreement": accuracy.agreement.mean,
        "whole_group": accuracy.whole_group.mean,
        "retained_gain": retained_gain(over.get(served), worth),
        "workers_worth": None if worth is None else asdict(worth),
        "controls": asdict(controls),
        "beaten_by": beaten_by(degraded, served, controls, cost),
        "A_d_by_way": {
            way: {
                **asdict(estimate),
                "over_light": asdict(over[way]) if way in over else None,
                "retained_gain": retained_gain(over.get(way), worth),
                "beaten_by": beaten_by(estimate.mean, way, controls, cost),
            }
            for way, estimate in accuracy.degraded_by_way.items()
        },
        "macs_per_query": cost,
        "interval95": {
            name: [estimate.low, estimate.high]
            for name, estimate in (
                ("A_n", accuracy.normal),
                ("A_d", accuracy.degraded),
                ("agreement", accuracy.agreement),
                ("whole_group", accuracy.whole_group),
                ("light", accuracy.light),
            )
            if estimate is not None
        },
        "A_d_by_slot": accuracy.degraded_by_slot,
        "A_d_by_lost": {
            str(lost): asdict(estimate) for lost, estimate in accuracy.degraded_by_lost.items()
        },
        "encoder_over_backbone": macs["encoder"] / macs["backbone"] if "encoder" in macs else None,
        "light_over_backbone": macs["light"] / macs["backbone"] if "light" in macs else None,
    }


def as_table(report: dict[str, Any]) -> Table:
    """The report for people."""
    table = Table(title=_title(report), caption=_caption(report))
    for heading in ("", "%", "95 % interval", "MACs per query"):
        table.add_column(heading, justify="left" if not heading else "right")
    served = report["served"]
    for key, label, price in _rows(report):
        low, high = report["interval95"][key]
        table.add_row(label, *_cells(report[key], low, high), _price(report, price))
    for lost, estimate in report["A_d_by_lost"].items():
        if lost != "1" and report["scheme"] in GROUPED:
            cells = _cells(estimate["mean"], estimate["low"], estimate["high"])
            table.add_row(f"A_d with {lost} of {report['k']} lost", *cells, "")
    table.add_section()
    for way, found in report["A_d_by_way"].items():
        if way != served:
            cells = _cells(found["mean"], found["low"], found["high"])
            label = f"A_d {_WAYS[way]}{_gain(found)}{_beaten(found)}"
            table.add_row(label, *cells, _price(report, price_of(way)))
    table.add_section()
    for name, label in _CONTROLS.items():
        value = report["controls"][name]
        if value is not None:
            low, high = report["interval95"].get(name, (None, None))
            cells = (f"{value:.2f}", "") if low is None else _cells(value, low, high)
            table.add_row(f"control: {label}", *cells, _price(report, name))
    share = report["controls"]["affine_share"]
    table.add_row("control: affine share of the backbone", f"{share:.2f} of 1", "", "")
    return table


def _title(report: dict[str, Any]) -> str:
    how = "no coding groups"
    if report["scheme"] in GROUPED:
        how = (
            f"(n, k) = ({report['n']}, {report['k']}), {report['groupings']} groupings, "
            f"seed {report['seed']}"
        )
    return f"{report['model']} ({report['scheme']}): {report['images']:,} test images, {how}"


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """(key, label, what it costs) of the figures that every report has."""
    k, served, grouped = report["k"], report["served"], report["scheme"] in GROUPED
    how = ", fused with the light model" if served.endswith("fused") else ""
    lost = f"1 of {k} lost, each in turn" if grouped else "each query lost in turn"
    label = f"degraded accuracy A_d ({lost}){how}{_beaten(report)}"
    yield "A_n", "normal accuracy A_n (exact answers)", "exact"
    yield "A_d", label, price_of(served)
    yield "agreement", "agreement of degraded with exact", None
    if grouped:
        yield "whole_group", f"accuracy of a whole group that lost 1 of {k}", None


def _caption(report: dict[str, Any]) -> str:
    gain, worth, scheme = report["retained_gain"], report["workers_worth"], report["scheme"]
    lines = [
        "A_d: against the true labels. Agreement is with the exact answer, right or wrong.",
    ]
    if (warning := few_examples(report["images"])) is not None:
        lines.insert(0, warning)
    if scheme == "replication":
        lines.append("Replication: a lost query is answered by its other copy.")
    if scheme == "uncoded" and worth is not None:
        lines.append(
            "Uncoded: a lost query is sent again; here the light model answers in its place."
        )
    if scheme == "uncoded" and worth is None:
        lines.append("Uncoded: a lost query is sent again; it is answered exactly, but later.")
    if worth is not None:
        lines.append(f"What the workers add to the light model: A_n - A_light = {_signed(worth)}.")
        lines.append(
            "That is not measurably more than nothing, so there is no gain to retain."
            if gain is None
            else f"Retained gain R = (A_d - A_light) / (A_n - A_light) = {gain:.2f}."
        )
    return "\n".join(lines)


def _beaten(found: dict[str, Any]) -> str:
    beaten = ", ".join(_CONTROLS[name] for name in found["beaten_by"])
    return f" - BEATEN by: {beaten}" if beaten else ""


def _gain(found: dict[str, Any]) -> str:
    over, gain = found["over_light"], found["retained_gain"]
    parts = [] if over is None else [f"over light {_signed(over)}"]
    parts += [] if gain is None else [f"R = {gain:.2f}"]
    return f" ({', '.join(parts)})" if parts else ""


def _signed(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:+.2f} [{estimate['low']:+.2f}, {estimate['high']:+.2f}]"


def _cells(value: float, low: float, high: float) -> tuple[str, str]:
    return f"{value:.2f}", f"{low:.2f} to {high:.2f}"


def _price(report: dict[str, Any], name: str | None) -> str:
    cost = None if name is None else report["macs_per_query"][name]
    return "" if cost is None else work(cost)


def work(macs: float) -> str:
    """Multiply-accumulates for people: 1.23 M, of small networks 4.5 k or 24."""
    if macs < 1e3:
        return f"{macs:.0f}"
    return f"{macs / 1e6:.2f} M" if macs >= 1e5 else f"{macs / 1e3:.1f} k"
