"""Guided answers, fusion and the controls beside a degraded accuracy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from codedinv import data
from codedinv.coding import Code
from codedinv.experiments.accuracy import evaluate, known_of
from codedinv.experiments.controls import (
    Controls,
    PlainSum,
    affine_share,
    beaten_by,
    exact_fused,
    measure_controls,
    retained_gain,
)
from codedinv.experiments.degraded import Known, guided_answers
from codedinv.experiments.fusing import fit_fusion, likeliest_weights
from codedinv.experiments.intervals import Estimate, Outcomes
from codedinv.model import CodedModel
from codedinv.model.light import log_softmax
from codedinv.nn import SeparableNet


def one_hot(classes: list[int], sureness: list[float]) -> np.ndarray:
    logits = np.zeros((len(classes), 3), np.float32)
    logits[np.arange(len(classes)), classes] = sureness
    return logits


def images(count: int) -> tuple[np.ndarray, np.ndarray]:
    found, labels = data.load_test_images()
    return data.to_queries(found[:count]), labels[:count]


@pytest.fixture(scope="module")
def with_light(make_small_model: Callable[..., CodedModel]) -> CodedModel:
    modules = make_small_model(Code.uniform(3)).modules
    return CodedModel.from_modules(
        name="small",
        code=Code.uniform(3),
        backbone=modules.backbone,
        heads=modules.heads,
        encoder=modules.encoder,
        light=SeparableNet((1, 28, 28), 12, 2),
        anchors_queries=images(3)[0],
        fusion={"arrival": (1.0, 0.0), "alike": (0.0, 1.0)},
    )


def test_a_guided_answer_is_exact_for_the_least_sure_and_light_for_the_others() -> None:
    exact = one_hot([0, 1, 2, 0], [1.0] * 4)
    light = one_hot([1, 2, 0, 1], [3.0, 1.0, 2.0, 4.0])
    known = Known(np.zeros((4, 1), np.float32), exact, light)
    answers = {
        lost[0]: given.tolist()
        for lost, given in guided_answers(Code.uniform(2), known, np.array([[0, 1], [2, 3]]))
    }
    assert answers == {0: [[1], [2]], 1: [[1], [1]]}


def test_with_as_many_duplicates_as_queries_every_guided_answer_is_exact() -> None:
    generator = np.random.default_rng(0)
    exact, light = (generator.standard_normal((6, 3)).astype(np.float32) for _ in range(2))
    known = Known(np.zeros((6, 1), np.float32), exact, light)
    groups = np.arange(6).reshape(2, 3)
    patterns = list(guided_answers(Code.mds(k=3, r=3), known, groups))
    assert [len(lost) for lost, _ in patterns] == [1, 1, 1, 2, 2, 2, 3]
    for lost, given in patterns:
        assert given.tolist() == exact.argmax(1)[groups[:, lost]].tolist()


def test_every_way_of_grouping_is_measured_alone_and_fused(with_light: CodedModel) -> None:
    queries, labels = images(60)
    accuracy = evaluate(with_light, queries, labels, groupings=2)
    ways = accuracy.degraded_by_way
    kinds = ("arrival", "choosing", "alike")
    assert set(ways) == {*kinds, *(f"{kind} + fused" for kind in kinds)}
    assert (accuracy.served, ways["arrival + fused"]) == ("arrival + fused", accuracy.degraded)
    # Weights (1, 0) leave the decoded answers, (0, 1) the light model's.
    assert ways["arrival + fused"].mean == pytest.approx(ways["arrival"].mean)
    assert accuracy.light is not None
    assert ways["alike + fused"].mean == pytest.approx(accuracy.light.mean, abs=100 * 2 / 60)


def test_the_plain_sum_is_as_good_as_an_encoder_that_learnt_nothing(
    make_small_model: Callable[..., CodedModel],
) -> None:
    model = make_small_model(Code.uniform(4), linear=True)
    queries, labels = images(40)
    known = known_of(model, queries)
    accuracy = evaluate(model, queries, labels, groupings=1, known=known)
    controls = measure_controls(model, queries, labels, known, accuracy)
    assert controls.plain_sum == pytest.approx(accuracy.degraded.mean)
    assert (controls.light, controls.head_alone) == (None, None)
    groups = queries[:4][None]
    np.testing.assert_allclose(
        PlainSum(model).encode(groups), groups.mean(1, keepdims=True), rtol=1e-5
    )


def test_the_affine_share_is_one_for_an_affine_map_and_less_for_another() -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((400, 5)).astype(np.float32)
    affine = x @ generator.standard_normal((5, 4)).astype(np.float32) + 2
    assert affine_share(x, affine) == pytest.approx(1, abs=1e-3)
    assert affine_share(x, np.abs(affine)) < 0.9
    assert affine_share(x, x**2) < 0.1


def test_the_retained_gain_is_the_share_of_what_the_workers_add() -> None:
    worth = Estimate(4.0, 3.5, 4.5)
    assert retained_gain(Estimate(3.0, 2.0, 4.0), worth) == pytest.approx(0.75)
    assert retained_gain(Estimate(-1.0, -2.0, 0.0), worth) == pytest.approx(-0.25)
    assert retained_gain(None, None) is None


def test_there_is_no_gain_to_retain_where_f_is_not_measurably_better_than_the_light_model() -> None:
    assert retained_gain(Estimate(0.3, 0.1, 0.5), Estimate(0.1, -0.3, 0.5)) is None


def test_answers_are_compared_with_the_light_models_image_by_image() -> None:
    generator = np.random.default_rng(3)
    lightly = generator.random(5000) < 0.8
    better = lightly | (generator.random(5000) < 0.05)
    images = np.arange(5000)
    found = Outcomes(better, images, images, images).over(lightly)
    assert found.mean == pytest.approx(100 * (better.mean() - lightly.mean()))
    assert found.low > 0.5
    worse = Outcomes(lightly, images, images, images).over(better)
    assert (worse.low, worse.high) == pytest.approx((-found.high, -found.low)), "not cut off at 0"


def test_a_cheaper_control_that_does_as_well_beats_the_code() -> None:
    controls = Controls(light=88.0, head_alone=85.0, plain_sum=90.0, affine_share=0.9)
    cost = {"degraded": 10.0, "fused": 13.0, "light": 1.0, "head_alone": 1.0, "plain_sum": 12.0}
    assert beaten_by(87.0, "arrival", controls, cost) == ["light"], "the plain sum costs more here"
    assert beaten_by(89.0, "arrival", controls, cost) == []
    assert beaten_by(89.0, "arrival + fused", controls, cost) == ["plain_sum"], "and less here"


def test_fusion_trusts_the_answer_that_knows_and_ignores_noise() -> None:
    generator = np.random.default_rng(2)
    truth = generator.integers(0, 4, 2000)
    knows = generator.standard_normal((2000, 4))
    knows[np.arange(2000), truth] += 2
    noise = generator.standard_normal((2000, 4))
    a, b = likeliest_weights(log_softmax(knows), log_softmax(noise), truth)
    assert a > 1.5
    assert abs(b) < 0.15
    mixed = log_softmax(a * log_softmax(knows) + b * log_softmax(noise))
    best = -mixed[np.arange(2000), truth].mean()
    for da, db in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        other = log_softmax((a + da) * log_softmax(knows) + (b + db) * log_softmax(noise))
        assert -other[np.arange(2000), truth].mean() > best


def test_exact_answers_are_fused_by_weights_from_the_other_half() -> None:
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 3000)
    exact, light = (generator.standard_normal((3000, 3)).astype(np.float32) for _ in range(2))
    for logits in (exact, light):
        logits[np.arange(3000), labels] += 1
    known = Known(np.zeros((3000, 1), np.float32), exact, light)
    fused = exact_fused(known, labels)
    best = 100 * ((exact + light).argmax(1) == labels).mean()
    assert fused == pytest.approx(best, abs=1.0), "equal models are best mixed equally"
    assert fused > 100 * (exact.argmax(1) == labels).mean() + 5
    assert exact_fused(Known(known.embeddings, exact, None), labels) is None


def test_fusion_is_fitted_for_both_ways_of_grouping(with_light: CodedModel) -> None:
    fusion = fit_fusion(with_light, *images(60))
    assert set(fusion.weights) == {"arrival", "alike"}
    assert np.isfinite([*fusion.weights.values()]).all()


def test_fusion_without_a_light_model_or_enough_images_is_refused(
    with_light: CodedModel, make_small_model: Callable[..., CodedModel]
) -> None:
    with pytest.raises(ValueError, match="light model"):
        fit_fusion(make_small_model(Code.uniform(3)), *images(60))
    with pytest.raises(ValueError, match="at least k = 3"):
        fit_fusion(with_light, *images(2))


def test_the_affine_share_of_few_large_images_is_that_of_the_normal_equations() -> None:
    """A matrix of 224x224 by 224x224 numbers would not fit into memory; one of 40 images does."""
    random = np.random.default_rng(0)
    x = random.random((40, 1, 10, 12), np.float32)
    z = (x.reshape(40, -1) @ random.standard_normal((120, 3)) + 2).astype(np.float32)
    a = np.c_[x.reshape(40, -1), np.ones(40)].astype(np.float64)
    weights = np.linalg.solve(a[:30].T @ a[:30] + 0.1 * np.eye(121), a[:30].T @ z[:30])
    left = ((z[30:] - a[30:] @ weights) ** 2).sum()
    expected = 1 - left / ((z[30:] - z[:30].mean(0)) ** 2).sum()
    assert affine_share(x, z) == pytest.approx(expected, rel=1e-4)
    large = random.random((12, 3, 224, 224), np.float32)
    assert np.isfinite(affine_share(large, random.random((12, 4), np.float32)))
