"""The two figures of the demo: latencies of coded and uncoded serving, and what is recovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from codedinv.bundle import CodedModel

matplotlib.use("Agg")  # no display is needed, nor is a backend looked for

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's palette: told apart with every common colour blindness, and in grey.
BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Run:
    """Latencies of one run of traffic, in the order of arrival.

    Attributes:
        label: for the legend.
        arrivals_s: (N,) scheduled, from the start.
        latencies_s: (N,) from the scheduled arrival; of answered queries only.
    """

    label: str
    arrivals_s: NDArray[np.float64]
    latencies_s: NDArray[np.float64]


def latency_figure(path: Path, runs: Sequence[Run], events: Mapping[str, float]) -> None:
    """Draws the share of queries slower than t, and every query's latency over the run.

    Args:
        path: of the PNG.
        runs: at most two.
        events: what was done to the workers -> when, in seconds from the start.
    """
    with plt.rc_context(_STYLE):
        figure, (tail, course) = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
        # The first run goes on top and in the colour that stands out.
        styles = [(BLUE, "-", "o"), (VERMILLION, "--", "^")]
        for run, (colour, line, marker) in reversed(list(zip(runs, styles, strict=False))):
            _draw_tail(tail, run, colour, line)
            course.plot(
                run.arrivals_s, 1e3 * run.latencies_s, marker, color=colour, markersize=2.2,
                markeredgewidth=0, alpha=0.6, label=run.label,
            )  # fmt: skip
        tail.set(
            xscale="log", yscale="log",
            xlabel="latency t (ms)", ylabel="share of queries slower than t",
        )  # fmt: skip
        tail.set_ylim(top=1.3)
        percent = matplotlib.ticker.FuncFormatter(lambda share, _: f"{100 * share:g} %")
        tail.yaxis.set_major_formatter(percent)
        for share, name in ((0.5, "p50"), (0.01, "p99"), (0.001, "p99.9")):
            tail.axhline(share, color=GREY, linewidth=0.5, linestyle=":")
            tail.text(
                1.01, share, name, color=GREY, fontsize=8, va="center", ha="left",
                transform=tail.get_yaxis_transform(),
            )  # fmt: skip
        _plain_milliseconds(tail, "x")
        course.set(yscale="log", xlabel="arrival (s)", ylabel="latency (ms)")
        _plain_milliseconds(course, "y")
        for height, (label, time_s) in enumerate(events.items()):
            course.axvline(time_s, color="black", linewidth=0.8)
            course.annotate(
                label, (time_s, 1), xycoords=("data", "axes fraction"),
                xytext=(3, -2 - 11 * height),
                textcoords="offset points", va="top", fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
            )  # fmt: skip
        handles, labels = tail.get_legend_handles_labels()
        tail.legend(handles[::-1], labels[::-1], frameon=False, loc="lower left")
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _draw_tail(axes: Axes, run: Run, colour: str, line: str) -> None:
    ordered = np.sort(run.latencies_s)
    slower = 1 - np.arange(len(ordered)) / len(ordered)
    axes.step(
        1e3 * ordered, slower, line, where="pre", color=colour, linewidth=1.6, label=run.label
    )


def _plain_milliseconds(axes: Axes, axis: str) -> None:
    """Writes 5, 20, 100 instead of powers of ten."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    chosen.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    chosen.set_minor_formatter(matplotlib.ticker.NullFormatter())


def recovery_figure(
    path: Path,
    model: CodedModel,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
) -> None:
    """Draws coding groups with one query lost, as the paper's figure 4 does.

    Each row is a group: the k queries, the lost one framed; the parity query that the encoder
    makes; the ideal one, found by inverting the backbone at the coded embedding; and the lost query
    as its decoded embedding says, by inversion too, with its predicted class and the one that the
    exact answer has (green frame: the same; else vermillion). Below the queries are their true
    classes. Values outside [0, 1] are shown as black and white. The slots take turns in being lost.

    Args:
        path: of the PNG.
        model: with an invertible backbone and r = 1 or more; the first parity is shown.
        images: float32 (G, k, 1, H, W), G groups of queries.
        labels: (G, k) true classes.
        class_names: by class.
    """
    groups, k = images.shape[:2]
    lost = np.arange(groups) % k
    pictures = _pictures(model, images, lost)
    columns = k + 3
    with plt.rc_context(_STYLE):
        figure, grid = plt.subplots(
            groups, columns, figsize=(0.95 * columns + 0.3, 1.22 * groups + 0.45), squeeze=False,
            gridspec_kw={"width_ratios": [1.0] * k + [1.0] * 3}, layout="constrained",
        )  # fmt: skip
        for row in range(groups):
            for slot in range(k):
                axes = grid[row][slot]
                _show(axes, images[row, slot, 0], class_names[labels[row, slot]])
                if slot == lost[row]:
                    _frame(axes, BLUE)
            _show(grid[row][k], pictures["parity"][row, 0], "")
            _show(grid[row][k + 1], pictures["ideal"][row, 0], "")
            exact, decoded = pictures["exact"][row], pictures["decoded"][row]
            verdict = f"{class_names[decoded]}\n(exact: {class_names[exact]})"
            _show(grid[row][k + 2], pictures["recovered"][row, 0], verdict)
            _frame(grid[row][k + 2], GREEN if decoded == exact else VERMILLION)
        _headings(grid[0], k)
        figure.savefig(path, dpi=160, bbox_inches="tight", pad_inches=0.08)
        plt.close(figure)


def _pictures(
    model: CodedModel, images: NDArray[np.float32], lost: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Parity, ideal and recovered queries (G, 1, H, W), and exact and decoded classes (G,)."""
    groups, k = images.shape[:2]
    backbone: Any = model.modules.backbone
    embeddings = model.embed(images.reshape(-1, *model.input_shape))
    embeddings = embeddings.reshape(groups, k, *model.embedding_shape)
    parity = model.encode(images)[:, 0]
    coded = np.einsum("j,gj...->g...", model.code.coefficients[0], embeddings).astype(np.float32)
    decoded = []
    for group, slot in enumerate(lost):
        results = {i: embeddings[group, i] for i in range(k) if i != slot}
        results[k] = model.embed(parity[group : group + 1])[0]
        decoded.append(model.reconstruct(results)[int(slot)])
    stacked = np.stack(decoded)
    return {
        "parity": parity,
        "ideal": _inverse(backbone, coded),
        "recovered": _inverse(backbone, stacked),
        "exact": model.head(embeddings[np.arange(groups), lost]).argmax(1),
        "decoded": model.head(stacked).argmax(1),
    }


def _inverse(backbone: Any, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    queries, _ = backbone.inverse(torch.from_numpy(np.ascontiguousarray(embeddings)))
    return np.asarray(queries.numpy(), dtype=np.float32)


def _show(axes: Axes, image: NDArray[np.float32], caption: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=8, labelpad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _frame(axes: Axes, colour: str) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.5)


def _headings(top_row: Sequence[Axes], k: int) -> None:
    top_row[k // 2].set_title(f"{k} queries, the framed one lost", fontsize=9)
    for axes, heading in zip(
        top_row[k:], ("parity:\nencoder", "parity:\nideal", "recovered"), strict=True
    ):
        axes.set_title(heading, fontsize=9)
