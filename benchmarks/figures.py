"""The figures of what a degraded answer is worth, from receipts and bundled models.

    python benchmarks/figures.py [--data FOLDER]

- docs/figures/choice.png: A_d against how many queries there are to choose from. Measured
  here; its numbers go to benchmarks/receipts/choice.json.
- docs/figures/frontier.png: A_n against A_d for each k, with every control as a point of its own.
- docs/figures/unavailability.png: accuracy of all answers against the share of lost results.

The latter two are drawn from benchmarks/receipts/accuracy-*.json, where these are of more than one
backbone: one alone is no frontier.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from codedinv import CodedModel
from codedinv.bundle import bundled_names
from codedinv.data import load_fashion_mnist, to_queries
from codedinv.experiments.accuracy import known_of
from codedinv.experiments.degraded import Known, degraded_answers
from codedinv.experiments.groupings import alike_groups
from codedinv.experiments.receipts import write_receipt
from codedinv.experiments.tables import accuracy_receipts

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
TIMES_K = (1, 2, 4, 8, 16, 32, 64)
COLOURS = {2: "#0072B2", 4: "#D55E00", 10: "#009E73"}
MARKS = {"A_d": "o", "fused": "D", "light": "^", "head_alone": "s", "plain_sum": "x"}
LABELS = {
    "A_d": "A_d of the scheme",
    "fused": "A_d fused",
    "light": "light model alone",
    "head_alone": "head alone",
    "plain_sum": "plain sum",
}


def choice_of(model: CodedModel, queries: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """A_d, alone and fused, for each number of queries to choose from; one random arrival order."""
    k = model.code.k
    known = known_of(model, queries)
    if known.light is None:
        raise ValueError(f"{model.name}: choosing alike queries needs a light model")
    order = np.random.default_rng(0).permutation(len(queries))
    among = [k * times for times in TIMES_K] + [len(queries) // k * k]
    rows = []
    for count in among:
        groups = alike_groups(order, known.light.argmax(1), k, count)
        kind = "arrival" if count == k else "choosing"
        rows.append(_accuracies(model, queries, labels, known, groups, kind))
    return {"k": k, "among": among, "alone": [r[0] for r in rows], "fused": [r[1] for r in rows]}


def _accuracies(
    model: CodedModel,
    queries: np.ndarray,
    labels: np.ndarray,
    known: Known,
    groups: np.ndarray,
    kind: str,
) -> tuple[float, float]:
    alone, fused = [], []
    for lost, answers in degraded_answers(model, queries, known, groups, kind, None):
        truth = labels[groups[:, lost]]
        alone.append(answers[kind] == truth)
        fused.append(answers[f"{kind} + fused"] == truth)
    return 100 * float(np.mean(alone)), 100 * float(np.mean(fused))


def draw_choice(found: dict[str, dict[str, Any]], path: Path) -> None:
    figure, axis = _axes("queries to choose from", "A_d, %")
    for result in sorted(found.values(), key=lambda result: result["k"]):
        k = result["k"]
        axis.plot(result["among"], result["alone"], "o-", color=COLOURS[k], label=f"k = {k}, code")
        axis.plot(result["among"], result["fused"], "D:", color=COLOURS[k], label=f"k = {k}, fused")
    axis.set_xscale("log")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


def draw_frontier(results: list[dict[str, Any]], path: Path) -> None:
    figure, axis = _axes("normal accuracy A_n, %", "degraded accuracy, %")
    named: set[str] = set()
    for result in results:
        points = {"A_d": result["A_d"], **result["controls"]}
        fused = result["A_d_by_way"].get("arrival + fused")
        points["fused"] = None if fused is None else fused["mean"]
        for name, mark in MARKS.items():
            if points.get(name) is None:
                continue
            label = None if name in named else LABELS[name]
            named.add(name)
            colour = COLOURS[result["k"]]
            axis.plot(result["A_n"], points[name], mark, color=colour, label=label, ms=7)
        axis.annotate(
            f"{result['scheme']}, k = {result['k']}", (result["A_n"], result["A_d"]),
            textcoords="offset points", xytext=(9, -3), fontsize=7,
        )  # fmt: skip
    low, high = axis.get_xlim()
    axis.plot([low, high], [low, high], color="0.7", lw=0.8, zorder=0)
    axis.set_xlim(low, high + 0.5 * (high - low))
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


def draw_unavailability(results: list[dict[str, Any]], path: Path) -> None:
    figure, axis = _axes("share of results that are lost, %", "accuracy of all answers A_o, %")
    lost = np.linspace(0, 0.2, 50)
    for result in results:
        style = "-" if result["scheme"] == "guided" else "--"
        label = f"{result['scheme']}, k = {result['k']}"
        overall = (1 - lost) * result["A_n"] + lost * result["A_d"]
        axis.plot(100 * lost, overall, style, color=COLOURS[result["k"]], label=label)
    guided = [r for r in results if r["scheme"] == "guided"]
    for result in guided[:1]:
        overall = (1 - lost) * result["A_n"] + lost * result["controls"]["light"]
        axis.plot(100 * lost, overall, ":", color="0.4", label="no redundancy, light model")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


def _axes(x: str, y: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the Fashion-MNIST IDX files")
    images, labels = load_fashion_mnist("test", parser.parse_args().data)
    queries = to_queries(images)
    models = [CodedModel.load(name) for name in bundled_names()]
    found = {
        model.name: choice_of(model, queries, labels)
        for model in models
        if model.scheme == "invertible" and model.fusion is not None
    }
    receipts = ROOT / "benchmarks" / "receipts"
    write_receipt(receipts / "choice.json", "python benchmarks/figures.py", found)
    draw_choice(found, FIGURES / "choice.png")
    results = [receipt["result"] for receipt in accuracy_receipts(receipts)]
    if len({result["scheme"] for result in results}) > 1:
        draw_frontier(results, FIGURES / "frontier.png")
        draw_unavailability(results, FIGURES / "unavailability.png")


if __name__ == "__main__":
    main()
