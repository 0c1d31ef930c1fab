"""Groups in order of arrival and alike groups."""

from __future__ import annotations

import numpy as np
import pytest

from codedinv.experiments.groupings import alike_groups, arrival_groups


def test_groups_in_order_of_arrival_leave_the_remainder_out() -> None:
    assert arrival_groups(np.array([5, 3, 1, 0, 2]), 2).tolist() == [[5, 3], [1, 0]]


def test_alike_groups_hold_one_class_as_far_as_there_are_enough() -> None:
    classes = np.array([0, 1] * 10)
    groups = alike_groups(np.arange(20), classes, k=5)
    assert all(len(set(classes[group])) == 1 for group in groups)
    assert sorted(groups.ravel()) == list(range(20))


def test_what_the_classes_leave_over_is_grouped_together() -> None:
    classes = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    groups = alike_groups(np.arange(8), classes, k=4)
    assert [sorted(classes[group].tolist()) for group in groups] == [[1, 1, 1, 1], [0, 0, 0, 2]]


@pytest.mark.parametrize("among", [4, 8, 40])
def test_queries_are_chosen_only_among_those_at_hand(among: int) -> None:
    generator = np.random.default_rng(among)
    order, classes = generator.permutation(40), generator.integers(0, 3, 40)
    groups = alike_groups(order, classes, 4, among)
    windows = groups.reshape(-1, among)
    place = np.argsort(order)
    for number, window in enumerate(windows):
        assert set(place[window] // among) == {number}


def test_more_to_choose_from_makes_more_groups_alike() -> None:
    generator = np.random.default_rng(0)
    order, classes = generator.permutation(2000), generator.integers(0, 10, 2000)

    def share(among: int) -> float:
        groups = alike_groups(order, classes, 10, among)
        return float(np.mean([len(set(classes[group])) == 1 for group in groups]))

    assert share(10) < 0.01 < share(80) < share(160) < share(2000)
