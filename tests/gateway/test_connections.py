"""Clients that send too slowly, too much, or never the end."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import grpc
import httpx
import psutil
import pytest

from codedinv.oip.messages import SERVICE, message
from tests.gateway.conftest import BUNDLE
from tests.gateway.servers import Gateway, get, running_gateway, wait_until

HEAD = f"POST /v2/models/{BUNDLE}/infer HTTP/1.1\r\nHost: a\r\n".encode()


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that waits a second for a request to arrive."""
    settings = {
        "models": [{"model": BUNDLE, "workers": 1}],
        "max_requests": 4,
        "receive_timeout_s": 1.0,
    }
    with running_gateway(tmp_path_factory.mktemp("hasty"), settings) as running:
        yield running


def connect(gateway: Gateway) -> socket.socket:
    host, port = gateway.ready["http"].split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_requests_that_never_arrive_keep_their_places_for_a_while_only(hasty: Gateway) -> None:
    slow = [connect(hasty) for _ in range(4)]
    for connection in slow:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
    wait_until(lambda: get(hasty, f"/v2/models/{BUNDLE}/ready").status_code == 503)
    wait_until(lambda: get(hasty, f"/v2/models/{BUNDLE}/ready").status_code == 200)
    for connection in slow:
        assert connection.recv(1) == b""
        connection.close()


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HTTP/1.1\r\nHost"], ids=["nothing", "half a head"])
def test_a_connection_with_no_request_is_closed(hasty: Gateway, sent: bytes) -> None:
    with connect(hasty) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_a_connection_that_has_asked_is_kept_longer_than_a_request_may_take(
    hasty: Gateway,
) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(2**16)
        connection.settimeout(2.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /v2 HTTP/1.1\r\n",
        b"GET /v2 HTTP/1.1\r\na: ",
        b"GET /v2?",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["headers", "a header", "a path", "trailers", "a chunk's extension"],
)
def test_a_head_without_end_is_refused_before_it_takes_memory(
    gateway: Gateway, begin: bytes
) -> None:
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    more = b"x" * 2**20 if not begin.endswith(b"\n") else b"a: " + b"x" * 2**20 + b"\r\n"
    with connect(gateway) as connection:
        connection.sendall(begin)
        with pytest.raises(ConnectionError):
            connection.sendall(64 * more)
    assert process.memory_info().rss - before < 2**24
    assert get(gateway, "/v2/health/ready").status_code == 200


def test_json_longer_than_any_request_is_refused_before_it_is_parsed(hasty: Gateway) -> None:
    body = b"[" * 8 * 2**20  # max_batch is 256: 256 * 784 * 32 bytes and some are taken
    answer = httpx.post(f"{hasty.url}/v2/models/{BUNDLE}/infer", content=body, timeout=30)
    assert answer.status_code == 413
    assert "bytes of JSON" in answer.json()["error"]


def test_messages_longer_than_any_request_are_refused_before_they_are_parsed(
    hasty: Gateway,
) -> None:
    process = psutil.Process(hasty.process.pid)
    before = process.memory_info().rss
    many = message("ModelInferRequest")(model_name=BUNDLE, outputs=[{}] * 2**20)
    with grpc.insecure_channel(hasty.ready["grpc"]) as channel:
        for method, wire in [
            ("ModelInfer", many.SerializeToString()),
            ("ModelReady", bytes(2**20)),
        ]:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(f"/{SERVICE}/{method}")(wire, timeout=30)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "message: expected at most" in refused.value.details()
    assert process.memory_info().rss - before < 2**25


def test_what_a_repository_is_told_is_short(hasty: Gateway) -> None:
    answer = httpx.post(f"{hasty.url}/v2/repository/index", content=b" " * 2**17, timeout=30)
    assert answer.status_code == 413
