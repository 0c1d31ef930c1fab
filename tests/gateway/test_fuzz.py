"""Thousands of seeded requests: each is refused with a 4xx or answered rightly, and the gateway
stays ready and does not grow."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest

from codedinv.model import CodedModel
from codedinv.oip import grpc_codec, rest
from codedinv.oip.messages import SERVICE, message
from tests.gateway.conftest import BUNDLE
from tests.gateway.fuzz import Case, Fuzzer
from tests.gateway.servers import Gateway, get

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture(scope="module")
def model() -> CodedModel:
    return CodedModel.load(BUNDLE)


def check_answer(model: CodedModel, case: Case, answer: Any) -> None:
    """An answer has a finite row for each query; of a request left whole, the model's own."""
    (label,) = answer.outputs
    assert label.array.ndim == 2
    if label.array.dtype == object:
        return
    assert np.isfinite(label.array).all()
    if case.queries is not None:
        expected = model.head(model.embed(case.queries), "label")
        assert answer.parameters["source"] == ",".join(["exact"] * len(case.queries))
        np.testing.assert_allclose(label.array, expected, rtol=1e-3, atol=1e-3)


def ask_http(client: httpx.Client, gateway: Gateway, model: CodedModel, case: Case) -> bool:
    url = f"{gateway.url}/v2/models/{case.model}/infer"
    response = client.post(url, content=case.wire, headers=case.headers)
    if response.status_code == 200:
        length = response.headers.get(rest.HEADER_LENGTH)
        found = rest.decode_response(response.content, None if length is None else int(length))
        check_answer(model, case, found)
        return True
    assert 400 <= response.status_code < 500, (response.status_code, response.text, case)
    assert case.queries is None, response.text
    return False


def ask_grpc(call: Any, model: CodedModel, case: Case) -> bool:
    future = call.future(case.wire, timeout=60)
    error = future.exception()
    if error is None:
        answer = message("ModelInferResponse").FromString(future.result())
        check_answer(model, case, grpc_codec.decode_response(answer))
        return True
    assert error.code() in REFUSALS, (error, case)
    assert case.queries is None, error
    return False


def fuzz(gateway: Gateway, model: CodedModel, count: int, seed: int) -> None:
    fuzzer = Fuzzer(seed)
    process = psutil.Process(gateway.process.pid)
    answered, memory = 0, 0
    with (
        httpx.Client(timeout=60) as client,
        grpc.insecure_channel(gateway.ready["grpc"]) as channel,
    ):
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for number in range(count):
            if number % 2:
                answered += ask_grpc(call, model, fuzzer.grpc())
            else:
                answered += ask_http(client, gateway, model, fuzzer.http())
            if number % 100 == 0:
                assert get(gateway, "/v2/health/ready").status_code == 200
            if number == count // 4:
                memory = process.memory_info().rss
    assert count // 20 < answered < count
    assert process.memory_info().rss < 1.1 * memory + 2**23


def test_hundreds_of_requests(gateway: Gateway, model: CodedModel) -> None:
    fuzz(gateway, model, 400, seed=1)


@pytest.mark.servers
@pytest.mark.timeout(900)
def test_ten_thousand_requests(gateway: Gateway, model: CodedModel) -> None:
    fuzz(gateway, model, 10_000, seed=2)
