"""A request becomes queries, and their predictions an answer; the same for REST and gRPC."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from codedinv.gateway.errors import RequestError, TooLarge
from codedinv.gateway.hosted import INPUT, HostedModel, HostedModels
from codedinv.oip import InferRequest, InferResponse, Parameter, Parameters, Tensor
from codedinv.serving import CodedServer, Prediction

_FLOATS = ("FP32", "FP16")
_LEAST_S = 1e-6
_NUMBER_BYTES = 32  # of JSON: a float64 has at most 24 characters, and a comma and a space
_CONTENT_BYTES = 8  # of a message: a float64, or a float32 that is not packed
_HEADER_BYTES = 64 * 2**10  # beside the numbers


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Attributes:
        max_body_bytes: of its message, over HTTP also after decompression.
        max_batch: queries in it.
        max_total_body_bytes: of all messages at a time.
    """

    max_body_bytes: int = 64 * 2**20
    max_batch: int = 256
    max_total_body_bytes: int = 512 * 2**20


def check_json_size(hosted: HostedModel, size: int, limits: Limits) -> None:
    """Refuses JSON that is longer than any request to this model, before it is parsed: that takes
    the event loop a second for each 10 MiB of brackets.

    Raises:
        TooLarge: it is.
    """
    if hosted.server is None:
        return  # which the caller is told soon
    numbers = limits.max_batch * math.prod(hosted.server.model.input_shape)
    most = numbers * _NUMBER_BYTES + _HEADER_BYTES
    if size > most:
        raise TooLarge(
            f"body: expected at most {most} bytes of JSON for {limits.max_batch} queries of this "
            f"model, got {size}"
        )


def check_message_size(models: HostedModels, method: str, size: int, limits: Limits) -> None:
    """The same for a message of gRPC, which must be parsed to say whom it asks: it is not longer
    than any request to any model. Parsed, a message may take fifty times its size.

    Raises:
        TooLarge: it is.
    """
    numbers = 0
    if method == "ModelInfer":
        servers = [hosted.server for hosted in models]
        if None in servers:
            return  # whose requests may be of any size
        shapes = [server.model.input_shape for server in servers if server is not None]
        numbers = limits.max_batch * max(map(math.prod, shapes))
    most = numbers * _CONTENT_BYTES + _HEADER_BYTES
    if size > most:
        raise TooLarge(f"message: expected at most {most} bytes for {method}, got {size}")


async def infer(
    hosted: HostedModel, request: InferRequest, limits: Limits, left_s: float | None = None
) -> InferResponse:
    """Answers a request.

    Args:
        hosted: the model that it asks.
        request: one tensor `query` [B, *input], float32 or float16.
        limits: for its batch.
        left_s: seconds that the caller still waits, where the transport says so.

    Raises:
        RequestError, ValueError, CodedInvError: no answer; see `status_of`.
    """
    began = time.monotonic()
    try:
        server = hosted.ready_server()
        tasks = _tasks(server, request)
        queries = _queries(server, request, limits)
        deadline = _deadline(server, request.parameters, left_s)
        found = await server.predict_async(queries, deadline)
        predictions = found if isinstance(found, list) else [found]
        answer = InferResponse(
            model_name=hosted.name,
            model_version=predictions[0].version,
            outputs=[_output(task, predictions, request) for task in tasks],
            id=request.id,
            parameters=_parameters(predictions),
        )
    except BaseException:
        hosted.statistics.failed(time.monotonic() - began)
        raise
    hosted.statistics.succeeded(len(predictions), time.monotonic() - began)
    return answer


def _tasks(server: CodedServer, request: InferRequest) -> list[str]:
    """The tasks whose outputs are wanted: `outputs`, else the parameter `task`, else all."""
    known = list(server.model.heads)
    wanted = [output.name for output in request.outputs]
    task = request.parameters.get("task")
    if task is not None:
        if task not in known:
            raise RequestError(f"parameters: task: expected one of {known}, got {_cut(task)}")
        if any(name != task for name in wanted):
            raise RequestError("expected either outputs or the parameter task, got both")
        wanted = [str(task)]
    scheme = request.parameters.get("scheme", server.scheme.name)
    if scheme != server.scheme.name:
        raise RequestError(
            f"parameters: scheme: this model is served with {server.scheme.name!r}, "
            f"got {_cut(scheme)}"
        )
    wrong = [name for name in wanted if name not in known]
    if wrong or len(set(wanted)) != len(wanted):
        raise RequestError(f"outputs: expected some of {known}, each once, got {_cut(wanted)}")
    return wanted or known


def _queries(server: CodedServer, request: InferRequest, limits: Limits) -> Any:
    """The queries [B, *input] of a request; values are checked by the server."""
    shape = tuple(server.model.input_shape)
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = [tensor.name for tensor in request.inputs]
        raise RequestError(f"inputs: expected one tensor {INPUT!r}, got {_cut(names)}")
    (tensor,) = request.inputs
    array = tensor.array
    if tensor.datatype not in _FLOATS:
        raise RequestError(f"{INPUT}: expected FP32 or FP16, got {tensor.datatype}")
    if array.shape[1:] != shape or array.ndim == 0 or not len(array):
        expected = ["B", *shape]
        raise RequestError(f"{INPUT}: expected shape {expected}, got {_cut(list(array.shape))}")
    if len(array) > limits.max_batch:
        raise TooLarge(f"{INPUT}: expected at most {limits.max_batch} queries, got {len(array)}")
    return array


def _deadline(server: CodedServer, parameters: Parameters, left_s: float | None) -> float | None:
    """Seconds that the queries have: the parameter `timeout`, in microseconds as Triton's is, else
    the policy's; and never more than the caller waits."""
    timeout = parameters.get("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise RequestError(
            f"parameters: timeout: expected microseconds, an integer of 0 or more (0: none), "
            f"got {_cut(timeout)}"
        )
    seconds = timeout / 1e6 if timeout else server.policy.deadline_s
    if left_s is None:
        return seconds
    return max(_LEAST_S, left_s if seconds is None else min(seconds, left_s))


def _parameters(predictions: list[Prediction]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {
        "source": ",".join(p.source for p in predictions),
        "latency": max(p.latency for p in predictions),
    }
    if len({p.version for p in predictions}) > 1:
        found["version"] = ",".join(p.version for p in predictions)
    return found


def _output(task: str, predictions: list[Prediction], request: InferRequest) -> Tensor:
    array = np.stack([np.asarray(p.outputs[task], np.float32) for p in predictions])
    count = next((o.class_count for o in request.outputs if o.name == task), 0)
    return Tensor(task, _classes(array, count) if count else array)


def _classes(array: Any, count: int) -> Any:
    """The largest values of each row as "value:index", the largest first: [B, count] of BYTES."""
    rows = array.reshape(len(array), -1)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    found = np.empty(order.shape, object)
    for (row, place), index in np.ndenumerate(order):
        found[row, place] = f"{rows[row, index]:f}:{index}".encode()
    return found


def _cut(value: Parameter | list[Any]) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
