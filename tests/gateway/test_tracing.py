"""OpenTelemetry spans of a request, from a client's trace to a remote worker's."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk", reason="pip install 'codedinv[otel]'")
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from codedinv.gateway import create_app
from codedinv.gateway.access import Token
from codedinv.gateway.hosted import HostedModels
from codedinv.gateway.inference import Limits
from codedinv.gateway.rpc import Rpc
from codedinv.gateway.traffic import Traffic
from codedinv.oip import InferRequest, Tensor, grpc_codec
from codedinv.oip.messages import Stub
from codedinv.serving import CodedServer, Policy
from tests.gateway.conftest import BUNDLE
from tests.gateway.servers import infer_body, running_gateway, start_gateway, wait_until
from tests.gateway.test_app import INFER, ask, queries
from tests.serving.linear_model import LinearModel
from tests.workers.oip_servers import GrpcServer, HttpServer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
Serve = Callable[..., CodedServer]


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """Every span of this process; a trace that nobody began elsewhere is not sampled."""
    memory = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
    yield memory
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Callable[[], tuple[ReadableSpan, ...]]:
    """Those since the test began."""
    exporter.clear()
    return exporter.get_finished_spans


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    return LinearModel().saved(tmp_path_factory.mktemp("linear") / "bundle")


@pytest.fixture
def serve(linear: LinearModel) -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(workers: Any = 5, backend: Any = "thread", **policy: Any) -> CodedServer:
            server = CodedServer(linear, workers, backend, Policy(**policy), tracing=True)
            return stack.enter_context(server)

        yield start


def names(found: tuple[ReadableSpan, ...]) -> list[str]:
    return sorted(span.name for span in found)


def test_a_request_of_a_trace_has_a_span_for_each_thing_done(serve: Serve, spans: Any) -> None:
    app = create_app(serve(), tracing=True)
    answer = ask(app, "POST", INFER, json=infer_body(queries(1)), headers={"traceparent": PARENT})
    assert answer.status_code == 200
    wait_until(lambda: len(spans()) >= 4)
    by_name = {span.name: span for span in spans()}
    request = by_name["infer"]
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    for name in ("queue", "worker", "head"):
        assert by_name[name].parent.span_id == request.context.span_id
        assert by_name[name].start_time <= by_name[name].end_time
    assert by_name["queue"].end_time <= by_name["worker"].end_time
    assert by_name["head"].attributes["codedinv.source"] == "exact"
    response = f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert answer.headers["traceresponse"] == response


def test_what_is_encoded_and_decoded_has_spans_too(serve: Serve, spans: Any) -> None:
    server = serve(release="eager", always_encode=True)
    app = create_app(server, tracing=True)
    for worker in range(5):
        server.pool.slow(worker, 0.3 if worker == 0 else 0.01)
    for _ in range(20):  # until worker 0 has a data slot
        headers = {"traceparent": PARENT}
        answer = ask(app, "POST", INFER, json=infer_body(queries(4)), headers=headers)
        assert answer.status_code == 200
        if "decode" in names(spans()):
            break
    found = {span.name: span for span in spans()}
    assert {"infer", "queue", "worker", "encode", "decode", "head"} <= set(found)
    roles = {span.attributes["codedinv.role"] for span in spans() if span.name == "worker"}
    assert roles == {"query", "parity"}


@pytest.mark.parametrize("kind", [GrpcServer, HttpServer], ids=["grpc", "http"])
def test_remote_workers_are_sent_the_trace(
    serve: Serve, spans: Any, linear: LinearModel, kind: Any
) -> None:
    workers = [kind(linear) for _ in range(2)]
    try:
        urls = [f"{w.scheme}://127.0.0.1:{w.port}" for w in workers]
        app = create_app(serve(urls, None), tracing=True)
        headers = {"traceparent": PARENT}
        assert ask(app, "POST", INFER, json=infer_body(queries(1)), headers=headers).is_success
        wait_until(lambda: "worker" in names(spans()))  # a late one's parity may have one, too
        sent = {parent for w in workers for parent in w.traces}
        tasks = lambda: {s.context.span_id for s in spans() if s.name == "worker"}  # noqa: E731
        wait_until(lambda: len(tasks()) >= len(sent))
        assert sent
        assert sent <= {f"00-{TRACE}-{span_id:016x}-01" for span_id in tasks()}
    finally:
        for worker in workers:
            worker.stop()


def test_a_task_that_fails_says_why(serve: Serve, spans: Any) -> None:
    server = serve(2, retries=5)
    server.pool.fail(0, "no such kernel")
    server.pool.fail(1, "no such kernel")
    threading.Timer(0.3, lambda: [server.pool.fail(i, "") for i in range(2)]).start()
    app = create_app(server, tracing=True)
    ask(app, "POST", INFER, json=infer_body(queries(1)), headers={"traceparent": PARENT})
    wait_until(lambda: any(not s.status.is_ok for s in spans() if s.name == "worker"))
    (failed, *_) = (s for s in spans() if s.name == "worker" and not s.status.is_ok)
    assert "no such kernel" in failed.status.description


def test_a_request_of_no_trace_leaves_nothing(serve: Serve, spans: Any) -> None:
    server = serve()
    app = create_app(server, tracing=True)
    assert ask(app, "POST", INFER, json=infer_body(queries(3))).status_code == 200
    assert spans() == ()
    tracing = server._engine._tracing
    assert not tracing._by_payload
    assert not tracing._tasks


def test_queries_that_have_ended_are_forgotten(serve: Serve, spans: Any) -> None:
    server = serve(always_encode=True)
    app = create_app(server, tracing=True)
    for count in (1, 4, 7):
        headers = {"traceparent": PARENT}
        ask(app, "POST", INFER, json=infer_body(queries(count)), headers=headers)
    tracing = server._engine._tracing
    kept = tracing._by_payload, tracing._by_query, tracing._tasks, tracing._encoding
    wait_until(lambda: not any((*kept, tracing._parities, tracing._parities_of)))


def test_grpc_carries_a_trace_too(serve: Serve, spans: Any) -> None:
    models = HostedModels.of(serve())

    async def one() -> None:
        rpc = Rpc(models, Limits(), Traffic(), Token(None), tracing=True)
        server = grpc.aio.server()
        rpc.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = grpc_codec.encode_request(
                "linear", InferRequest([Tensor("query", queries(1))])
            )
            await Stub(channel).ModelInfer(request, metadata=[("traceparent", PARENT)])
        await server.stop(1)

    asyncio.run(one())
    wait_until(lambda: len(spans()) >= 4)
    assert {f"{span.context.trace_id:032x}" for span in spans()} == {TRACE}
    assert {"infer", "queue", "worker", "head"} <= set(names(spans()))


def test_without_tracing_nothing_of_opentelemetry_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from codedinv.gateway import rest, run, rpc\n"
        "from codedinv.gateway.tracing import RequestTracing; RequestTracing(False)\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')], sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gateway_sends_its_spans_by_otlp(tmp_path: Path) -> None:
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http", reason="pip install 'codedinv[otel]'"
    )
    with collector() as (url, bodies):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        settings = {"models": [{"model": BUNDLE, "workers": 1}], "tracing": True}
        with running_gateway(tmp_path, settings, **environment) as running:
            body = infer_body(np.zeros((1, 1, 28, 28), np.float32))
            path = f"{running.url}/v2/models/{BUNDLE}/infer"
            headers = {"traceparent": PARENT}
            assert httpx.post(path, json=body, headers=headers, timeout=60).status_code == 200
            wait_until(lambda: b"infer" in b"".join(bodies))
            assert bytes.fromhex(TRACE) in b"".join(bodies)


def test_a_gateway_that_cannot_trace_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text(
        "raise ImportError(name='opentelemetry')"
    )
    settings = {"models": [{"model": BUNDLE, "workers": 1}], "tracing": True}
    process, log = start_gateway(tmp_path, settings, PYTHONPATH=str(tmp_path))
    assert process.wait(60) == 1
    assert "pip install 'codedinv[otel]'" in log.read_text()


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """What takes spans by OTLP over HTTP: its address, and what it was sent."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_gzip = self.headers.get("Content-Encoding") == "gzip"
            bodies.append(gzip.decompress(body) if is_gzip else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", bodies
    server.shutdown()
    server.server_close()
