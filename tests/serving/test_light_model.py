"""What a light model is for: fallback answers, guidance, groups of alike queries, fusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codedinv.model.light import Fusion
from codedinv.schemes.scheme import Array
from codedinv.serving import CodedServer, Policy
from tests.serving.linear_model import LinearModel


class WithLight(LinearModel):
    """Its light model knows the label from the first pixel: sure of it when the pixel is bright."""

    def light(self, x: Array) -> dict[str, Array]:
        first = x.reshape(len(x), -1)[:, :1]
        logits = np.zeros((len(x), 10), np.float32)
        logits[:, :1] = 20 * first
        return {"label": logits, "count": np.zeros((len(x), 3), np.float32)}


@pytest.fixture
def model(tmp_path: Path) -> WithLight:
    return WithLight().saved(tmp_path / "bundle")  # type: ignore[return-value]


def test_a_guided_server_copies_the_query_that_the_light_model_doubts(model: WithLight) -> None:
    queries = model.queries(4)
    queries[:, 0, 0, 0] = [1.0, 0.9, 0.0, 0.8]
    policy = Policy(hang_timeout_s=None)
    with CodedServer(model, backend="thread", scheme="guided", policy=policy) as server:
        for worker in range(4):  # the fifth gets the copy, the first four the queries in order
            server.pool.hang(worker)
        predictions = [f.result(30) for f in [server.submit(q, deadline=3.0) for q in queries]]
        copied = [p for p in predictions if p.source == "hedged"]
        assert predictions[2] in copied
        np.testing.assert_allclose(
            predictions[2].outputs["label"], model.outputs(queries)[2], atol=1e-4
        )
        others = [p for i, p in enumerate(predictions) if i != 2]
        assert {p.source for p in others} == {"fallback"}
        np.testing.assert_array_equal(
            others[0].outputs["label"], model.light(queries[:1])["label"][0]
        )


def test_reconstructed_answers_are_fused_with_the_light_models(model: WithLight) -> None:
    model.fusion = Fusion({"arrival": (0.0, 1.0), "alike": (0.0, 1.0)})  # type: ignore[attr-defined]
    queries = model.queries(4)
    with CodedServer(model, backend="thread", policy=Policy(hang_timeout_s=None)) as server:
        server.pool.hang(0)
        predictions = [f.result(30) for f in [server.submit(q, deadline=10.0) for q in queries]]
    (degraded,) = [i for i, p in enumerate(predictions) if p.source == "reconstructed"]
    light = model.light(queries[degraded : degraded + 1])["label"][0]
    mixed = predictions[degraded].outputs["label"]
    np.testing.assert_allclose(mixed - mixed[1], light - light[1], atol=1e-4)


def test_alike_queries_are_coded_together_and_answered_rightly(model: WithLight) -> None:
    queries = model.queries(200)
    policy = Policy(always_encode=True)
    with CodedServer(model, backend="thread", grouping="alike", policy=policy) as server:
        server.pool.slow(1, 0.01)
        predictions = server.predict_batch(queries)
    outputs = np.stack([p.outputs["label"] for p in predictions])
    np.testing.assert_allclose(outputs, model.outputs(queries), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "guided"}, "light model"),
        ({"grouping": "alike"}, "light model"),
        ({"grouping": "colour"}, "arrival"),
    ],
)
def test_what_needs_a_light_model_says_so(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    model = LinearModel().saved(tmp_path / "bundle")
    with pytest.raises(ValueError, match=message):
        CodedServer(model, backend="thread", **options)  # type: ignore[arg-type]
