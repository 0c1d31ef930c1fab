"""The figures of what a degraded answer is worth, from receipts and bundled models.

    python benchmarks/figures.py [--data FOLDER] [--from-receipts]

- docs/figures/choice.png: A_d against how many queries there are to choose from. Measured
  here; its numbers go to benchmarks/receipts/choice.json, from which it is drawn again by
  `--from-receipts`.
- docs/figures/frontier.png: A_n against A_d for each k, with every control as a point of its own.
- docs/figures/unavailability.png: accuracy of all answers against the share of lost results,
  losses independent of each other.

The latter two are drawn from benchmarks/receipts/accuracy-*.json, where these are of more than one
backbone: one alone is no frontier.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from codedinv import CodedModel
from codedinv.data import load_fashion_mnist, to_queries
from codedinv.experiments.accuracy import known_of
from codedinv.experiments.degraded import Known, degraded_answers
from codedinv.experiments.groupings import alike_groups
from codedinv.experiments.receipts import write_receipt
from codedinv.experiments.tables import accuracy_receipts
from codedinv.model import bundled_names

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
TIMES_K = (1, 2, 4, 8, 16, 32, 64)
COLOURS = {2: "#0072B2", 4: "#D55E00", 10: "#009E73"}
FLOOR = 84.0  # percent; what lies below is drawn at the lower edge, with its value
MARKS = {
    "served": ("o", "as served"),
    "alone": ("D", "code alone"),
    "light": ("^", "light model alone"),
    "head_alone": ("s", "head alone"),
    "plain_sum": ("x", "plain sum"),
}
SCHEMES = {"guided": "#009E73", "invertible": "#0072B2", "worker-encoded": "#CC79A7"}
SHIFTS = {"served": 0.0, "alone": 0.0, "light": -0.12, "head_alone": 0.12, "plain_sum": -0.12}


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


def measure_choice(data: Path | None) -> dict[str, dict[str, Any]]:
    """`choice_of` the bundled models that are encoded at the front end."""
    images, labels = load_fashion_mnist("test", data)
    queries = to_queries(images)
    models = [CodedModel.load(name) for name in bundled_names()]
    return {
        model.name: choice_of(model, queries, labels)
        for model in models
        if model.scheme == "invertible" and model.fusion is not None
    }


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
    """A panel for each k: degraded against normal accuracy of its models and their controls."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ks = sorted({result["k"] for result in results})
    figure, panels = plt.subplots(
        1, len(ks), figsize=(9.0, 3.6), sharex=True, sharey=True, layout="constrained"
    )
    for k, axis in zip(ks, panels, strict=True):
        axis.set_title(f"k = {k}", fontsize=10)
        axis.set_xlabel("normal accuracy A_n, %")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        for result in (r for r in results if r["k"] == k):
            _draw_points(axis, result)
    panels[0].set_ylabel("degraded accuracy, %")
    panels[0].set_xlim(91.4, 95.2)
    panels[0].set_ylim(FLOOR - 0.6, 95.2)
    for axis in panels:
        axis.plot([0, 100], [0, 100], color="0.7", lw=0.8, zorder=0, scalex=False, scaley=False)
    marks = [
        plt.Line2D([], [], marker=mark, ls="", color="0.3", label=label)
        for mark, label in MARKS.values()
    ]
    colours = [
        plt.Line2D([], [], marker="o", ls="", color=colour, label=scheme)
        for scheme, colour in SCHEMES.items()
    ]
    figure.legend(handles=[*colours, *marks], loc="outside lower center", ncols=4, frameon=False,
                  fontsize=8)  # fmt: skip
    figure.savefig(path, dpi=140)


def _draw_points(axis: Any, result: dict[str, Any]) -> None:
    points = {"served": result["A_d"], **result["controls"]}
    if result["scheme"] != "guided":
        points["alone"] = result["A_d_by_way"]["arrival"]["mean"]
    colour = SCHEMES[result["scheme"]]
    for name, (mark, _) in MARKS.items():
        value = points.get(name)
        if value is None:
            continue
        x, below = result["A_n"] + SHIFTS[name], value < FLOOR
        if below and name == "alone" and result["scheme"] == "worker-encoded":
            x += 0.45  # or its value would lie on that of the lighter encoder
        axis.plot(x, FLOOR - 0.3 if below else value, mark, color=colour, ms=6, alpha=0.85)
        if below:
            side = -1 if SHIFTS[name] < 0 else 1
            axis.annotate(
                f"{value:.0f}", (x, FLOOR - 0.3), xytext=(5 * side, 0), fontsize=7, va="center",
                ha="left" if side > 0 else "right", textcoords="offset points",
            )  # fmt: skip


def overall_accuracy(result: dict[str, Any], lost: np.ndarray) -> np.ndarray:
    """A_o in percent, where each result is lost with probability `lost`, one as likely as another.

    A lost query of a coded group is decoded if all other k results arrive; a guided one is
    answered as A_d says if its group's copy arrives. Else the light model answers.
    """
    arrive = (1 - lost) ** (1 if result["scheme"] == "guided" else result["k"])
    degraded = arrive * result["A_d"] + (1 - arrive) * result["controls"]["light"]
    overall: np.ndarray = (1 - lost) * result["A_n"] + lost * degraded
    return overall


def draw_unavailability(results: list[dict[str, Any]], path: Path) -> None:
    figure, axis = _axes("share of results that are lost, %", "accuracy of all answers A_o, %")
    lost = np.linspace(0, 0.2, 50)
    for result in results:
        style = {"guided": "-", "invertible": "--", "worker-encoded": "-."}[result["scheme"]]
        label = f"{result['scheme']}, k = {result['k']}"
        overall = overall_accuracy(result, lost)
        axis.plot(100 * lost, overall, style, color=COLOURS[result["k"]], label=label)
    for scheme in ("guided", "invertible"):
        result = next(r for r in results if r["scheme"] == scheme)
        overall = (1 - lost) * result["A_n"] + lost * result["controls"]["light"]
        label = "no redundancy, light model" if scheme == "guided" else None
        axis.plot(100 * lost, overall, ":", color="0.4", label=label)
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
    parser.add_argument("--from-receipts", action="store_true", help="draw, and measure nothing")
    options = parser.parse_args()
    receipts = ROOT / "benchmarks" / "receipts"
    if not options.from_receipts:
        found = measure_choice(options.data)
        write_receipt(receipts / "choice.json", "python benchmarks/figures.py", found)
    draw_choice(
        json.loads((receipts / "choice.json").read_text())["result"], FIGURES / "choice.png"
    )
    results = [receipt["result"] for receipt in accuracy_receipts(receipts)]
    if len({result["scheme"] for result in results}) > 1:
        draw_frontier(results, FIGURES / "frontier.png")
        draw_unavailability(results, FIGURES / "unavailability.png")


if __name__ == "__main__":
    main()
