"""Which ways to serve the demo compares, and why not others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from codedinv.coding import Code
from codedinv.experiments.columns import columns_of
from codedinv.model import CodedModel


def test_a_model_with_everything_is_served_in_five_ways(lit_model: CodedModel) -> None:
    columns, omitted = columns_of(lit_model)
    assert [(c.label, c.scheme, c.coded) for c in columns] == [
        ("uncoded", "uncoded", False),
        ("replication 2x", "replication", False),
        ("hedged at p95", "uncoded", False),
        ("guided", "guided", True),
        ("Coded-InvNet", "invertible", True),
    ]
    assert [c.policy.hedge_after for c in columns] == [None, None, "p95", None, None]
    assert omitted == {}
    macs = lit_model.metadata["macs"]
    assert columns[3].front_end == pytest.approx(macs["light"] / macs["backbone"])
    assert columns[4].front_end == pytest.approx(macs["encoder"] / 3 / macs["backbone"])


def test_without_a_light_model_there_is_no_guided_column(
    make_small_model: Callable[..., CodedModel],
) -> None:
    columns, omitted = columns_of(make_small_model(Code.uniform(4)))
    assert [c.label for c in columns][-1] == "Coded-InvNet"
    assert omitted == {"guided": "small has no light model"}


def test_without_an_encoder_there_is_no_coded_column() -> None:
    macs = {"backbone": 100, "light": 5}
    model: Any = SimpleNamespace(
        name="g", scheme="guided", light=object(), metadata={"macs": macs}, code=None
    )
    columns, omitted = columns_of(model)
    assert [c.label for c in columns][-1] == "guided"
    assert omitted == {"Coded-InvNet": "g has no encoder: it is made for scheme 'guided'"}
