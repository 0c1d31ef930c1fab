"""A policy refuses what makes no sense, naming it."""

from __future__ import annotations

from typing import Any

import pytest

from codedinv.serving import Policy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("release", "sometimes"),
        ("grace_s", -0.1),
        ("group_wait_s", float("nan")),
        ("deadline_s", 0),
        ("deadline_s", float("inf")),
        ("deadline_margin_s", None),
        ("max_queue", 0),
        ("max_queue", 1.5),
        ("in_flight", True),
        ("retries", -1),
        ("hang_timeout_s", 0),
        ("hang_timeout_s", "10"),
        ("start_timeout_s", False),
        ("restart_backoff_s", 0),
        ("restart_backoff_max_s", -1),
        ("drain_timeout_s", 0),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected"):
        Policy(**{field: value})


def test_no_deadline_no_grace_and_no_group_wait_are_fine() -> None:
    policy = Policy(deadline_s=None, grace_s=0, group_wait_s=0.0, retries=0)
    assert policy.deadline_s is None


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Policy().max_queue = 3  # type: ignore[misc]
