"""What is refused, over REST and over gRPC, and that both say it the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from codedinv.oip import InferRequest, RequestedOutput, Tensor, grpc_codec, rest
from codedinv.oip.messages import SERVICE, Stub, message
from tests.gateway.servers import Gateway, get, infer_body, wait_until

X = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
INFER = "/v2/models/fashion-mnist/infer"
TENSOR = infer_body(X)["inputs"][0]

Refused = pytest.mark.parametrize(
    ("request_", "status", "code", "said"),
    [
        (InferRequest([Tensor("x", X)]), 400, "INVALID_ARGUMENT", "one tensor 'query'"),
        (
            InferRequest([Tensor("query", X), Tensor("x", X)]),
            *(400, "INVALID_ARGUMENT", "one tensor 'query'"),
        ),
        (
            InferRequest([Tensor("query", X.astype(np.float64))]),
            *(400, "INVALID_ARGUMENT", "expected FP32 or FP16, got FP64"),
        ),
        (InferRequest([Tensor("query", X[0])]), 400, "INVALID_ARGUMENT", "expected shape"),
        (InferRequest([Tensor("query", X[:0])]), 400, "INVALID_ARGUMENT", "expected shape"),
        (InferRequest([Tensor("query", X + 7)]), 400, "INVALID_ARGUMENT", "got 7"),
        (InferRequest([Tensor("query", X * np.nan)]), 400, "INVALID_ARGUMENT", "finite"),
        (
            InferRequest([Tensor("query", np.repeat(X, 40, 0))]),
            *(413, "RESOURCE_EXHAUSTED", "at most 64 queries, got 80"),
        ),
        (
            InferRequest([Tensor("query", X)], [RequestedOutput("colour")]),
            *(400, "INVALID_ARGUMENT", "outputs: expected some of"),
        ),
        (
            InferRequest([Tensor("query", X)], [RequestedOutput("label")] * 2),
            *(400, "INVALID_ARGUMENT", "each once"),
        ),
        *(
            (InferRequest([Tensor("query", X)], parameters=p), 400, "INVALID_ARGUMENT", said)
            for p, said in [
                ({"task": "colour"}, "task: expected one of"),
                ({"task": 3}, "task: expected one of"),
                ({"scheme": "replication"}, "served with 'invertible'"),
                ({"timeout": -1}, "timeout: expected microseconds"),
                ({"timeout": 0.5}, "timeout: expected microseconds"),
                ({"timeout": True}, "timeout: expected microseconds"),
            ]
        ),
    ],
)


@pytest.fixture(scope="module")
def channel(gateway: Gateway) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.ready["grpc"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Stub:
    return Stub(channel)


def post(gateway: Gateway, path: str, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(gateway.url + path, content=content, headers=headers, timeout=30)


@Refused
def test_rest_refuses(
    gateway: Gateway, request_: InferRequest, status: int, code: str, said: str
) -> None:
    body, length = rest.encode_request(request_)
    answer = post(gateway, INFER, body, **{rest.HEADER_LENGTH: str(length)})
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert said in answer.json()["error"]
    assert get(gateway, "/v2/health/ready").status_code == 200


@Refused
def test_grpc_refuses(
    stub: Stub, request_: InferRequest, status: int, code: str, said: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(grpc_codec.encode_request("fashion-mnist", request_), timeout=30)
    assert raised.value.code() is grpc.StatusCode[code]
    assert said in raised.value.details()
    assert stub.ServerReady(message("ServerReadyRequest")()).ready


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/fashion-mnist/versions/7", 404),
        ("GET", "/v2/models/fashion-mnist/versions/7/config", 404),
        ("GET", "/v2/models/nobody/stats", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/repository/models/nobody/load", 404),
        ("POST", "/v2/repository/models/nobody/unload", 404),
        ("GET", INFER, 405),
        ("DELETE", "/v2/health/live", 405),
        ("PATCH", "/v2", 405),
        ("HEAD", "/v2/health/live", 200),
    ],
)
def test_paths_and_methods(gateway: Gateway, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, gateway.url + path, timeout=30)
    assert answer.status_code == status
    if status >= 400:
        assert answer.json()["error"]
    if status == 405:
        assert answer.headers["allow"]


def test_a_body_beyond_the_limit_is_413_and_exhausts_a_resource(
    gateway: Gateway, stub: Stub
) -> None:
    assert post(gateway, INFER, bytes(2**20 + 1)).status_code == 413
    huge = InferRequest([Tensor("query", np.zeros((700, 1, 28, 28), np.float32))])
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(grpc_codec.encode_request("fashion-mnist", huge), timeout=30)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_wrong_name_and_a_wrong_count_are_told_at_once(gateway: Gateway, stub: Stub) -> None:
    wrong = {**TENSOR, "name": "image", "data": TENSOR["data"][:-1]}
    answer = httpx.post(gateway.url + INFER, json={"inputs": [wrong]}, timeout=30)
    request = message("ModelInferRequest")(model_name="fashion-mnist")
    request.inputs.add(name="image", datatype="FP32", shape=X.shape)
    request.raw_input_contents.append(bytes(4))
    with pytest.raises(grpc.RpcError) as raised:
        stub.ModelInfer(request, timeout=30)
    assert answer.status_code == 400
    for said in (answer.json()["error"], raised.value.details()):
        assert "inputs: expected 'query', got ['image']; tensor 'image': expected" in said


def test_a_bomb_over_grpc_is_not_unpacked(gateway: Gateway, channel: grpc.Channel) -> None:
    """The client takes a second to make it, and the gateway none to refuse it."""
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    process = psutil.Process(gateway.process.pid)
    before = process.cpu_times()
    with pytest.raises(grpc.RpcError) as raised:
        call(bytes(100 * 2**20), timeout=100, compression=grpc.Compression.Gzip)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.5


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v2/repository/index", b'{"ready": 3}', "expected true or false"),
        ("/v2/repository/index", b"[]", "expected a JSON object"),
        ("/v2/repository/models/fashion-mnist/load", b"{", "expected JSON"),
        (
            "/v2/repository/models/fashion-mnist/load",
            json.dumps({"parameters": {"config": "{}"}}).encode(),
            "loaded as it is configured",
        ),
    ],
)
def test_what_a_repository_refuses(gateway: Gateway, path: str, body: bytes, said: str) -> None:
    answer = post(gateway, path, body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_half_floats_are_taken(gateway: Gateway) -> None:
    half = InferRequest([Tensor("query", X.astype(np.float16))], binary=True)
    body, length = rest.encode_request(half)
    answer = post(gateway, INFER, body, **{rest.HEADER_LENGTH: str(length)})
    assert answer.status_code == 200
    header_length = int(answer.headers[rest.HEADER_LENGTH])
    (label,) = rest.decode_response(answer.content, header_length).outputs
    assert label.array.shape == (2, 10)


def test_request_ids_come_back_and_bad_ones_are_replaced(gateway: Gateway) -> None:
    def id_of(sent: str) -> str:
        return str(get(gateway, "/v2", headers={"x-request-id": sent}).headers["x-request-id"])

    assert id_of("abc-123") == "abc-123"
    assert id_of("a b") != "a b"
    assert id_of("x" * 1000) != "x" * 1000


def test_where_time_runs_out_the_light_model_answers(gateway: Gateway, stub: Stub) -> None:
    request = InferRequest([Tensor("query", X)], parameters={"timeout": 1})
    answer = stub.ModelInfer(grpc_codec.encode_request("fashion-mnist", request), timeout=30)
    assert answer.parameters["source"].string_param == "fallback,fallback"
    body, length = rest.encode_request(request)
    found = post(gateway, INFER, body, **{rest.HEADER_LENGTH: str(length)}).json()
    assert found["parameters"]["source"] == "fallback,fallback"


def test_bytes_that_are_no_message_over_grpc(channel: grpc.Channel) -> None:
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"\x0a\xff", timeout=30)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ModelInferRequest" in raised.value.details()


def test_unknown_models_over_grpc(stub: Stub) -> None:
    for call, request in [
        (stub.ModelMetadata, message("ModelMetadataRequest")(name="nobody")),
        (stub.ModelConfig, message("ModelConfigRequest")(name="nobody")),
        (stub.ModelStatistics, message("ModelStatisticsRequest")(name="nobody")),
        (stub.ModelInfer, grpc_codec.encode_request("nobody", InferRequest([Tensor("query", X)]))),
        (stub.ModelInfer, message("ModelInferRequest")()),
        (stub.RepositoryModelLoad, message("RepositoryModelLoadRequest")(model_name="nobody")),
    ]:
        with pytest.raises(grpc.RpcError) as raised:
            call(request, timeout=30)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert not stub.ModelReady(message("ModelReadyRequest")(name="nobody"), timeout=30).ready


def test_calls_that_it_does_not_have_are_unimplemented(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.TraceSetting(message("TraceSettingRequest")(), timeout=30)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_grpc_health(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_grpc_reflection_describes_the_service(channel: grpc.Channel) -> None:
    found = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in list(found.get_services())
    service = DescriptorPool(found).FindServiceByName(SERVICE)
    assert "ModelInfer" in [method.name for method in service.methods]


def test_openapi_names_every_path(gateway: Gateway) -> None:
    document = get(gateway, "/openapi.json").json()
    for path, operations in document["paths"].items():
        url = path.replace("{name}", "fashion-mnist").replace("{version}", "7")
        for method in set(operations) & {"get", "post"}:
            if not url.endswith("load"):
                answer: Any = httpx.request(method, gateway.url + url, timeout=30)
                assert str(answer.status_code) in operations[method]["responses"]


@pytest.mark.parametrize("key", ["name", "datatype"])
def test_a_clients_own_words_are_cut_short_in_what_it_is_told_and_in_the_log(
    gateway: Gateway, stub: Stub, key: str
) -> None:
    before = gateway.log.stat().st_size
    body = {"inputs": [TENSOR | {key: 100_000 * "\U0001f600", "data": [1.0]}]}
    answer = httpx.post(gateway.url + INFER, json=body)
    assert answer.status_code == 400
    assert len(answer.json()["error"]) <= 1000
    tensor = {"name": "query", "datatype": "FP32", "shape": X.shape} | {key: 100_000 * "\U0001f600"}
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(
            message("ModelInferRequest")(model_name="fashion-mnist", inputs=[tensor]), timeout=60
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert get(gateway, f"/v2/{'x' * 50_000}").status_code == 404
    wait_until(lambda: "xxxx" in gateway.log.read_text()[before:])
    assert gateway.log.stat().st_size - before < 40_000
