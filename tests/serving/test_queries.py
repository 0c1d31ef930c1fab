"""What callers send is taken, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from codedinv.serving import CodedServer, Policy, Prediction
from codedinv.serving.queries import QueryCheck, check_deadline
from tests.serving.helpers import check_answers, next_workers
from tests.serving.linear_model import LinearModel

Serve = Callable[..., CodedServer]
SHAPE = (1, 4, 4)
ANY = QueryCheck(SHAPE, None)
PIXELS = QueryCheck(SHAPE, (0.0, 1.0))
RAGGED = [[[0.0] * 4] * 3 + [[0.0] * 3]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(SHAPE, dtype=torch.bfloat16), "x: expected an array of numbers.*bfloat16"),
        (torch.zeros(SHAPE, dtype=torch.float64), "x: expected dtype float32 or float16"),
        ("a picture", "x: expected dtype float32 or float16"),
        (["a", "b"], "x: expected an array of numbers"),
        (RAGGED, "x: expected an array of numbers"),
        ([[None]], "x: expected"),
        (None, "x: expected dtype float32 or float16, got object"),
        ({"a": 1}, "x: expected dtype float32 or float16, got object"),
        ([10**400], "x: expected an array of numbers"),
        (np.float32(1), r"x: expected shape .*\(1, 4, 4\).*, got \(\)"),
        (np.zeros(SHAPE, np.complex64), "x: expected dtype"),
    ],
)
def test_what_is_no_query_is_a_value_error(x: Any, message: str) -> None:
    for check in (ANY.one, ANY.batch, ANY.one_or_batch):
        with pytest.raises(ValueError, match=message):
            check(x)


@pytest.mark.parametrize("value", [-0.01, 1.01, 1e8, np.nan, np.inf, -np.inf])
def test_values_out_of_the_models_range_are_refused(value: float) -> None:
    query = np.full(SHAPE, 0.5, np.float32)
    query[0, 1, 2] = value
    with pytest.raises(ValueError, match=r"x: expected finite values in \[0\.0, 1\.0\]"):
        PIXELS.one(query)
    with pytest.raises(ValueError, match="which this model was made for"):
        PIXELS.batch(np.stack([np.zeros_like(query), query]))


def test_rounding_at_the_ends_of_the_range_is_no_mistake() -> None:
    query = np.array([-0.0009, 0.0, 1.0, 1.0009] * 4, np.float32).reshape(SHAPE)
    np.testing.assert_array_equal(PIXELS.one(query), query)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_model_without_a_range_takes_any_finite_value(dtype: Any) -> None:
    query = np.full(SHAPE, np.finfo(dtype).max, dtype)
    query[0, 0, 0] = -query[0, 0, 1]
    np.testing.assert_array_equal(ANY.one(query), query.astype(np.float32))


def test_a_query_is_a_copy() -> None:
    query = np.zeros(SHAPE, np.float32)
    taken = ANY.one(query)
    query[:] = 1
    assert not taken.any()


def test_an_empty_batch_has_no_answers(serve: Serve) -> None:
    server = serve(backend="thread")
    assert server.predict(np.zeros((0, *SHAPE), np.float32)) == []
    assert server.predict_batch(np.zeros((0, *SHAPE), np.float32)) == []


@pytest.mark.parametrize(
    "deadline", ["0.1", float("nan"), float("inf"), 0, -1, True, [1.0], 10**400, object(), b"1"]
)
def test_a_deadline_that_is_no_positive_number_is_a_value_error(
    serve: Serve, linear: LinearModel, deadline: Any
) -> None:
    with pytest.raises(ValueError, match="deadline: expected a positive number of seconds"):
        check_deadline(deadline)
    server = serve(backend="thread")
    with pytest.raises(ValueError, match="deadline: expected a positive number of seconds"):
        server.submit(linear.queries(1)[0], deadline=deadline)


@pytest.mark.parametrize("deadline", [1, 0.5, np.float32(0.5), np.int64(2), 1e300])
def test_any_positive_number_is_a_deadline(deadline: Any) -> None:
    assert check_deadline(deadline) == float(deadline)


def test_a_query_out_of_range_spoils_no_neighbours_reconstruction(serve: Serve) -> None:
    model = LinearModel()
    model.input_range = (0.0, 1.0)  # type: ignore[attr-defined]
    server = serve(model, backend="thread", policy=Policy(hang_timeout_s=60.0))
    queries = model.queries(4)
    server.pool.hang(next_workers(server)[0])
    futures = [server.submit(q) for q in queries[:3]]
    with pytest.raises(ValueError, match="this model was made for"):
        server.submit(queries[3] * np.float32(1e8))
    futures.append(server.submit(queries[3]))
    predictions = [f.result(30) for f in futures]
    check_answers(predictions, model.outputs(queries))
    assert predictions[0].source == "reconstructed"


def test_predict_batch_is_a_list_for_one_query_too(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread")
    queries = linear.queries(1)
    check_answers(server.predict_batch(queries), linear.outputs(queries))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, \*\(1, 4, 4\)\)"):
        server.predict_batch(queries[0])


def test_a_prediction_is_plain_for_json(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread", policy=Policy(release="grace", grace_s=60.0))
    prediction = server.predict(linear.queries(1)[0])
    assert isinstance(prediction, Prediction)
    plain = json.loads(json.dumps(prediction.to_dict()))
    assert plain["source"] == "exact"
    assert plain["degraded"] is False
    assert plain["query_id"] == 0
    assert plain["latency"] == prediction.latency
    np.testing.assert_allclose(plain["outputs"]["label"], prediction.outputs["label"])


@pytest.mark.parametrize(
    ("source", "degraded"),
    [("exact", False), ("hedged", False), ("reconstructed", True), ("fallback", True)],
)
def test_what_the_backbone_says_is_not_degraded_whoever_ran_it(source: Any, degraded: bool) -> None:
    assert Prediction({}, source, 0.1, 7).degraded is degraded
