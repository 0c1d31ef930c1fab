"""Hosts that `gateway.py` compares, each a process: `gateway_hosts.py HOST HTTP_PORT GRPC_PORT`.

All take 784 floats and give 10. `plain` is the least that Starlette, uvicorn and grpc.aio can do:
it decodes the tensor, takes its first 10 values, and encodes them. `kserve` does the same in
kserve's host, `gateway` in codedinv's. `uncoded` and `coded` are that gateway with a `CodedServer`
behind it, worker processes with a linear model of 0.6 M MACs. Prints "ready" when it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MODEL = "m"
WORKERS = {"uncoded": 2, "coded": 3}


async def serve_asgi(app: Any, rpc_handlers: Any, http_port: int, grpc_port: int) -> None:
    """uvicorn and grpc.aio in this loop, for ever."""
    import grpc
    import uvicorn

    server = grpc.aio.server()
    rpc_handlers(server)
    server.add_insecure_port(f"127.0.0.1:{grpc_port}")
    await server.start()
    config = uvicorn.Config(
        app, port=http_port, lifespan="off", http="httptools", ws="none", log_config=None,
        access_log=False, server_header=False, timeout_keep_alive=75,
    )  # fmt: skip
    http = uvicorn.Server(config)
    serving = asyncio.ensure_future(http.serve())
    while not http.started:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await serving


async def plain(http_port: int, grpc_port: int) -> None:
    """The prototype."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from codedinv.oip import InferRequest, InferResponse, Tensor, grpc_codec, rest
    from codedinv.oip.messages import handlers

    def answer(request: InferRequest) -> InferResponse:
        x = request.inputs[0].array
        y = x.reshape(len(x), -1)[:, :10]
        return InferResponse(MODEL, [Tensor("label", y)], id=request.id)

    async def over_http(request: Request) -> Response:
        length = request.headers.get("inference-header-content-length")
        found = rest.decode_request(await request.body(), int(length) if length else None)
        body, length = rest.encode_response(answer(found), found)
        headers = {} if length is None else {rest.HEADER_LENGTH: str(length)}
        return Response(body, headers=headers)

    async def over_grpc(request: Any, context: Any) -> Any:
        return grpc_codec.encode_response(answer(grpc_codec.decode_request(request)))

    app = Starlette(routes=[Route("/v2/models/{name}/infer", over_http, methods=["POST"])])
    calls = {"ModelInfer": over_grpc}
    await serve_asgi(
        app, lambda s: s.add_generic_rpc_handlers((handlers(calls),)), http_port, grpc_port
    )


class Identity:
    """What the gateway asks of a server, answered at once."""

    closed = False
    policy = SimpleNamespace(deadline_s=30.0)
    scheme = SimpleNamespace(name="none")
    model = SimpleNamespace(input_shape=(1, 28, 28), heads={"label": None})

    async def predict_async(self, x: Any, deadline: float | None = None) -> list[Any]:
        from codedinv.serving import Prediction

        rows = x.reshape(len(x), -1)[:, :10]
        return [Prediction({"label": row}, "exact", 1e-6, 0) for row in rows]


async def gateway(http_port: int, grpc_port: int, server: Any) -> None:
    """The gateway, with all that it does for a request, in front of a server."""
    from codedinv.gateway.access import Token
    from codedinv.gateway.hosted import HostedModels
    from codedinv.gateway.inference import Limits
    from codedinv.gateway.rest import build_app
    from codedinv.gateway.rpc import Rpc
    from codedinv.gateway.traffic import Traffic

    models, limits, traffic = HostedModels.of({MODEL: server}), Limits(), Traffic()
    app = build_app(models, limits, traffic, Token(None))
    rpc = Rpc(models, limits, traffic, Token(None))
    await serve_asgi(app, rpc.add_to, http_port, grpc_port)


async def codedinv(host: str, http_port: int, grpc_port: int) -> None:
    """The gateway with workers behind it."""
    from codedinv.serving import CodedServer
    from tests.serving.linear_model import LinearModel

    with tempfile.TemporaryDirectory() as folder:
        model = LinearModel(input_shape=(1, 28, 28), embedding_shape=(16, 7, 7))
        model.saved(Path(folder) / "bundle")
        scheme = "uncoded" if host == "uncoded" else "invertible"
        async with CodedServer(model, WORKERS[host], "process", scheme=scheme) as server:
            await gateway(http_port, grpc_port, server)


def kserve(http_port: int, grpc_port: int) -> None:
    """kserve's own host; to be run by an interpreter that has kserve."""
    from kserve import InferOutput, InferResponse, Model, ModelServer

    def wants_binary(payload: Any) -> bool:
        wanted = payload.request_outputs or []
        return all((output.parameters or {}).get("binary_data", True) for output in wanted)

    class Identity(Model):  # type: ignore[misc]
        async def predict(self, payload: Any, headers: Any = None, *rest: Any) -> Any:
            x = payload.inputs[0].as_numpy()
            y = x.reshape(len(x), -1)[:, :10]
            output = InferOutput("label", list(y.shape), "FP32")
            output.set_data_from_numpy(y, binary_data=wants_binary(payload))
            return InferResponse(payload.id or "", self.name, [output])

    model = Identity(MODEL)
    model.ready = True
    print("ready", flush=True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nobody reads what it says from now on
    os.dup2(sys.stdout.fileno(), 1)
    ModelServer(
        http_port=http_port, grpc_port=grpc_port, workers=1, access_log_format=None,
        enable_latency_logging=False,
    ).start([model])  # fmt: skip


def main() -> None:
    """Runs one host."""
    host, http_port, grpc_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if host == "kserve":
        kserve(http_port, grpc_port)
        return
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if host == "plain":
            runner.run(plain(http_port, grpc_port))
        elif host == "gateway":
            runner.run(gateway(http_port, grpc_port, Identity()))
        else:
            runner.run(codedinv(host, http_port, grpc_port))


if __name__ == "__main__":
    main()
