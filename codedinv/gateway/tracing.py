"""OpenTelemetry spans of requests: W3C trace context in, the server's span, and its id out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from codedinv.errors import CodedInvError
from codedinv.gateway.errors import message_of, status_of

_NOTHING: AbstractContextManager[None] = nullcontext()
_INSTALL = "pip install 'codedinv[otel]'"


class RequestTracing:
    """Spans around inference requests.

    Args:
        is_on: else nothing is done, and opentelemetry need not be installed.

    Raises:
        CodedInvError: opentelemetry is not installed.
    """

    def __init__(self, is_on: bool) -> None:
        self._trace: Any = None
        if not is_on:
            return
        try:
            from opentelemetry import propagate, trace
        except ImportError:
            raise CodedInvError(
                f"tracing needs opentelemetry, which is not installed: {_INSTALL}"
            ) from None
        self._trace, self._propagate = trace, propagate
        self._tracer = trace.get_tracer("codedinv")

    def http(self, headers: Mapping[bytes, bytes], model: str) -> AbstractContextManager[Any]:
        """Around a request over HTTP; gives its span, or None."""
        if self._trace is None:
            return _NOTHING
        carrier = {key.decode("latin-1"): value.decode("latin-1") for key, value in headers.items()}
        attributes = {"http.request.method": "POST", "http.route": "/v2/models/{model}/infer"}
        return self._request("infer", carrier, attributes | {"codedinv.model": model})

    def grpc(self, metadata: Any, model: str) -> AbstractContextManager[Any]:
        """Around a request over gRPC; gives its span, or None."""
        if self._trace is None:
            return _NOTHING
        carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
        attributes = {"rpc.system": "grpc", "rpc.method": "ModelInfer", "codedinv.model": model}
        return self._request("infer", carrier, attributes)

    def headers(self, span: Any) -> list[tuple[bytes, bytes]]:
        """What an HTTP answer says of its span: `traceresponse`, as W3C's second level has it."""
        if span is None:
            return []
        context = span.get_span_context()
        flags = int(context.trace_flags)
        value = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
        return [(b"traceresponse", value.encode())]

    @contextmanager
    def _request(
        self, name: str, carrier: Mapping[str, str], attributes: Mapping[str, Any]
    ) -> Iterator[Any]:
        parent = self._propagate.extract(carrier)
        with self._tracer.start_as_current_span(
            name,
            parent,
            self._trace.SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except Exception as error:
                status, code = status_of(error)
                span.set_attribute("error.type", code)
                if status >= 500:  # a client's mistake is no error of the server
                    span.set_status(self._trace.StatusCode.ERROR, message_of(error))
                raise


def export_spans() -> None:
    """Sends spans by OTLP over HTTP, as the usual variables OTEL_* say where and how; if the
    program has set a provider of its own, that goes on.

    Raises:
        CodedInvError: what it takes is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise CodedInvError(
            f"tracing needs {error.name}, which is not installed: {_INSTALL}"
        ) from None
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return
    resource = Resource.create({"service.name": "codedinv"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
