"""Requests and answers as gRPC's messages: tensors as raw contents or as typed contents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from codedinv.oip.datatypes import BYTES, dtype_of
from codedinv.oip.errors import ProtocolError
from codedinv.oip.messages import message
from codedinv.oip.tensors import (
    InferRequest,
    InferResponse,
    Parameter,
    Parameters,
    RequestedOutput,
    Tensor,
    check_count,
    check_shape,
    class_count_of,
    from_numbers,
    from_raw,
    to_raw,
    with_names,
)

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}  # FP16 and BF16 travel raw only


def encode_request(model: str, request: InferRequest, version: str = "") -> Any:
    """A request as `ModelInferRequest`, tensors as raw contents.

    Args:
        model: who is asked.
        request: what.
        version: of the model; empty: whichever there is.
    """
    encoded = message("ModelInferRequest")(model_name=model, model_version=version, id=request.id)
    _encode_parameters(encoded.parameters, request.parameters)
    _encode_tensors(request.inputs, encoded.inputs, encoded.raw_input_contents)
    for output in request.outputs:
        parameters: dict[str, Parameter] = {}
        if output.class_count:
            parameters["classification"] = output.class_count
        _encode_parameters(encoded.outputs.add(name=output.name).parameters, parameters)
    return encoded


def decode_request(encoded: Any, expected: Sequence[str] = ()) -> InferRequest:
    """The request in a `ModelInferRequest`.

    Args:
        expected: names of the model's inputs, where they are known: for an error's words.

    Raises:
        ProtocolError: its tensors are not as it says.
    """
    check_count("outputs", len(encoded.outputs))
    try:
        inputs = _decode_tensors("inputs", encoded.inputs, encoded.raw_input_contents)
    except ProtocolError as error:
        names = [tensor.name for tensor in encoded.inputs[: len(expected) + 1]]
        raise with_names(error, names, expected) from None
    return InferRequest(
        inputs=inputs,
        outputs=[
            RequestedOutput(
                output.name, True, class_count_of(output.name, _parameters(output.parameters))
            )
            for output in encoded.outputs
        ],
        id=encoded.id,
        parameters=_parameters(encoded.parameters),
        binary=True,
    )


def encode_response(response: InferResponse) -> Any:
    """An answer as `ModelInferResponse`, tensors as raw contents."""
    encoded = message("ModelInferResponse")(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    _encode_parameters(encoded.parameters, response.parameters)
    _encode_tensors(response.outputs, encoded.outputs, encoded.raw_output_contents)
    return encoded


def decode_response(encoded: Any) -> InferResponse:
    """The answer in a `ModelInferResponse`.

    Raises:
        ProtocolError: its tensors are not as it says.
    """
    return InferResponse(
        model_name=encoded.model_name,
        model_version=encoded.model_version,
        outputs=_decode_tensors("outputs", encoded.outputs, encoded.raw_output_contents),
        id=encoded.id,
        parameters=_parameters(encoded.parameters),
    )


def _encode_tensors(tensors: Any, entries: Any, raws: Any) -> None:
    for tensor in tensors:
        entries.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
        raws.append(to_raw(tensor.array))


def _decode_tensors(what: str, entries: Any, raws: Any) -> list[Tensor]:
    check_count(what, len(entries))
    if raws and len(raws) != len(entries):
        raise ProtocolError(
            f"raw contents: expected one of each of {len(entries)}, got {len(raws)}"
        )
    names = [entry.name for entry in entries]
    if not names or len(set(names)) != len(names):
        raise ProtocolError(f"{what}: expected one or more, each name once, got {names[:8]}")
    tensors = []
    for i, entry in enumerate(entries):
        name, datatype = entry.name, entry.datatype
        shape = check_shape(name, list(entry.shape))
        if not raws:
            tensors.append(_from_contents(name, datatype, shape, entry.contents))
        elif entry.HasField("contents"):
            raise ProtocolError(f"tensor {name!r}: expected either contents or raw contents")
        else:
            tensors.append(from_raw(name, datatype, shape, raws[i]))
    return tensors


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Tensor:
    dtype_of(datatype)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise ProtocolError(f"tensor {name!r}: expected raw contents, as for every {datatype}")
    others = [f.name for f, _ in contents.ListFields() if f.name != field]
    if others:
        raise ProtocolError(f"tensor {name!r}: expected {field} for {datatype}, got {others}")
    values = getattr(contents, field)
    if datatype == BYTES:
        return from_numbers(name, datatype, shape, list(values))
    wire = np.bool_ if datatype == "BOOL" else None
    return from_numbers(name, datatype, shape, np.array(values, wire))


def _encode_parameters(encoded: Any, parameters: Parameters) -> None:
    for key, value in parameters.items():
        if isinstance(value, bool):
            encoded[key].bool_param = value
        elif isinstance(value, int):
            encoded[key].int64_param = value
        elif isinstance(value, float):
            encoded[key].double_param = value
        else:
            encoded[key].string_param = value


def _parameters(encoded: Any) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for key, value in encoded.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise ProtocolError(f"parameters: {key!r}: expected a value, got none")
        found[key] = getattr(value, choice)
    return found
