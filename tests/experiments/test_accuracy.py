"""Accuracy: the vectorised path is the decoder's, and the intervals cover what they promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from codedinv import data
from codedinv.coding import Code, StreamingDecoder
from codedinv.experiments.accuracy import (
    evaluate,
    interval,
    parity_embeddings,
    patterns,
    recover,
)
from codedinv.model import CodedModel


def some_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = data.load_test_images()
    return data.to_queries(images[:count]), labels[:count]


@pytest.mark.parametrize("code", [Code.uniform(4), Code.mds(k=4, r=2), Code.mds(k=3, r=3)])
def test_recovering_all_groups_at_once_is_what_the_streaming_decoder_does(
    code: Code,
) -> None:
    generator = np.random.default_rng(code.n)
    groups, shape = 5, (3, 2)
    vectors = generator.standard_normal((groups, code.n, *shape)).astype(np.float32)
    data_slots, parity = vectors[:, : code.k], vectors[:, code.k :]
    for lost, used in patterns(code):
        at_once = recover(code, data_slots, parity, lost, used)
        for group in range(groups):
            decoder = StreamingDecoder(code, shape, "float32")
            for slot in range(code.k):
                if slot not in lost:
                    decoder.push(slot, data_slots[group, slot])
            for row in used:
                decoder.push(code.k + row, parity[group, row])
            one_by_one = decoder.recover()
            for place, slot in enumerate(lost):
                np.testing.assert_allclose(
                    at_once[group, place], one_by_one[slot], rtol=1e-4, atol=1e-4
                )


def test_the_whole_path_equals_encode_embed_reconstruct_of_the_model(
    make_small_model: Callable[..., CodedModel],
) -> None:
    model = make_small_model(Code.uniform(4))
    queries, _ = some_images(8)
    groups = np.array([[3, 0, 5, 6], [1, 7, 2, 4]])
    embeddings = model.embed(queries)
    parity = parity_embeddings(model, queries, groups)
    for group, members in enumerate(groups):
        by_hand = model.embed(model.encode(queries[members][None])[0])
        results = {slot: embeddings[members[slot]] for slot in (0, 1, 3)} | {4: by_hand[0]}
        expected = model.reconstruct(results)[2]
        got = recover(model.code, embeddings[groups], parity, (2,), (0,))[group, 0]
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_every_pattern_with_exactly_k_results_is_visited_once() -> None:
    found = list(patterns(Code.mds(k=4, r=2)))
    assert len(found) == len(set(found)) == 14  # C(6, 4) without the one that lost no data


@pytest.mark.parametrize("code", [Code.uniform(5), Code.mds(k=4, r=2)])
def test_a_perfect_parity_query_costs_no_accuracy(
    code: Code, make_small_model: Callable[..., CodedModel]
) -> None:
    queries, labels = some_images(42)
    accuracy = evaluate(make_small_model(code, linear=True), queries, labels, groupings=2)
    used = 42 // code.k * code.k
    assert accuracy.agreement.mean == pytest.approx(100, abs=100 / used)
    assert list(accuracy.degraded_by_lost) == list(range(1, code.r + 1))
    assert accuracy.normal.mean == pytest.approx(accuracy.degraded.mean, abs=100 * 4 / used)


def test_a_useless_parity_query_is_seen_in_every_slot(
    make_small_model: Callable[..., CodedModel],
) -> None:
    queries, _ = some_images(60)
    model = make_small_model(Code.uniform(4))
    exact = model.head(model.embed(queries)).argmax(1)
    accuracy = evaluate(model, queries, exact)  # labels that the exact answers always meet
    assert accuracy.normal.mean == 100
    assert accuracy.degraded.mean < 95
    assert accuracy.degraded.mean == pytest.approx(accuracy.agreement.mean)
    assert accuracy.degraded.mean == pytest.approx(np.mean(accuracy.degraded_by_slot))
    assert accuracy.whole_group.mean == pytest.approx((3 * 100 + accuracy.degraded.mean) / 4)


def test_the_seed_decides_the_groupings(make_small_model: Callable[..., CodedModel]) -> None:
    queries, labels = some_images(60)
    model = make_small_model(Code.uniform(4))
    first, again, other = (evaluate(model, queries, labels, seed=seed) for seed in (1, 1, 2))
    assert first.agreement == again.agreement
    assert first.agreement != other.agreement


def test_too_few_images_are_refused(make_small_model: Callable[..., CodedModel]) -> None:
    queries, labels = some_images(3)
    with pytest.raises(ValueError, match="at least 4"):
        evaluate(make_small_model(Code.uniform(4)), queries, labels)


# ---- intervals


def test_without_groups_the_interval_is_the_usual_one_of_a_mean() -> None:
    values = np.array([1, 0, 1, 1] * 25)
    estimate = interval(values, np.arange(100))
    half = 100 * 1.96 * np.sqrt(0.75 * 0.25 / 100)
    assert estimate.mean == 75
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=1e-3)


def test_repeating_every_outcome_does_not_narrow_the_interval() -> None:
    generator = np.random.default_rng(0)
    values, images = generator.integers(0, 2, 300), np.arange(300)
    once = interval(values, images, np.arange(300))
    thrice = interval(np.tile(values, 3), np.tile(images, 3), np.arange(900))
    assert thrice.high - thrice.low == pytest.approx(once.high - once.low, rel=1e-6)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Images of unlike difficulty, groups that share a good or bad parity query, 3 groupings."""
    generator = np.random.default_rng(3)
    images, k, truth, covered = 400, 4, 0.8, 0
    for _ in range(300):
        ease = generator.normal(0, 0.15, images)
        values, image_of, group_of = [], [], []
        for grouping in range(3):
            members = generator.permutation(images)
            luck = np.repeat(generator.normal(0, 0.1, images // k), k)
            values.append(truth + ease[members] + luck + generator.normal(0, 0.3, images))
            image_of.append(members)
            group_of.append(grouping * images // k + np.arange(images) // k)
        estimate = interval(*map(np.concatenate, (values, image_of, group_of)))
        covered += estimate.low <= 100 * truth <= estimate.high
    assert 0.91 <= covered / 300 <= 0.985
