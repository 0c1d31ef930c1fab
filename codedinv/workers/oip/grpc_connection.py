"""A connection over gRPC."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from codedinv.oip import InferRequest, ProtocolError, grpc_codec, messages
from codedinv.workers.oip.connection import MOST_BYTES, Done, Failed, Gone, NoAnswer, belonging
from codedinv.workers.oip.endpoint import Endpoint, Security
from codedinv.workers.oip.signature import ModelInfo, TensorInfo
from codedinv.workers.oip.tls import tls_problem

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)
_WATCH_ENDS_S = 1.0  # grpc's own thread looks five times a second whether it is still wanted
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", MOST_BYTES),
    # Else a new channel would wait out the reconnection backoff of the one before.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # a worker is a neighbour
]


class GrpcConnection:
    """A `Connection` that is one HTTP/2 connection: any number of requests at a time.

    Args:
        endpoint: where.
        security: certificates and token.
        question_s: how long a question waits for its answer.
        at_once: requests at a time that are to be expected; more do not wait.
    """

    can_cancel = True

    def __init__(
        self, endpoint: Endpoint, security: Security, question_s: float, at_once: int
    ) -> None:
        if endpoint.has_tls:
            files = (security.ca, security.key, security.certificate)
            ca, key, chain = (None if path is None else path.read_bytes() for path in files)
            credentials = grpc.ssl_channel_credentials(ca, key, chain)
            self._channel = grpc.secure_channel(endpoint.address, credentials, _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(endpoint.address, _OPTIONS)
        self._stub = messages.Stub(self._channel)
        self._metadata = list(security.headers(endpoint).items())
        self._question_s = question_s
        self._is_closed = False
        self._subscribed: list[Callable[[grpc.ChannelConnectivity], None]] = []
        self._endpoint, self._security = endpoint, security

    def is_server_ready(self) -> bool:
        return bool(self._ask("ServerReady").ready)

    def is_model_ready(self, model: str, version: str) -> bool:
        return bool(self._ask("ModelReady", name=model, version=version).ready)

    def describe(self, model: str, version: str) -> ModelInfo:
        metadata = self._ask("ModelMetadata", name=model, version=version)
        try:
            config = self._ask("ModelConfig", name=model, version=version).config
            parameters = {key: value.string_value for key, value in config.parameters.items()}
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise
            parameters = {}  # only Triton and its like have it
        return ModelInfo(_tensors(metadata.inputs), _tensors(metadata.outputs), parameters)

    def infer(
        self,
        model: str,
        version: str,
        request: InferRequest,
        done: Done,
        headers: Mapping[str, str],
    ) -> object:
        message = grpc_codec.encode_request(model, request, version)
        metadata = [*self._metadata, *headers.items()] if headers else self._metadata
        call = self._stub.ModelInfer.future(message, metadata=metadata)
        call.add_done_callback(lambda ended: done(_outcome(ended, request.id)))
        return call

    def cancel(self, call: Any) -> None:
        call.cancel()

    def watch(self, lost: Callable[[str], None]) -> None:
        if self._is_closed:
            return

        def connect(state: grpc.ChannelConnectivity) -> None:
            pass  # to subscribe this is how a channel is told to connect

        def changed(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                lost("the connection is lost")
            elif state is grpc.ChannelConnectivity.IDLE and not self._is_closed:
                # The server took its leave: it has ended, or found the connection unused and will
                # take a new one, as is now found out.
                self._channel.unsubscribe(connect)
                self._channel.subscribe(connect, try_to_connect=True)

        self._subscribed += [connect, changed]
        self._channel.subscribe(changed, try_to_connect=True)

    def close(self) -> None:
        """Ends the connection, after the thread by which grpc watches it: that one would meet a
        closed channel, and print so."""
        self._is_closed = True
        for callback in self._subscribed:
            self._channel.unsubscribe(callback)
        until = time.monotonic() + _WATCH_ENDS_S
        state = getattr(self._channel, "_connectivity_state", None)
        while getattr(state, "polling", False) and time.monotonic() < until:
            time.sleep(_WATCH_ENDS_S / 50)
        self._channel.close()

    def _ask(self, call: str, **fields: str) -> Any:
        request = messages.message(f"{call}Request")(**fields)
        question = getattr(self._stub, call)
        try:
            return question(request, timeout=self._question_s, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() in _GONE:
                raise Gone(self._why_gone() or _words(error)) from None
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise NoAnswer(f"{call}: no answer within {self._question_s} s") from None
            raise

    def _why_gone(self) -> str:
        """What gRPC may not tell, or in words of its own."""
        if not self._endpoint.has_tls:
            return ""
        return tls_problem(self._endpoint, self._security, self._question_s, ["h2"])


def _outcome(call: Any, identity: str) -> Any:
    with contextlib.suppress(grpc.FutureCancelledError):
        error = call.exception()
        if error is not None:
            return Failed(_words(error), error.code() in _GONE)
        try:
            return belonging(grpc_codec.decode_response(call.result()), identity)
        except ProtocolError as wrong:
            return Failed(str(wrong))
    return Failed("cancelled")


def _words(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"


def _tensors(described: Any) -> list[TensorInfo]:
    return [TensorInfo(t.name, t.datatype, tuple(t.shape)) for t in described]
