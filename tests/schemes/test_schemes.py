"""Schemes: plans that make sense, and numerics that agree with them."""

from __future__ import annotations

import numpy as np
import pytest

from codedinv.schemes import Plan, Scheme, build_scheme, invertible, replication, uncoded
from tests.serving.linear_model import LinearModel


@pytest.fixture(scope="module")
def model() -> LinearModel:
    return LinearModel(k=4, r=2)


@pytest.mark.parametrize("missing", [(0,), (3,), (0, 2), (1, 4), ()])
def test_any_k_results_of_the_invertible_scheme_give_the_rest(
    model: LinearModel, missing: tuple[int, ...]
) -> None:
    scheme = invertible(model)
    groups = model.queries(8).reshape(2, 4, *model.input_shape)
    parities = scheme.encode(groups)
    assert parities.shape == (2, 2, *model.input_shape)
    for queries, parity in zip(groups, parities, strict=True):
        embeddings = model.embed(np.concatenate([queries, parity]))
        decoder = scheme.decoder()
        for slot in set(range(scheme.plan.n)) - set(missing):
            decoder.push(slot, embeddings[slot])
        recovered = decoder.recover()
        assert sorted(recovered) == [slot for slot in missing if slot < 4]
        for slot, embedding in recovered.items():
            np.testing.assert_allclose(embedding, embeddings[slot], atol=1e-4)


def test_replicas_are_the_query_itself_and_decode_to_whichever_came(model: LinearModel) -> None:
    scheme = replication(model, copies=3)
    queries = model.queries(2)[:, np.newaxis]
    copies = scheme.encode(queries)
    np.testing.assert_array_equal(copies, np.repeat(queries, 2, axis=1))
    embedding = model.embed(queries[0])[0]
    for slot in (1, 2):
        decoder = scheme.decoder()
        decoder.push(slot, embedding)
        np.testing.assert_array_equal(decoder.recover()[0], embedding)
    assert scheme.plan == Plan(k=1, n=3, needed=1, recovered="exact")


def test_redundancy_is_worker_queries_per_query(model: LinearModel) -> None:
    assert [build(model).redundancy for build in (invertible, replication, uncoded)] == [1.5, 2, 1]


def test_fewer_than_two_copies_are_no_replication(model: LinearModel) -> None:
    with pytest.raises(ValueError, match="copies: expected 2 or more, got 1"):
        replication(model, copies=1)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"k": 0, "n": 1, "needed": 1}, "1 <= k <= n"),
        ({"k": 3, "n": 2, "needed": 2}, "1 <= k <= n"),
        ({"k": 2, "n": 3, "needed": 4}, "needed"),
        ({"k": 2, "n": 3, "needed": 0}, "needed"),
        ({"k": 1, "n": 2, "needed": 1, "models": ("backbone",)}, "expected 2 models"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**numbers)  # type: ignore[arg-type]


def test_a_slot_may_run_another_model_than_the_backbone() -> None:
    plan = Plan(k=2, n=3, needed=2, models=("backbone", "backbone", "parity"))
    assert plan.models[2] == "parity"
    assert Plan(k=2, n=3, needed=2).models == ("backbone",) * 3


def test_a_scheme_needs_anchors_for_its_partial_groups(model: LinearModel) -> None:
    scheme = invertible(model)
    with pytest.raises(ValueError, match="anchors: expected 3 or more for k=4, got 0"):
        Scheme("bare", scheme.plan, scheme.encode, scheme.decoder)


def test_schemes_are_found_by_name(model: LinearModel) -> None:
    assert build_scheme("uncoded", model).name == "uncoded"
    own = uncoded(model)
    assert build_scheme(own, model) is own
    with pytest.raises(ValueError, match="scheme: expected one of"):
        build_scheme("wishful", model)
