"""Servers of the Open Inference Protocol in this process: honest, unless a test tells them not to
be. Each answers one request after the other, as a server with one instance of a model does."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from codedinv.oip import InferResponse, Tensor, grpc_codec, messages, rest
from tests.serving.linear_model import LinearModel


class OipServer:
    """What both kinds have in common.

    Attributes:
        model: what is served, under its own name.
        is_ready, is_model_ready: what the server says.
        is_removed: the model is not there.
        sha256: content hash among the model's parameters; empty: none.
        signature: of the model, as JSON.
        gate: requests wait while it is not set.
        error: inference fails, saying so; empty: it does not.
        falsify: changes what is answered.
        identity: of the request that answers say they belong to; empty: they say nothing.
        stated_bytes: that the bodies of HTTP answers to requests are said to have, after which the
            connection is closed; None: what they have.
        traces: `traceparent` of requests, where they had one.
        arrived: requests; begun: those whose turn came; cancelled: those called off before.
    """

    def __init__(self, model: LinearModel) -> None:
        self.model = model
        self.is_ready = self.is_model_ready = True
        self.is_removed = False
        self.sha256 = ""
        self.signature = {
            "inputs": [tensor("query", [-1, *model.input_shape])],
            "outputs": [tensor("embedding", [-1, *model.embedding_shape])],
        }
        self.gate = threading.Event()
        self.gate.set()
        self.error = ""
        self.falsify: Callable[[np.ndarray], np.ndarray] = lambda embeddings: embeddings
        self.identity = ""
        self.stated_bytes: int | None = None
        self.traces: list[str] = []
        self.arrived = self.begun = self.cancelled = 0
        self._turn = threading.Lock()

    def answer(self, request: Any, is_wanted: Callable[[], bool]) -> InferResponse | str:
        """The answer, or an error's words."""
        self.arrived += 1
        with self._turn:
            if not is_wanted():
                self.cancelled += 1
                return "cancelled"
            self.begun += 1
            assert self.gate.wait(60)
            if self.error:
                return self.error
            (query,) = request.inputs
            is_batch = query.array.ndim > len(self.model.input_shape)
            batch = query.array if is_batch else query.array[np.newaxis]
            embeddings = self.falsify(self.model.embed(batch))
            name = self.signature["outputs"][0]["name"]
            embedding = Tensor(name, embeddings if is_batch else embeddings[0])
            return InferResponse(self.model.name, [embedding], id=self.identity)


def tensor(name: str, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    """One tensor of a signature."""
    return {"name": name, "datatype": datatype, "shape": shape}


@dataclass(frozen=True)
class ServerTls:
    """Files of a server: its pair, and the authority whose clients alone it lets in, if any."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class GrpcServer(OipServer):
    """Over gRPC; `port` 0 takes a free one."""

    scheme = "grpc"

    def __init__(self, model: LinearModel, port: int = 0, tls: ServerTls | None = None) -> None:
        super().__init__(model)
        names = ("ServerReady", "ModelReady", "ModelMetadata", "ModelConfig", "ModelInfer")
        calls = {name: getattr(self, name) for name in names}
        self._server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers([messages.handlers(calls)])
        if tls is None:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            self.scheme = "grpcs"
            pair = tls.key.read_bytes(), tls.certificate.read_bytes()
            ca = tls.client_ca and tls.client_ca.read_bytes()
            credentials = grpc.ssl_server_credentials([pair], ca, ca is not None)
            self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        self._server.start()

    def stop(self) -> None:
        ended = self._server.stop(None)
        self.gate.set()
        ended.wait()

    def ServerReady(self, request: Any, context: Any) -> Any:
        return messages.message("ServerReadyResponse")(ready=self.is_ready)

    def ModelReady(self, request: Any, context: Any) -> Any:
        self._find(request.name, context)
        return messages.message("ModelReadyResponse")(ready=self.is_model_ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._find(request.name, context)
        return messages.message("ModelMetadataResponse")(name=request.name, **self.signature)

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._find(request.name, context)
        if not self.sha256:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such call")
        response = messages.message("ModelConfigResponse")()
        response.config.parameters["codedinv_sha256"].string_value = self.sha256
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._find(request.model_name, context)
        self.traces += [v for k, v in context.invocation_metadata() if k == "traceparent"]
        found = self.answer(grpc_codec.decode_request(request), context.is_active)
        if isinstance(found, str):
            context.abort(grpc.StatusCode.INTERNAL, found)
        return grpc_codec.encode_response(found)

    def _find(self, name: str, context: Any) -> None:
        if self.is_removed or name != self.model.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model {name}")


class HttpServer(OipServer):
    """Over HTTP; `port` 0 takes a free one."""

    scheme = "http"

    def __init__(self, model: LinearModel, port: int = 0, tls: ServerTls | None = None) -> None:
        super().__init__(model)
        owner, self._open = self, []

        class Handler(_Handler):
            server_of = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            if tls.client_ca is not None:
                context.load_verify_locations(tls.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            # The handshake is the connection's own thread's: a bad client stops nobody.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.hang_up()
        self.gate.set()

    def hang_up(self) -> None:
        """Closes all connections."""
        for connection in self._open:
            with contextlib.suppress(OSError):  # the other end was quicker
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server_of: HttpServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server_of._open.append(self.connection)

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the test closed the socket
            super().handle()

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        owner, path = self.server_of, f"/v2/models/{self.server_of.model.name}"
        if self.path == "/v2/health/ready":
            self._answer(200 if owner.is_ready else 503)
        elif owner.is_removed or not self.path.startswith(path):
            self._answer(404, {"error": f"unknown model {self.path.split('/')[3]}"})
        elif self.path == f"{path}/ready":
            self._answer(200 if owner.is_model_ready else 503)
        elif self.path == path:
            self._answer(200, {"name": owner.model.name, **owner.signature})
        elif self.path == f"{path}/config" and owner.sha256:
            value = {"string_value": owner.sha256}
            self._answer(200, {"parameters": {"codedinv_sha256": value}})
        else:
            self._answer(404)

    def do_POST(self) -> None:
        owner = self.server_of
        owner.traces += [v for k, v in self.headers.items() if k == "traceparent"]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if owner.is_removed:
            self._answer(404, {"error": "unknown model"})
            return
        header_length = rest.parse_header_length(self.headers[rest.HEADER_LENGTH])
        request = rest.decode_request(body, header_length)
        found = owner.answer(request, lambda: True)
        if isinstance(found, str):
            self._answer(500, {"error": found})
            return
        body, header_length = rest.encode_response(found, request)
        headers = {rest.HEADER_LENGTH: str(header_length)}
        if owner.stated_bytes is not None:
            headers["Content-Length"] = str(owner.stated_bytes)
            self.close_connection = True
        self._send(200, body, headers)

    def _answer(self, status: int, value: object = None) -> None:
        self._send(status, b"" if value is None else json.dumps(value).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
