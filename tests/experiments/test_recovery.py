"""The picture of recoveries: frames say whether an answer is the truth, not whether two agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt

from codedinv.data import load_test_images, to_queries
from codedinv.experiments.pictures import GREEN, VERMILLION
from codedinv.experiments.recovery import (
    EXACT,
    GIVEN,
    Recovered,
    can_be_drawn,
    choose,
    draw,
    draw_answers,
)
from codedinv.model import CodedModel
from codedinv.model.light import log_softmax

NAMES = tuple(f"class {i}" for i in range(10))


def sure_of(number: int) -> np.ndarray:
    return np.where(np.arange(10) == number, 0.91, 0.01)


def some_group(given: int, exact: int, truth: int) -> Recovered:
    image = np.zeros((2, 1, 28, 28), np.float32)
    answers = {GIVEN: sure_of(given), EXACT: sure_of(exact)}
    return Recovered(image, np.array([truth, 5]), 0, image[0], None, answers)


@pytest.mark.parametrize(
    ("given", "exact", "truth", "expected"),
    [
        (3, 3, 3, GREEN),
        (3, 4, 3, GREEN),  # better than the exact answer
        (4, 3, 3, VERMILLION),
        (4, 4, 3, VERMILLION),  # both wrong: that they agree makes it no better
    ],
)
def test_a_frame_is_coloured_by_the_true_class(
    given: int, exact: int, truth: int, expected: str
) -> None:
    figure, axes = plt.subplots()
    draw_answers(axes, some_group(given, exact, truth), NAMES)
    edges = {colors.to_hex(spine.get_edgecolor()) for spine in axes.spines.values()}
    texts = [text.get_text() for text in axes.texts]
    plt.close(figure)
    assert edges == {expected.lower()}
    assert texts[0] == f"{'✓' if given == truth else '✗'} class {given} 91 %"
    assert texts[1] == f"{'✓' if exact == truth else '✗'} class {exact} 91 %"


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_test_images()
    return to_queries(images[:60]), labels[:60]


def test_the_answer_given_is_the_servers_mix(
    lit_model: CodedModel, images: tuple[np.ndarray, np.ndarray]
) -> None:
    first = choose(lit_model, *images)[0]
    assert list(first.answers) == [GIVEN, "code alone", "light model", EXACT]
    for probabilities in first.answers.values():
        assert probabilities.sum() == pytest.approx(1.0)
    mixed = np.sqrt(first.answers["code alone"] * first.answers["light model"])
    np.testing.assert_allclose(first.answers[GIVEN], mixed / mixed.sum(), atol=1e-5)
    exact = lit_model.head(lit_model.embed(images[0][:1]))[0]
    np.testing.assert_allclose(first.answers[EXACT], np.exp(log_softmax(exact)), atol=1e-5)


def test_the_last_row_is_the_first_that_is_wrong(
    lit_model: CodedModel, images: tuple[np.ndarray, np.ndarray]
) -> None:
    queries, labels = images
    shown = choose(lit_model, queries, labels)
    assert [group.lost for group in shown[:3]] == [0, 1, 2]
    for number in range(3):
        np.testing.assert_array_equal(shown[number].labels, labels[3 * number : 3 * number + 3])
    said = [int(group.answers[GIVEN].argmax()) for group in shown]
    assert not shown[3].is_right()
    always = np.full(60, said[0])  # random weights say one class of everything, or nearly so
    assert len(choose(lit_model, queries, always)) == 4
    assert len(choose(lit_model, queries[:7], labels[:7])) == 2


def test_a_guided_models_lost_query_is_answered_by_its_copy_or_the_light_model(
    lit_model: CodedModel, images: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lit_model, "scheme", "guided")
    queries, labels = images
    groups = choose(lit_model, queries, labels)
    light = np.exp(log_softmax(np.asarray(lit_model.light(queries)["label"])))
    for number, group in enumerate(groups[:3]):
        ordered = np.sort(light[3 * number : 3 * number + 3], axis=1)
        assert group.copied == int((ordered[:, -1] / ordered[:, -2]).argmin())
        expected = group.answers[EXACT]
        if group.copied != group.lost:
            expected = light[3 * number + group.lost]
        np.testing.assert_allclose(group.answers[GIVEN], expected, atol=1e-5)


def test_a_model_for_no_code_is_drawn_as_the_guided_one_that_the_demo_serves(
    lit_model: CodedModel, images: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lit_model, "scheme", "uncoded")
    assert can_be_drawn(lit_model)
    assert all(group.copied is not None for group in choose(lit_model, *images))


def test_the_picture_is_written(
    lit_model: CodedModel, images: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    draw(tmp_path / "recovery.png", choose(lit_model, *images), NAMES)
    height, width = plt.imread(tmp_path / "recovery.png").shape[:2]
    assert min(height, width) > 400
