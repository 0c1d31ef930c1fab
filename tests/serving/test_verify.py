"""A worker that lies is found, kept from queries, and its answers are put right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from codedinv.serving import CodedServer, Policy, Prediction
from codedinv.serving.versions import build_served
from codedinv.verification import ExactConsistency, OnlineConsistency
from tests.serving.helpers import check_answers, wait_until
from tests.serving.linear_model import LinearModel

Serve = Callable[..., CodedServer]
VERIFIED = Policy(verify=True, release="grace", grace_s=60.0, group_wait_s=60.0)


def calibrated(**options: Any) -> LinearModel:
    model = LinearModel(**options)
    model.consistency = ExactConsistency(model.code)  # type: ignore[attr-defined]
    return model


def test_clean_groups_raise_no_alarm(serve: Serve, backend: str) -> None:
    model = calibrated()
    server = serve(model, backend=backend, policy=VERIFIED)
    server.predict(model.queries(80))
    wait_until(lambda: server.stats().groups_checked == 20)
    stats = server.stats()
    assert stats.suspected_corruption == stats.audits == stats.corrupt == 0


@pytest.mark.parametrize("r", [1, 2])
def test_a_lying_worker_is_found_and_its_answers_are_corrected(
    serve: Serve, backend: str, r: int
) -> None:
    model = calibrated(r=r)
    corrections: dict[int, Prediction] = {}
    server = serve(
        model, backend=backend, policy=VERIFIED, workers=6, on_correction=corrections.__setitem__
    )
    server.pool.corrupt(2, 1.0)
    queries = model.queries(64)
    predictions = server.predict_batch(queries)
    wait_until(lambda: server.stats().corrupt >= 1)
    wait_until(lambda: server.stats().quarantines >= 1)
    expected = model.outputs(queries)
    wrong = [
        i
        for i, (p, row) in enumerate(zip(predictions, expected, strict=True))
        if not np.allclose(p.outputs["label"], row, atol=1e-3)
    ]
    assert wrong, "the worker gave no answer"
    wait_until(lambda: corrections)
    for query, prediction in dict(corrections).items():  # more may come meanwhile
        assert prediction.source == "exact"
        assert predictions[query].query_id == query
        check_answers([prediction], expected[[query]])
    wait_until(lambda: set(server.stats().workers) <= {"ready", "busy"})  # restarted, and probed
    check_answers(server.predict_batch(queries), expected)


def test_copies_check_each_other(serve: Serve, linear: LinearModel) -> None:
    policy = Policy(verify=True)
    server = serve(backend="thread", scheme="replication", workers=4, policy=policy)
    server.pool.corrupt(1, 1.0)
    queries = linear.queries(1)
    for _ in range(40):
        server.predict(queries[0])
    wait_until(lambda: server.stats().corrupt >= 1)


def test_what_results_are_checked_by() -> None:
    model = calibrated()
    checks = {
        scheme: build_served(model, scheme, None, verify=True).consistency
        for scheme in ("invertible", "replication", "uncoded")
    }
    assert checks["invertible"] is model.consistency  # type: ignore[attr-defined]
    assert isinstance(checks["replication"], ExactConsistency)
    assert checks["uncoded"] is None
    learnt = build_served(LinearModel(), "invertible", None, verify=True).consistency
    assert isinstance(learnt, OnlineConsistency)
    assert build_served(model, "invertible", None).consistency is None
