"""The demo's picture of recoveries: what was lost, what came back, how sure, and whether right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from codedinv.experiments.pictures import GREEN, GREY, SKY, STYLE, VERMILLION
from codedinv.model import CodedModel
from codedinv.model.light import least_sure, log_softmax
from codedinv.model.manifest import ENCODED

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_ROWS = 4
_SEARCHED = 100  # groups, for one that is answered wrongly
GIVEN, CODE, LIGHT, EXACT = "answer given", "code alone", "light model", "lost worker itself"


@dataclass(frozen=True)
class Recovered:
    """A coding group of which one result did not come.

    Attributes:
        queries: float32 (k, C, H, W).
        labels: (k,) true classes.
        lost: slot whose result did not come.
        extra: what the additional worker got, (C, H, W): the parity query, or a copy.
        copied: slot that `extra` is a copy of; None: it is a parity query.
        answers: probabilities (outputs,) by who says so; `GIVEN` first, `EXACT` last.
    """

    queries: NDArray[np.float32]
    labels: NDArray[np.int64]
    lost: int
    extra: NDArray[np.float32]
    copied: int | None
    answers: dict[str, NDArray[np.float64]]

    @property
    def truth(self) -> int:
        """True class of the lost query."""
        return int(self.labels[self.lost])

    def is_right(self, by: str = GIVEN) -> bool:
        """Is that answer the true class?"""
        return int(self.answers[by].argmax()) == self.truth


def can_be_drawn(model: CodedModel) -> bool:
    """Are its queries images, and is there anything that recovers lost ones?"""
    recovers = model.scheme in ENCODED or model.light is not None
    return recovers and len(model.input_shape) == 3 and model.input_shape[0] in (1, 3)


def choose(
    model: CodedModel, queries: NDArray[np.float32], labels: NDArray[np.int64]
) -> list[Recovered]:
    """The first three groups in order of arrival, and the first one after them that is wrongly
    answered; the next one, if none is. The slots take turns in being lost.

    Args:
        model: recovers as its own scheme does.
        queries: float32 (N, *input), N >= k.
        labels: (N,) true classes.
    """
    k = model.code.k

    def group(number: int) -> Recovered:
        part = slice(number * k, (number + 1) * k)
        return recover(model, queries[part], labels[part], number % k)

    count = min(len(queries) // k, _SEARCHED)
    shown = [group(number) for number in range(min(count, _ROWS))]
    for number in range(_ROWS - 1, count):
        one = group(number)
        if not one.is_right():
            return [*shown[: _ROWS - 1], one]
    return shown


def recover(
    model: CodedModel, queries: NDArray[np.float32], labels: NDArray[np.int64], lost: int
) -> Recovered:
    """Recovers slot `lost` of one group, as a server of the model's own scheme does; a model for no
    code as a guided one, which the demo serves it as too."""
    embeddings = model.embed(queries)
    exact = model.head(embeddings[lost : lost + 1])[0]
    task = next(iter(model.heads))
    light = None if model.light is None else np.asarray(model.light(queries)[task])
    if model.scheme not in ENCODED:
        if light is None:
            raise ValueError(f"model: {model.name} has neither an encoder nor a light model")
        copied = int(least_sure(light)[0])
        answers = {GIVEN: exact if copied == lost else light[lost], EXACT: exact}
        return Recovered(queries, labels, lost, queries[copied], copied, _probabilities(answers))
    parity = model.encode(queries[np.newaxis])[0, 0]
    results = {slot: embeddings[slot] for slot in range(len(queries)) if slot != lost}
    results[len(queries)] = model.embed(parity[np.newaxis])[0]
    decoded = model.head(model.reconstruct(results)[lost][np.newaxis])[0]
    answers = {GIVEN: decoded}
    if light is not None and model.fusion is not None:
        answers = {GIVEN: model.fusion(decoded, light[lost], "arrival"), CODE: decoded}
    if light is not None:
        answers[LIGHT] = light[lost]
    answers[EXACT] = exact
    return Recovered(queries, labels, lost, parity, None, _probabilities(answers))


def _probabilities(logits: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    return {by: np.exp(log_softmax(np.asarray(values))) for by, values in logits.items()}


def draw(path: Path, groups: Sequence[Recovered], class_names: Sequence[str]) -> None:
    """Draws a row for each group: the k queries, the lost one struck out; the additional query; and
    who says what of the lost one, how sure. Green is the true class, vermillion another.

    Args:
        path: of the PNG.
        groups: of one model.
        class_names: by class.
    """
    k = len(groups[0].queries)
    ratios = [1.0] * k + [0.25, 1.0, 0.25, 3.6]
    with plt.rc_context({**STYLE, "axes.titlesize": 9}):
        figure, grid = plt.subplots(
            len(groups), len(ratios), squeeze=False, layout="constrained",
            figsize=(1.05 * sum(ratios), 1.42 * len(groups) + 0.5),
            gridspec_kw={"width_ratios": ratios},
        )  # fmt: skip
        for row, group in zip(grid, groups, strict=True):
            for slot in range(k):
                _show(row[slot], group.queries[slot], class_names[group.labels[slot]])
            _strike_out(row[group.lost])
            _text(row[k], "+" if group.copied is None else "")
            _show(row[k + 1], _stretched(group), _of_extra(group, class_names))
            _text(row[k + 2], "→")
            draw_answers(row[k + 3], group, class_names)
        _headings(grid[0], k, groups[0].copied is None)
        figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.08)
        plt.close(figure)


def draw_answers(axes: Axes, group: Recovered, class_names: Sequence[str]) -> None:
    """Bars of how sure each is of its class, framed and coloured by whether that is the truth."""
    for place, (by, probabilities) in enumerate(group.answers.items()):
        said, is_given = int(probabilities.argmax()), by == GIVEN
        colour = GREEN if group.is_right(by) else VERMILLION
        sure = float(probabilities[said])
        axes.barh(-place, sure, height=0.72, color=colour, alpha=1.0 if is_given else 0.45)
        mark = "✓" if group.is_right(by) else "✗"
        axes.text(
            sure + 0.02, -place, f"{mark} {class_names[said]} {100 * sure:.0f} %", va="center",
            fontsize=9 if is_given else 8, fontweight="bold" if is_given else "normal",
            color=colour if is_given else "black",
        )  # fmt: skip
    axes.set(xlim=(0, 1.75), ylim=(0.4 - len(group.answers), 0.6), xticks=[])
    axes.set_yticks([-place for place in range(len(group.answers))], list(group.answers))
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.get_yticklabels()[0].set_fontweight("bold")
    frame(axes, GREEN if group.is_right() else VERMILLION)


def frame(axes: Axes, colour: str) -> None:
    """A frame around all of the axes."""
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.0)


def _stretched(group: Recovered) -> NDArray[np.float32]:
    """A parity query fills a range of its own: it is shown from its least to its greatest."""
    if group.copied is not None:
        return group.extra
    low, high = np.quantile(group.extra, (0.01, 0.99))
    shown: NDArray[np.float32] = np.clip((group.extra - low) / max(high - low, 1e-6), 0, 1)
    return shown


def _of_extra(group: Recovered, class_names: Sequence[str]) -> str:
    if group.copied is None:
        return "parity query"
    return f"copy: {class_names[group.labels[group.copied]]}"


def _show(axes: Axes, image: NDArray[np.float32], caption: str) -> None:
    shown = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption, fontsize=8, labelpad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _strike_out(axes: Axes) -> None:
    """The result of this one did not come."""
    for ends in ((0, 1), (1, 0)):
        axes.plot((0, 1), ends, transform=axes.transAxes, color=SKY, linewidth=2.5)
    frame(axes, SKY)
    axes.xaxis.label.set(fontweight="bold")
    axes.set_xlabel(f"lost: {axes.get_xlabel()}")


def _text(axes: Axes, text: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=13, color=GREY)


def _headings(top_row: Sequence[Axes], k: int, is_coded: bool) -> None:
    first = top_row[0].text(
        0, 1.08, f"{k} queries, and their true classes", transform=top_row[0].transAxes
    )
    first.set_in_layout(False)  # it is wider than its picture
    top_row[k + 1].set_title("one more" if is_coded else "least sure", pad=8)
    top_row[k + 3].set_title("what the lost one is, and how sure", loc="left", pad=8)
