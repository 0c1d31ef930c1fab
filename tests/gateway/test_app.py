"""The ASGI application in front of servers in this process, where workers can be told to hang."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import grpc
import httpx
import numpy as np
import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from codedinv.gateway import create_app
from codedinv.gateway.access import Token
from codedinv.gateway.bodies import Bodies
from codedinv.gateway.hosted import HostedModel, HostedModels
from codedinv.gateway.inference import Limits
from codedinv.gateway.rest import build_app
from codedinv.gateway.rpc import Rpc
from codedinv.gateway.settings import ModelSettings
from codedinv.gateway.traffic import Traffic
from codedinv.oip import InferRequest, Tensor, grpc_codec
from codedinv.oip.messages import Stub
from codedinv.serving import CodedServer, Policy
from tests.gateway.servers import copy_bundle, infer_body
from tests.serving.linear_model import LinearModel

INFER = "/v2/models/linear/infer"


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    return LinearModel().saved(tmp_path_factory.mktemp("linear") / "bundle")


@pytest.fixture
def serve(linear: LinearModel) -> Iterator[Callable[..., CodedServer]]:
    with contextlib.ExitStack() as stack:

        def start(workers: int = 2, **policy: Any) -> CodedServer:
            server = CodedServer(linear, workers, "thread", Policy(**policy))
            return stack.enter_context(server)

        yield start


@contextlib.asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        async with client_of(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(one())


def queries(count: int) -> Any:
    return np.random.default_rng(count).random((count, 1, 4, 4), np.float32)


def test_it_can_be_mounted_in_fastapi(
    serve: Callable[..., CodedServer], linear: LinearModel
) -> None:
    app = fastapi.FastAPI()
    app.mount("/models", create_app(serve()))
    x = queries(3)
    answer = ask(app, "POST", f"/models{INFER}", json=infer_body(x, id="seven"))
    assert answer.status_code == 200
    found = answer.json()
    assert (found["id"], found["model_name"]) == ("seven", "linear")
    outputs = {o["name"]: np.reshape(o["data"], o["shape"]) for o in found["outputs"]}
    np.testing.assert_allclose(outputs["label"], linear.head(linear.embed(x), "label"), rtol=1e-3)
    assert set(outputs) == {"label", "count"}
    assert ask(app, "GET", "/models/").headers["content-type"].startswith("text/html")


def test_a_server_may_live_in_the_applications_own_loop(linear: LinearModel) -> None:
    async def main() -> None:
        async with CodedServer(linear, 2, "thread") as server, client_of(create_app(server)) as c:
            answers = await asyncio.gather(
                *(c.post(INFER, json=infer_body(queries(2))) for _ in range(20)),
                c.get("/metrics"),
                c.get("/status"),
            )
            assert {answer.status_code for answer in answers} == {200}

    asyncio.run(main())


def test_several_servers_by_names_of_ones_own(serve: Callable[..., CodedServer]) -> None:
    app = create_app({"one": serve(), "two": serve()})
    index = ask(app, "POST", "/v2/repository/index").json()
    assert [entry["name"] for entry in index] == ["one", "two"]
    for name in ("one", "two"):
        answer = ask(app, "POST", f"/v2/models/{name}/infer", json=infer_body(queries(1)))
        assert answer.json()["model_name"] == name


def test_one_task_only(serve: Callable[..., CodedServer]) -> None:
    app = create_app(serve())
    body = infer_body(queries(2), parameters={"task": "count", "scheme": "invertible"})
    (output,) = ask(app, "POST", INFER, json=body).json()["outputs"]
    assert (output["name"], output["shape"]) == ("count", [2, 3])


def test_its_program_alone_unloads_a_mounted_model(serve: Callable[..., CodedServer]) -> None:
    app = create_app(serve())
    answer = ask(app, "POST", "/v2/repository/models/linear/unload")
    assert answer.status_code == 400
    assert "by its program only" in answer.json()["error"]


def test_a_closed_server_is_not_ready(serve: Callable[..., CodedServer]) -> None:
    server = serve()
    app = create_app(server)
    assert ask(app, "GET", "/v2/health/ready").status_code == 200
    server.close()
    assert ask(app, "GET", "/v2/health/live").status_code == 200
    assert ask(app, "GET", "/v2/health/ready").status_code == 503
    assert ask(app, "GET", "/v2/models/linear/ready").status_code == 503
    answer = ask(app, "POST", INFER, json=infer_body(queries(1)))
    assert answer.status_code == 503
    assert "closed" in answer.json()["error"]
    assert ask(app, "GET", "/metrics").status_code == 200


def test_a_late_answer_is_504(serve: Callable[..., CodedServer]) -> None:
    server = serve(hang_timeout_s=None, drain_timeout_s=0.1)
    for worker in range(2):
        server.pool.hang(worker)
    body = infer_body(queries(1), parameters={"timeout": 50_000})
    answer = ask(create_app(server), "POST", INFER, json=body)
    assert answer.status_code == 504
    assert "deadline" in answer.json()["error"]


def test_a_full_queue_is_429_and_a_client_that_leaves_frees_its_place(
    serve: Callable[..., CodedServer],
) -> None:
    server = serve(hang_timeout_s=None, max_queue=2, drain_timeout_s=0.1)
    for worker in range(2):
        server.pool.hang(worker)

    async def main() -> None:
        async with client_of(create_app(server)) as client:
            body = infer_body(queries(1))
            waiting = [asyncio.create_task(client.post(INFER, json=body)) for _ in range(2)]
            while server.snapshot().counts["accepted"] < 2:
                await asyncio.sleep(0.01)
            refused = await client.post(INFER, json=body)
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
            assert "max_queue" in refused.json()["error"]
            for one in waiting:
                one.cancel()
            await asyncio.wait(waiting)
            while (stats := server.stats()).failed["cancelled"] < 2:
                await asyncio.sleep(0.01)
            assert stats.queued + stats.outstanding == 0

    asyncio.run(main())


def test_a_disconnect_cancels_the_queries(serve: Callable[..., CodedServer]) -> None:
    server = serve(hang_timeout_s=None, drain_timeout_s=0.1)
    for worker in range(2):
        server.pool.hang(worker)
    app = create_app(server)
    body = httpx.Request("POST", "http://x", json=infer_body(queries(1))).content

    async def main() -> None:
        said = [{"type": "http.request", "body": body}]
        sent: list[Any] = []

        async def receive() -> Any:
            if said:
                return said.pop()
            while server.snapshot().counts["accepted"] < 1:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], "root_path": ""}
        await app(scope, receive, send)
        assert sent == []
        while server.stats().failed["cancelled"] < 1:
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_lost_workers_are_503(linear: LinearModel) -> None:
    policy = Policy(retries=0, restart_backoff_s=5, drain_timeout_s=0.1)
    with CodedServer(linear, 1, "thread", policy, scheme="uncoded") as server:
        server.pool.hang(0)
        app = create_app(server)

        async def main() -> int:
            async with client_of(app) as client:
                one = asyncio.create_task(client.post(INFER, json=infer_body(queries(1))))
                while server.stats().outstanding < 1:
                    await asyncio.sleep(0.01)
                server.pool.kill(0)
                return (await one).status_code

        assert asyncio.run(main()) == 503


def test_a_bomb_is_413_and_a_broken_stream_400(serve: Callable[..., CodedServer]) -> None:
    app = create_app(serve(), max_body_bytes=2**16)
    bomb = gzip.compress(bytes(2**26))
    assert len(bomb) < 2**17
    for body, status in (
        (gzip.compress(bytes(2**22)), 413),
        (bytes(2**17), 413),
        (b"not gzip", 400),
        (gzip.compress(b"{}")[:-4], 400),
        (gzip.compress(b"{}") + b"more", 400),
    ):
        answer = ask(app, "POST", INFER, content=body, headers={"content-encoding": "gzip"})
        assert answer.status_code == status, answer.text
    answer = ask(app, "POST", INFER, content=b"{}", headers={"content-encoding": "br"})
    assert answer.status_code == 400


def test_a_body_of_unknown_length_is_limited_too(serve: Callable[..., CodedServer]) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(4096)

    answer = ask(create_app(serve(), max_body_bytes=2**16), "POST", INFER, content=endless())
    assert answer.status_code == 413


def test_bodies_of_all_requests_together_are_limited(serve: Callable[..., CodedServer]) -> None:
    """And what a request held is free again when it has ended, however it did."""
    models = HostedModels.of(serve())
    limits = Limits(max_body_bytes=2**16, max_total_body_bytes=2**16)
    bodies = Bodies(limits.max_total_body_bytes)
    app = build_app(models, limits, Traffic(), Token(None), bodies=bodies)
    good = orjson.dumps(infer_body(queries(1)))
    rest = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(2**16 - len(good) + 1)
        await rest.wait()

    async def main() -> None:
        async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
            held = asyncio.create_task(client.post(INFER, content=slow()))
            while not bodies.held:
                await asyncio.sleep(0.01)
            refused = await client.post(INFER, content=good)
            assert refused.status_code == 503
            assert "other requests" in refused.json()["error"]
            rest.set()
            assert (await held).status_code == 400
            assert (await client.post(INFER, content=good)).status_code == 200
            assert (await client.post(INFER, content=gzip.compress(good), headers={
                "content-encoding": "gzip"})).status_code == 200  # fmt: skip
            assert bodies.held == 0

    asyncio.run(main())


@contextlib.asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The application behind uvicorn: a client of ASGI alone would send a body in one piece."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await task


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/octet-stream"])
def test_any_content_type_will_do(
    serve: Callable[..., CodedServer], content_type: str | None
) -> None:
    content = httpx.Request("POST", "http://x", json=infer_body(queries(1))).content
    headers = {} if content_type is None else {"content-type": content_type}
    answer = ask(create_app(serve()), "POST", INFER, content=content, headers=headers)
    assert answer.status_code == 200


def test_the_token_guards_all_but_health_and_the_empty_page(
    serve: Callable[..., CodedServer],
) -> None:
    app = create_app(serve(), token="a-good-token")
    for path in ("/", "/v2/health/live", "/v2/health/ready"):
        assert ask(app, "GET", path).status_code == 200
    for path in ("/v2", "/metrics", "/status", "/v2/models/linear", "/nothing"):
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "a-good-token"}):
            answer = ask(app, "GET", path, headers=header)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
    header = {"authorization": "Bearer a-good-token"}
    assert ask(app, "GET", "/v2", headers=header).status_code == 200


def test_mounted_health_needs_no_token_either(serve: Callable[..., CodedServer]) -> None:
    app = Starlette(routes=[Mount("/models", create_app(serve(), token="a-good-token"))])
    assert ask(app, "GET", "/models/v2/health/ready").status_code == 200
    assert ask(app, "GET", "/models/v2").status_code == 401


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' twice"):
        HostedModels([HostedModel("a"), HostedModel("a")])


def test_a_load_that_fails_after_its_client_went_away_is_no_lost_error(tmp_path: Path) -> None:
    lost: list[str] = []

    async def ask_and_go() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: lost.append(context["message"]))
        model = HostedModel("a", ModelSettings(model=str(tmp_path / "nothing")))
        client = asyncio.ensure_future(model.load())
        await asyncio.sleep(0)
        client.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await client
        while "nothing" not in model.reason:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)
        gc.collect()

    asyncio.run(ask_and_go())
    assert not lost


def test_reloading_a_mounted_model_reads_its_folder_again(tmp_path: Path) -> None:
    folder = copy_bundle("fashion-mnist-k2", tmp_path / "bundle")
    with CodedServer(folder, 1, "thread") as server:
        app = create_app({"fashion": server})
        before = ask(app, "GET", "/v2/models/fashion").json()["versions"]
        copy_bundle("fashion-mnist", folder)
        answer = ask(app, "POST", "/v2/repository/models/fashion/load")
        assert answer.status_code == 200, answer.text
        after = ask(app, "GET", "/v2/models/fashion").json()["versions"]
        assert before != after
        assert server.stats().reloads == 1


def test_messages_over_grpc_count_among_all_bodies(serve: Callable[..., CodedServer]) -> None:
    request = InferRequest([Tensor("query", queries(1))])
    message = grpc_codec.encode_request("linear", request)
    bodies = Bodies(message.ByteSize() + 10)
    models = HostedModels.of(serve())

    async def main() -> None:
        rpc = Rpc(models, Limits(), Traffic(), Token(None), bodies=bodies)
        server = grpc.aio.server()
        rpc.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = Stub(channel)
            assert (await stub.ModelInfer(message)).outputs
            with bodies.hold() as others:
                others.grow(11)
                with pytest.raises(grpc.RpcError) as raised:
                    await stub.ModelInfer(message)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (await stub.ModelInfer(message)).outputs
        await server.stop(1)

    asyncio.run(main())
    assert bodies.held == 0
