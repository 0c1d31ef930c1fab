"""tritonclient's health, metadata, config, statistics and inference calls, over HTTP and gRPC,
blocking and in an event loop. The same file runs against the gateway and against a real Triton.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException

from tests.gateway.servers import Endpoint

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


class Client:
    """One of tritonclient's four, with one way to call them.

    Attributes:
        module: where its `InferInput` is.
        is_http: over HTTP.
    """

    def __init__(self, kind: str, endpoint: Endpoint) -> None:
        self.is_http = kind.startswith("http")
        self.module = triton_http if self.is_http else triton_grpc
        self._loop = asyncio.new_event_loop() if kind.endswith("aio") else None
        url = endpoint.http if self.is_http else endpoint.grpc
        if self._loop is None:
            options = {"concurrency": 4} if self.is_http else {}
            self._client = self.module.InferenceServerClient(url, **options)
        else:
            aio = triton_http_aio if self.is_http else triton_grpc_aio
            self._client = self._run(self._make(aio, url))

    @staticmethod
    async def _make(aio: Any, url: str) -> Any:
        return aio.InferenceServerClient(url)

    def _run(self, result: Any) -> Any:
        if self._loop is None:
            return result
        return self._loop.run_until_complete(result)

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """A call; gRPC's answers as JSON."""
        if not self.is_http and name.startswith("get_"):
            options["as_json"] = True
        return self._run(getattr(self._client, name)(*arguments, **options))

    def infer(self, endpoint: Endpoint, x: Any, binary: bool = True, **options: Any) -> Any:
        """An inference; the answer's `as_numpy` is by tritonclient."""
        binary_option = {"binary_data": binary} if self.is_http else {}
        sent = self.module.InferInput(endpoint.input_name, list(x.shape), "FP32")
        sent.set_data_from_numpy(x, **binary_option)
        if "outputs" not in options:
            options["outputs"] = [self.wanted(endpoint.output_name, **binary_option)]
        return self._run(self._client.infer(endpoint.model, [sent], **options))

    def wanted(self, name: str, **options: Any) -> Any:
        return self.module.InferRequestedOutput(name, **options)

    def close(self) -> None:
        self._run(self._client.close())
        if self._loop is not None:
            self._loop.close()


@pytest.fixture(params=["http", "http-aio", "grpc", "grpc-aio"])
def client(request: pytest.FixtureRequest, endpoint: Endpoint) -> Iterator[Client]:
    made = Client(request.param, endpoint)
    yield made
    made.close()


def test_health(client: Client, endpoint: Endpoint) -> None:
    assert client("is_server_live")
    assert client("is_server_ready")
    assert client("is_model_ready", endpoint.model)
    version = client("get_model_metadata", endpoint.model)["versions"][0]
    assert client("is_model_ready", endpoint.model, version)


def test_a_model_that_is_not_there_is_not_ready(client: Client) -> None:
    assert not client("is_model_ready", "nobody")


def test_server_metadata(client: Client) -> None:
    metadata = client("get_server_metadata")
    assert metadata["name"]
    assert metadata["version"]
    assert {"model_configuration", "statistics", "model_repository"} <= set(metadata["extensions"])


def test_model_metadata(client: Client, endpoint: Endpoint) -> None:
    metadata = client("get_model_metadata", endpoint.model)
    assert metadata["name"] == endpoint.model
    (tensor,) = metadata["inputs"]
    assert tensor["name"] == endpoint.input_name
    assert tensor["datatype"] == "FP32"
    assert [int(size) for size in tensor["shape"]] == [-1, *endpoint.input_shape]
    output = next(o for o in metadata["outputs"] if o["name"] == endpoint.output_name)
    assert output["datatype"] == "FP32"


def test_model_config(client: Client, endpoint: Endpoint) -> None:
    config = client("get_model_config", endpoint.model)
    config = config.get("config", config)
    assert config["name"] == endpoint.model
    assert config["max_batch_size"] == endpoint.max_batch
    (tensor,) = config["input"]
    assert tensor["data_type"] == "TYPE_FP32"
    assert [int(size) for size in tensor["dims"]] == list(endpoint.input_shape)


def test_statistics_count_what_was_asked(client: Client, endpoint: Endpoint) -> None:
    def success() -> dict[str, int]:
        found = client("get_inference_statistics", endpoint.model)["model_stats"]
        (one,) = [m for m in found if m["name"] == endpoint.model]
        counts = one["inference_stats"]["success"]
        return {
            "requests": int(counts.get("count", 0)),
            "ns": int(counts.get("ns", 0)),
            "queries": int(one.get("inference_count", 0)),
        }

    before = success()
    client.infer(endpoint, endpoint.queries(3))
    until = time.monotonic() + 10
    while (after := success()) == before and time.monotonic() < until:
        time.sleep(0.01)  # Triton counts a request after it has answered it
    assert after["requests"] - before["requests"] == 1
    assert after["queries"] - before["queries"] == 3
    assert after["ns"] > before["ns"]
    everybody = client("get_inference_statistics")["model_stats"]
    assert endpoint.model in [m["name"] for m in everybody]


def test_the_repository_index_has_the_model(client: Client, endpoint: Endpoint) -> None:
    index = client("get_model_repository_index")
    models = index if isinstance(index, list) else index["models"]
    (one,) = [m for m in models if m["name"] == endpoint.model]
    assert one.get("state", endpoint.state_of_index) == endpoint.state_of_index


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_inference(client: Client, endpoint: Endpoint, binary: bool, count: int) -> None:
    x = endpoint.queries(count)
    result = client.infer(endpoint, x, binary, request_id="seven")
    got = result.as_numpy(endpoint.output_name)
    np.testing.assert_allclose(got, endpoint.expected(x), **TOLERANCE)
    answer = result.get_response()
    identity = answer["id"] if client.is_http else answer.id
    assert identity == "seven"


def test_inference_without_naming_outputs_gives_all(client: Client, endpoint: Endpoint) -> None:
    x = endpoint.queries(2)
    result = client.infer(endpoint, x, outputs=None)
    got = result.as_numpy(endpoint.output_name)
    np.testing.assert_allclose(got, endpoint.expected(x), **TOLERANCE)


def test_inference_of_a_named_version(client: Client, endpoint: Endpoint) -> None:
    version = client("get_model_metadata", endpoint.model)["versions"][0]
    x = endpoint.queries(1)
    result = client.infer(endpoint, x, model_version=version, timeout=20_000_000)
    got = result.as_numpy(endpoint.output_name)
    np.testing.assert_allclose(got, endpoint.expected(x), **TOLERANCE)
    with pytest.raises(InferenceServerException):
        client.infer(endpoint, x, model_version="999999")


def test_the_largest_classes(client: Client, endpoint: Endpoint) -> None:
    x = endpoint.queries(2)
    expected = endpoint.expected(x).reshape(2, -1)
    result = client.infer(endpoint, x, outputs=[client.wanted(endpoint.output_name, class_count=3)])
    got = result.as_numpy(endpoint.output_name)
    assert got.shape == (2, 3)
    for row, values in zip(got, expected, strict=True):
        found = [entry.decode().split(":")[:2] for entry in row]
        largest = np.sort(values)[::-1][:3]
        np.testing.assert_allclose([float(value) for value, _ in found], largest, **TOLERANCE)
        np.testing.assert_allclose(values[[int(index) for _, index in found]], largest, **TOLERANCE)


def test_compressed_bodies(client: Client, endpoint: Endpoint) -> None:
    x = endpoint.queries(4)
    if client.is_http:
        options = [
            {"request_compression_algorithm": a, "response_compression_algorithm": a}
            for a in ("gzip", "deflate")
        ]
    else:
        options = [{"compression_algorithm": a} for a in ("gzip", "deflate")]
    for option in options:
        got = client.infer(endpoint, x, binary=False, **option).as_numpy(endpoint.output_name)
        np.testing.assert_allclose(got, endpoint.expected(x), **TOLERANCE)


def test_errors_are_exceptions_with_a_reason(client: Client, endpoint: Endpoint) -> None:
    x = endpoint.queries(1)

    def reason(**options: Any) -> str:
        model = options.pop("model", endpoint.model)
        array = options.pop("array", x)
        name = options.pop("name", endpoint.input_name)
        sent = client.module.InferInput(name, list(array.shape), options.pop("datatype", "FP32"))
        sent.set_data_from_numpy(array)
        with pytest.raises(InferenceServerException) as raised:
            client("infer", model, [sent], **options)
        return str(raised.value)

    assert "nobody" in reason(model="nobody")
    assert reason(name="nothing")
    assert reason(array=x.astype(np.int32), datatype="INT32")
    assert reason(array=x[..., :-1].copy())
    assert reason(outputs=[client.wanted("nothing")])
    # And it goes on.
    got = client.infer(endpoint, x).as_numpy(endpoint.output_name)
    np.testing.assert_allclose(got, endpoint.expected(x), **TOLERANCE)


def test_answers_say_where_they_come_from(client: Client, endpoint: Endpoint) -> None:
    if not endpoint.says_source:
        pytest.skip("only codedinv's answers say that")
    answer = client.infer(endpoint, endpoint.queries(3)).get_response()
    if client.is_http:
        source, latency = answer["parameters"]["source"], answer["parameters"]["latency"]
    else:
        source = answer.parameters["source"].string_param
        latency = answer.parameters["latency"].double_param
    assert len(source.split(",")) == 3
    assert set(source.split(",")) <= {"exact", "reconstructed"}
    assert 0 < latency < 30


def test_asynchronous_inference_over_http(endpoint: Endpoint) -> None:
    client = Client("http", endpoint)
    batches = [endpoint.queries(2, seed) for seed in range(8)]
    waiting = []
    for x in batches:
        sent = triton_http.InferInput(endpoint.input_name, list(x.shape), "FP32")
        sent.set_data_from_numpy(x)
        waiting.append(client("async_infer", endpoint.model, [sent]))
    for x, one in zip(batches, waiting, strict=True):
        got = one.get_result().as_numpy(endpoint.output_name)
        np.testing.assert_allclose(got, endpoint.expected(x), **TOLERANCE)
    client.close()


def test_asynchronous_inference_over_grpc(endpoint: Endpoint) -> None:
    client = Client("grpc", endpoint)
    batches = [endpoint.queries(2, seed) for seed in range(8)]
    found: dict[int, Any] = {}
    all_there = threading.Event()

    def keep(number: int) -> Callable[[Any, Any], None]:
        def done(result: Any, error: Any) -> None:
            found[number] = error if error is not None else result
            if len(found) == len(batches):
                all_there.set()

        return done

    for number, x in enumerate(batches):
        sent = triton_grpc.InferInput(endpoint.input_name, list(x.shape), "FP32")
        sent.set_data_from_numpy(x)
        client("async_infer", endpoint.model, [sent], callback=keep(number), client_timeout=60)
    assert all_there.wait(60)
    for number, x in enumerate(batches):
        got = found[number].as_numpy(endpoint.output_name)
        np.testing.assert_allclose(got, endpoint.expected(x), **TOLERANCE)
    client.close()
