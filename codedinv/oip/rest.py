"""Requests and answers over REST: JSON, and the binary tensor extension.

A message with binary tensors is its JSON followed by their raw bytes in the order in which the
JSON names them, each with a parameter `binary_data_size`; the HTTP header
`Inference-Header-Content-Length` says how long the JSON is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from codedinv.oip.datatypes import BYTES
from codedinv.oip.errors import ProtocolError
from codedinv.oip.tensors import (
    InferRequest,
    InferResponse,
    Parameter,
    RequestedOutput,
    Tensor,
    check_count,
    check_shape,
    class_count_of,
    from_numbers,
    from_raw,
    shortened,
    to_raw,
    with_names,
)

HEADER_LENGTH = "Inference-Header-Content-Length"


def encode_request(request: InferRequest, binary: bool = True) -> tuple[bytes, int | None]:
    """A request's body, and what its header `Inference-Header-Content-Length` says; None: the body
    is all JSON, and the header is not sent.

    Args:
        binary: inputs as raw bytes, not in JSON.
    """
    header: dict[str, Any] = {}
    if request.id:
        header["id"] = request.id
    parameters = dict(request.parameters)
    if request.binary:
        parameters["binary_data_output"] = True
    if parameters:
        header["parameters"] = parameters
    raws: list[bytes] = []
    header["inputs"] = [_encode_tensor(tensor, binary, raws) for tensor in request.inputs]
    if request.outputs:
        header["outputs"] = [_encode_requested(output) for output in request.outputs]
    return _join(header, raws)


def decode_request(
    body: Any, header_length: int | None, expected: Sequence[str] = ()
) -> InferRequest:
    """The request in a body.

    Args:
        body: bytes or a memoryview; the tensors may be views of it.
        header_length: what the header `Inference-Header-Content-Length` says; None: it is not
            there, and the body is all JSON.
        expected: names of the model's inputs, where they are known: for an error's words.

    Raises:
        ProtocolError: it is none.
    """
    header, raw = _split(body, header_length)
    try:
        inputs = _decode_tensors(header, "inputs", raw)
    except ProtocolError as error:
        entries = header.get("inputs")
        named = entries[: len(expected) + 1] if isinstance(entries, list) else []
        names = [entry.get("name") for entry in named if isinstance(entry, dict)]
        raise with_names(error, names, expected) from None
    parameters = dict(_parameters("request", header))
    binary = _flag("request", parameters, "binary_data_output")
    parameters.pop("binary_data_output", None)
    return InferRequest(
        inputs=inputs,
        outputs=[_decode_requested(entry) for entry in _list(header, "outputs", optional=True)],
        id=_string("request", header, "id", optional=True),
        parameters=parameters,
        binary=binary,
    )


def encode_response(
    response: InferResponse, request: InferRequest | None = None
) -> tuple[bytes, int | None]:
    """An answer's body and header length, as `encode_request` gives them.

    Args:
        request: says which outputs it wants as raw bytes; None: all.
    """
    header: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        header["model_version"] = response.model_version
    if response.id:
        header["id"] = response.id
    if response.parameters:
        header["parameters"] = dict(response.parameters)
    raws: list[bytes] = []
    header["outputs"] = [
        _encode_tensor(tensor, request is None or request.wants_binary(tensor.name), raws)
        for tensor in response.outputs
    ]
    return _join(header, raws)


def decode_response(body: Any, header_length: int | None) -> InferResponse:
    """The answer in a body; arguments and errors as those of `decode_request`.

    Some servers (KServe) write null for what they do not have; that is as if it were not there.
    """
    header, raw = _split(body, header_length)
    header = _without_nulls(header)
    if isinstance(outputs := header.get("outputs"), list):
        header["outputs"] = [_without_nulls(o) if isinstance(o, dict) else o for o in outputs]
    return InferResponse(
        model_name=_string("answer", header, "model_name"),
        model_version=_string("answer", header, "model_version", optional=True),
        outputs=_decode_tensors(header, "outputs", raw),
        id=_string("answer", header, "id", optional=True),
        parameters=_parameters("answer", header),
    )


def parse_header_length(value: str | None) -> int | None:
    """The header `Inference-Header-Content-Length`, where there is one.

    Raises:
        ProtocolError: not a number of bytes.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 18):
        raise ProtocolError(f"{HEADER_LENGTH}: expected a number of bytes, got {shortened(value)}")
    return int(value)


def parse_object(body: Any) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ProtocolError: it is none.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"body: expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise ProtocolError(f"body: expected a JSON object, got {shortened(found)}")
    return found


def _split(body: Any, header_length: int | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON of a message, and what follows it."""
    view = memoryview(body)
    if header_length is None:
        return parse_object(view), view[len(view) :]
    if header_length > len(view):
        raise ProtocolError(
            f"{HEADER_LENGTH}: expected at most the body's {len(view)} bytes, got {header_length}"
        )
    return parse_object(view[:header_length]), view[header_length:]


def _join(header: dict[str, Any], raws: list[bytes]) -> tuple[bytes, int | None]:
    encoded = orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY)
    if not raws:
        return encoded, None
    return b"".join([encoded, *raws]), len(encoded)


def _encode_tensor(tensor: Tensor, binary: bool, raws: list[bytes]) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.array.shape),
    }
    if binary:
        raw = to_raw(tensor.array)
        encoded["parameters"] = {"binary_data_size": len(raw)}
        raws.append(raw)
    else:
        encoded["data"] = _numbers(tensor)
    return encoded


def _numbers(tensor: Tensor) -> Any:
    """What orjson makes the tensor's JSON of."""
    flat = np.ascontiguousarray(tensor.array).ravel()
    if tensor.datatype == BYTES:
        return [bytes(element).decode() for element in flat]
    return flat.astype(np.float32) if tensor.datatype == "BF16" else flat


def _decode_tensors(header: dict[str, Any], key: str, raw: memoryview) -> list[Tensor]:
    tensors, at = [], 0
    for entry in _list(header, key):
        if not isinstance(entry, dict):
            raise ProtocolError(f"{key}: expected objects, got {shortened(entry)}")
        name = _string(key, entry, "name")
        shape = check_shape(name, entry.get("shape"))
        size = _parameters(name, entry).get("binary_data_size")
        if size is None:
            if "data" not in entry:
                raise ProtocolError(f"tensor {name!r}: expected data, or binary_data_size")
            tensors.append(from_numbers(name, entry.get("datatype"), shape, entry["data"]))
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - at:
            raise ProtocolError(
                f"tensor {name!r}: binary_data_size: expected at most the {len(raw) - at} bytes "
                f"that are left, got {shortened(size)}"
            )
        if "data" in entry:
            raise ProtocolError(f"tensor {name!r}: expected either data or binary_data_size")
        tensors.append(from_raw(name, entry.get("datatype"), shape, raw[at : at + size]))
        at += size
    if at != len(raw):
        raise ProtocolError(f"body: {len(raw) - at} bytes after the last tensor belong to none")
    _check_names(key, tensors)
    return tensors


def _without_nulls(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _encode_requested(output: RequestedOutput) -> dict[str, Any]:
    parameters: dict[str, Parameter] = {"binary_data": output.binary}
    if output.class_count:
        parameters["classification"] = output.class_count
    return {"name": output.name, "parameters": parameters}


def _decode_requested(entry: Any) -> RequestedOutput:
    if not isinstance(entry, dict):
        raise ProtocolError(f"outputs: expected objects, got {shortened(entry)}")
    name = _string("outputs", entry, "name")
    parameters = _parameters(name, entry)
    return RequestedOutput(
        name, _flag(name, parameters, "binary_data"), class_count_of(name, parameters)
    )


def _flag(where: str, parameters: Mapping[str, Parameter], key: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise ProtocolError(f"{where}: {key}: expected true or false, got {shortened(value)}")
    return value


def _parameters(where: str, entry: dict[str, Any]) -> dict[str, Parameter]:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict) or not all(
        isinstance(value, bool | int | float | str) for value in parameters.values()
    ):
        raise ProtocolError(
            f"{where}: parameters: expected an object of numbers, strings and booleans, "
            f"got {shortened(parameters)}"
        )
    return parameters


def _string(where: str, entry: dict[str, Any], key: str, optional: bool = False) -> str:
    value = entry.get(key, "" if optional else None)
    if not isinstance(value, str):
        raise ProtocolError(f"{where}: {key}: expected a string, got {shortened(value)}")
    return value


def _list(entry: dict[str, Any], key: str, optional: bool = False) -> list[Any]:
    value = entry.get(key, [] if optional else None)
    if not isinstance(value, list) or not (value or optional):
        raise ProtocolError(f"{key}: expected a list, got {shortened(value)}")
    check_count(key, len(value))
    return value


def _check_names(key: str, tensors: list[Tensor]) -> None:
    names = [tensor.name for tensor in tensors]
    if len(set(names)) != len(names):
        raise ProtocolError(f"{key}: expected each name once, got {shortened(names)}")
