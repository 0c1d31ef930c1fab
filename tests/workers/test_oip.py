"""Workers that are servers of the Open Inference Protocol, over gRPC and over HTTP."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="grpc is not installed: pip install 'codedinv[oip]'")
pytest.importorskip("orjson", reason="orjson is not installed: pip install 'codedinv[oip]'")

from codedinv.serving import CodedServer, Policy
from codedinv.workers import BackboneSpec, Died, Dropped, Message, Ready, Result, TaskError
from codedinv.workers.integrity import content_hash
from codedinv.workers.oip import Endpoint, OipPool, Security
from tests.serving.helpers import check_answers, wait_until
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import listen
from tests.workers.oip_servers import GrpcServer, HttpServer, OipServer, tensor

StartServer = Callable[..., Any]
Connect = Callable[..., OipPool]


@pytest.fixture(params=[GrpcServer, HttpServer], ids=["grpc", "http"])
def kind(request: pytest.FixtureRequest) -> type[OipServer]:
    """Each test that asks for it runs over either protocol."""
    return request.param


@pytest.fixture
def start_server(kind: type[OipServer], linear: LinearModel) -> Iterator[StartServer]:
    """Starts servers of the linear model."""
    with ExitStack() as stack:

        def start(port: int = 0, kind: type[OipServer] = kind) -> Any:
            server: Any = kind(linear, port)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def connect(spec: BackboneSpec) -> Iterator[Connect]:
    """Makes pools of servers; worker 0 is started."""
    with ExitStack() as stack:

        def make(*servers: Any, model: str = "linear", **options: Any) -> OipPool:
            models = options.pop("models", replace(spec, name="linear"))
            pool = OipPool(models, [url(server, model) for server in servers], **options)
            stack.callback(pool.close, 5.0)
            pool.start(0, 1)
            return pool

        yield make


def url(server: Any, model: str = "") -> str:
    return f"{server.scheme}://127.0.0.1:{server.port}" + (f"/{model}" if model else "")


def ready(pool: OipPool) -> OipPool:
    assert listen(pool, 1) == [Ready(0, 1)]
    return pool


def death(pool: OipPool) -> str:
    (message,) = listen(pool, 1)
    assert isinstance(message, Died), message
    return message.reason


def ask(pool: OipPool, model: LinearModel, task: int = 7) -> Message:
    pool.send(0, 1, task, "backbone", model.queries(1)[0])
    (message,) = listen(pool, 1)
    return message


# ---- tasks


def test_a_server_gives_the_embedding(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    pool = ready(connect(start_server()))
    for _ in range(3):
        result = ask(pool, linear)
        assert isinstance(result, Result)
        np.testing.assert_allclose(result.embedding, linear.embed(linear.queries(1))[0], atol=1e-5)
        assert result.embedding.flags.writeable, "the receiver's own"


def test_a_server_whose_model_takes_no_batch(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    server.signature = {
        "inputs": [tensor("x", [1, 4, -1])],
        "outputs": [tensor("y", [4, 2, 2]), tensor("embedding", [4, 2, 2])][:1],
    }
    assert isinstance(ask(ready(connect(server)), linear), Result)


def test_an_error_of_one_request_is_the_tasks_and_the_worker_goes_on(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.error = "out of luck"
    message = ask(pool, linear)
    assert isinstance(message, TaskError)
    assert "out of luck" in message.reason
    server.error = ""
    assert isinstance(ask(pool, linear), Result)


def test_an_answer_of_another_shape_is_an_error(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.falsify = lambda embeddings: embeddings.reshape(1, 2, 8)
    message = ask(pool, linear)
    assert isinstance(message, TaskError)
    assert "embedding: expected FP32 [1, 4, 2, 2], got FP32 [1, 2, 8]" in message.reason


def test_the_answer_to_another_request_is_an_error(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.identity = "task-8"
    message = ask(pool, linear, 7)
    assert isinstance(message, TaskError)
    assert "expected that of 'task-7', got that of 'task-8'" in message.reason
    assert isinstance(ask(pool, linear, 8), Result)


def test_no_more_tasks_than_agreed_are_at_the_server(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.gate.clear()
    for task in (1, 2, 3):
        pool.send(0, 1, task, "backbone", linear.queries(1)[0])
    pool.cancel(0, 1, 3)
    assert listen(pool, 1) == [Dropped(0, 1, 3)], "it waited at the pool"
    server.gate.set()
    assert [(type(m), m.task) for m in listen(pool, 2)] == [(Result, 1), (Result, 2)]
    assert server.begun == 3, "with the one that every worker answers before it is ready"


def test_an_unknown_model_is_an_error(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    pool = ready(connect(start_server()))
    pool.send(0, 1, 7, "parity", linear.queries(1)[0])
    reason = "model: expected one of ['backbone'], got 'parity'"
    assert listen(pool, 1) == [TaskError(0, 1, 7, reason)]


# ---- cancellation


@pytest.mark.parametrize("kind", [GrpcServer], ids=["grpc"], indirect=True)
def test_grpc_calls_off_a_task_behind_another_which_counts_until_that_has_ended(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server, in_flight=2))
    server.gate.clear()
    pool.send(0, 1, 1, "backbone", linear.queries(1)[0])
    wait_until(lambda: server.begun == 2)  # with the one that every worker answers at first
    for task in (2, 3):
        pool.send(0, 1, task, "backbone", linear.queries(1)[0])
    wait_until(lambda: server.arrived == 3)
    pool.cancel(0, 1, 1)
    pool.cancel(0, 1, 2)
    pool.cancel(0, 1, 2)
    assert pool.poll(0.2) == [], "the first has begun, and the second takes its place still"
    server.gate.set()
    messages = listen(pool, 3)
    assert {m.task: type(m) for m in messages} == {1: Result, 2: Dropped, 3: Result}
    assert server.cancelled == 1
    assert server.begun == 3


@pytest.mark.parametrize("kind", [HttpServer], ids=["http"], indirect=True)
def test_http_takes_nothing_back_that_is_at_the_server(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server, in_flight=2))
    server.gate.clear()
    for task in (1, 2):
        pool.send(0, 1, task, "backbone", linear.queries(1)[0])
        pool.cancel(0, 1, task)
    server.gate.set()
    assert {m.task: type(m) for m in listen(pool, 2)} == {1: Result, 2: Result}


# ---- before the first task


def test_a_worker_is_ready_when_server_and_model_are(
    start_server: StartServer, connect: Connect
) -> None:
    server = start_server()
    server.is_ready = False
    pool = connect(server)
    assert pool.poll(0.3) == []
    server.is_model_ready, server.is_ready = False, True
    assert pool.poll(0.3) == []
    server.is_model_ready = True
    ready(pool)


def test_a_worker_is_not_ready_before_its_server_has_answered_a_query(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.gate.clear()
    pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
    wait_until(lambda: server.begun == 2)
    pool.retire(0, 1)  # as the front end does with a worker that hangs; the server computes on
    pool.start(0, 2)
    assert pool.poll(0.5) == [], "the abandoned request is in the way"
    server.gate.set()
    assert listen(pool, 1) == [Ready(0, 2)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"inputs": [tensor("query", [-1, 3, 4, 4])]}, "query: expected [-1, 1, 4, 4] or"),
        ({"inputs": [tensor("query", [-1, 1, 4, 4], "FP16")]}, "expected FP32, the server has FP1"),
        ({"inputs": [tensor("a", [1]), tensor("b", [1])]}, "one of name 'query'; the server has ["),
        ({"outputs": [tensor("embedding", [-1, 10])]}, "embedding: expected [-1, 4, 2, 2] or"),
        ({"outputs": [tensor("embedding", [4, 2, 2])]}, "expected a batch axis in both or neither"),
    ],
)
def test_a_model_of_another_signature_is_refused(
    start_server: StartServer, connect: Connect, change: dict[str, Any], reason: str
) -> None:
    server = start_server()
    server.signature |= change
    assert reason in death(connect(server))


def test_other_weights_than_the_front_ends_are_refused(
    start_server: StartServer, connect: Connect, linear: LinearModel, spec: BackboneSpec
) -> None:
    server = start_server()
    server.sha256 = "0" * 64
    pool = connect(server)
    assert "codedinv_sha256: expected" in death(pool)
    assert linear.folder is not None
    server.sha256 = content_hash(linear.folder, spec.hashes) or ""
    assert len(server.sha256) == 64
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]


def test_a_model_that_the_server_does_not_have(start_server: StartServer, connect: Connect) -> None:
    assert "unknown model other" in death(connect(start_server(), model="other"))


def test_nobody_at_the_address(start_server: StartServer, connect: Connect) -> None:
    server = start_server()
    server.stop()
    assert "cannot be reached" in death(connect(server))


def test_a_server_that_takes_connections_and_says_nothing_is_waited_for(
    kind: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codedinv.workers.oip.pool._QUESTION_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        pool = connect(SimpleNamespace(scheme=kind.scheme, port=port))
        assert pool.poll(1.0) == [], "its owner says when that is too long"
        pool.retire(0, 1)


# ---- the end


def test_a_server_that_goes_is_a_death_and_is_connected_to_again(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.gate.clear()
    pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
    wait_until(lambda: server.begun == 2)
    server.stop()
    death(pool)
    start_server(server.port)
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]
    pool.send(0, 2, 9, "backbone", linear.queries(1)[0])
    assert isinstance(listen(pool, 1)[0], Result)


@pytest.mark.parametrize("kind", [GrpcServer], ids=["grpc"], indirect=True)
def test_grpc_tells_of_a_server_that_goes_while_nothing_is_asked(
    start_server: StartServer, connect: Connect
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.stop()
    assert "the connection is lost" in death(pool)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", [GrpcServer], ids=["grpc"], indirect=True)
def test_grpc_says_nothing_of_a_connection_that_is_closed_early(
    start_server: StartServer, connect: Connect
) -> None:
    server = start_server()
    for _ in range(5):
        ready(connect(server)).close(5.0)
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "codedinv-hang-up"])


@pytest.mark.parametrize("kind", [HttpServer], ids=["http"], indirect=True)
def test_a_socket_that_the_server_closed_is_replaced(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    assert isinstance(ask(pool, linear), Result)
    server.hang_up()
    assert isinstance(ask(pool, linear), Result)


@pytest.mark.parametrize("kind", [HttpServer], ids=["http"], indirect=True)
@pytest.mark.parametrize("stated_bytes", [10**4, 2**28, 10**15])
def test_an_answer_that_is_cut_short_is_a_death(
    start_server: StartServer, connect: Connect, linear: LinearModel, stated_bytes: int
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.stated_bytes = stated_bytes
    message = ask(pool, linear)
    assert isinstance(message, Died)
    assert "IncompleteRead" in message.reason


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_whose_answer_never_ends_keeps_no_thread(
    spec: BackboneSpec, answer: bytes
) -> None:
    over = threading.Event()

    def trickle(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.sendall(answer)
            while not over.wait(0.05):
                client.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as server:
        pool = OipPool(spec, [f"http://127.0.0.1:{server.getsockname()[1]}"])
        pool.start(0, 1)
        client, _ = server.accept()
        trickling = threading.Thread(target=trickle, args=(client,))
        trickling.start()
        pool.retire(0, 1)
        name = "codedinv-remote-0.1"
        wait_until(lambda: name not in [thread.name for thread in threading.enumerate()])
        over.set()
        trickling.join()
        pool.close(1.0)


def test_a_model_that_is_taken_away_is_a_death(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.is_removed = True
    message = ask(pool, linear)
    assert isinstance(message, Died)
    assert "unknown model" in message.reason


def test_nothing_is_heard_of_a_retired_worker(
    start_server: StartServer, connect: Connect, linear: LinearModel
) -> None:
    server = start_server()
    pool = ready(connect(server))
    server.gate.clear()
    pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
    pool.retire(0, 1)
    server.gate.set()
    assert pool.poll(0.3) == []


def test_the_spare_shares_a_server_that_is_ready(
    start_server: StartServer, connect: Connect
) -> None:
    gone, there = start_server(), start_server()
    gone.stop()
    pool = connect(gone, there)
    death(pool)
    pool.start(1, 1)
    assert listen(pool, 1) == [Ready(1, 1)]
    pool.start(2, 1)
    assert listen(pool, 1) == [Ready(2, 1)]


# ---- a server in front of them


def test_a_server_of_remote_workers_survives_one_that_stops(
    kind: Any, start_server: StartServer, linear: LinearModel
) -> None:
    """Coding in front of five servers of both protocols."""
    servers = [start_server(kind=k) for k in (kind, kind, GrpcServer, HttpServer, kind)]
    queries = linear.queries(300)
    with CodedServer(linear, workers=[url(server) for server in servers]) as server:
        futures = []
        for i, query in enumerate(queries):
            futures.append(server.submit(query))
            if i == 100:
                servers[0].stop()
            if i == 150:
                start_server(servers[0].port, type(servers[0]))
            time.sleep(0.002)
        check_answers([future.result() for future in futures], linear.outputs(queries))
        wait_until(lambda: server.stats().workers.count("ready") == 5)


def test_a_pool_with_a_token_is_given_to_a_server(
    start_server: StartServer, linear: LinearModel
) -> None:
    endpoints = [url(start_server()) for _ in range(2)]
    pool = OipPool(None, endpoints, security=Security(token="secret"))
    queries = linear.queries(8)
    with CodedServer(linear, workers=2, pool=pool) as server:
        check_answers(server.predict_batch(queries), linear.outputs(queries))


def test_a_slow_server_costs_no_time(start_server: StartServer, linear: LinearModel) -> None:
    servers = [start_server() for _ in range(5)]
    policy = Policy(group_wait_s=0.01)
    with CodedServer(linear, workers=[url(s) for s in servers], policy=policy) as server:
        servers[3].gate.clear()
        queries = linear.queries(40)
        predictions = server.predict_batch(queries)
        check_answers(predictions, linear.outputs(queries))
        assert sum(p.source == "reconstructed" for p in predictions) == 1
        servers[3].gate.set()


def test_another_model_is_brought_out_once_the_servers_have_it(
    start_server: StartServer, linear: LinearModel, other: LinearModel
) -> None:
    servers = [start_server() for _ in range(5)]
    new = replace(other, name="other")
    new.matrix, new.folder = other.matrix, other.folder
    with CodedServer(linear, workers=[url(server) for server in servers]) as server:
        assert server.predict(linear.queries(1)[0]).source == "exact"
        for each in servers:
            each.model = new  # in place of the old one, which every server forgets
        server.reload(new)
        queries = linear.queries(20)
        check_answers(server.predict_batch(queries), new.outputs(queries))


# ---- arguments


@pytest.mark.parametrize(
    "bad",
    ["127.0.0.1:8001", "ftp://a:1", "grpc://a", "grpc://:1", "http://a:1/m/1/more", "http://a:x",
     "http://a:1?b=2", "http://me@a:1", 8001],
)  # fmt: skip
def test_an_endpoint_that_cannot_be_understood(bad: Any) -> None:
    with pytest.raises(ValueError, match="expected SCHEME://HOST:PORT"):
        Endpoint.parse(bad)


def test_endpoints_name_model_and_version() -> None:
    assert Endpoint.parse("grpcs://[::1]:8001/m/2") == Endpoint("grpcs", "::1", 8001, "m", "2")
    assert Endpoint.parse("http://h:80").model == ""
    assert Endpoint.parse("grpc://[::1]:8001").address == "[::1]:8001"


def test_a_token_does_not_travel_unencrypted(spec: BackboneSpec) -> None:
    security = Security(token="secret")
    with pytest.raises(ValueError, match=r"unencrypted to grpc://10\.0\.0\.1:8001"):
        OipPool(spec, ["grpc://10.0.0.1:8001"], security=security)
    headers = {"authorization": "Bearer secret"}
    assert security.headers(Endpoint.parse("http://127.0.0.1:1")) == headers
    assert security.headers(Endpoint.parse("https://10.0.0.1:1")) == headers


@pytest.mark.parametrize(
    ("endpoint", "package"), [("grpc://127.0.0.1:1", "grpc"), ("http://127.0.0.1:1", "orjson")]
)
def test_an_extra_that_is_not_installed_is_named(endpoint: str, package: str) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from codedinv.workers.oip import OipPool\n"
        f"OipPool(None, [{endpoint!r}])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last = ended.stderr.splitlines()[-1]
    assert last == (
        f"ImportError: {endpoint} needs {package}, which is not installed: "
        "pip install 'codedinv[oip]'"
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"workers": []}, "at least one endpoint"),
        ({"workers": ["grpc://127.0.0.1:1"], "backend": "process"}, "none beside endpoints"),
        ({"workers": "grpc://127.0.0.1:1"}, "an integer of 1 or more, or endpoints"),
        ({"workers": ["8001"]}, "expected SCHEME://HOST:PORT"),
    ],
)
def test_a_server_refuses_endpoints_that_make_no_sense(
    linear: LinearModel, arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        CodedServer(linear, **arguments)
