"""The protocol's tensors, requests and answers, against tritonclient's own and against mistakes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tritonclient.grpc import service_pb2

import codedinv.oip
from codedinv.oip import (
    InferRequest,
    InferResponse,
    ProtocolError,
    RequestedOutput,
    Tensor,
    grpc_codec,
    rest,
)
from codedinv.oip.messages import SERVICE, message, pool
from codedinv.oip.tensors import from_numbers

PROTO = Path(codedinv.oip.__file__).with_name("proto")
NUMERIC = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
arrays = st.sampled_from(NUMERIC).flatmap(
    lambda dtype: npst.arrays(
        np.dtype(dtype),
        npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None,
    )
)


def assert_same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert np.array_equal(one, other)


def binary_request(entry, raw=b"", header_length=None):
    header = json.dumps({"inputs": [entry]}).encode()
    return header + raw, len(header) if header_length is None else header_length


@given(arrays, st.booleans())
def test_a_tensor_comes_out_of_rest_as_it_went_in(array, binary):
    request = InferRequest([Tensor("x", array)])
    back = rest.decode_request(*rest.encode_request(request, binary))
    assert_same(back.inputs[0].array, array)


@given(arrays)
def test_a_tensor_comes_out_of_grpc_as_it_went_in(array):
    wire = grpc_codec.encode_request("m", InferRequest([Tensor("x", array)])).SerializeToString()
    back = grpc_codec.decode_request(message("ModelInferRequest").FromString(wire))
    assert_same(back.inputs[0].array, array)


@pytest.mark.parametrize("binary", [True, False])
def test_bfloat16_and_bytes_travel_too(binary):
    half = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    words = np.array([[b"one"], [b""]], object)
    answer = InferResponse("m", [Tensor("half", half), Tensor("words", words)], "3", "id", {"a": 1})
    wanted = InferRequest([], binary=binary)
    back = rest.decode_response(*rest.encode_response(answer, wanted))
    assert (back.model_name, back.model_version, back.id) == ("m", "3", "id")
    assert back.parameters == {"a": 1}
    assert_same(back.outputs[0].array, half)
    assert_same(back.outputs[1].array, words)
    back = grpc_codec.decode_response(grpc_codec.encode_response(answer))
    assert_same(back.outputs[0].array, half)
    assert_same(back.outputs[1].array, words)


@pytest.mark.parametrize("binary", [True, False])
def test_it_reads_what_tritonclient_writes_over_http(binary):
    x = np.random.default_rng(0).random((2, 3), np.float32)
    sent = triton_http.InferInput("query", x.shape, "FP32")
    sent.set_data_from_numpy(x, binary_data=binary)
    wanted = [triton_http.InferRequestedOutput("label", binary_data=binary, class_count=2)]
    body, length = triton_http.InferenceServerClient.generate_request_body(
        [sent], outputs=wanted, request_id="7", timeout=5, parameters={"task": "label"}
    )
    request = rest.decode_request(body, length)
    assert_same(request.inputs[0].array, x)
    assert request.outputs == [RequestedOutput("label", binary, 2)]
    assert request.id == "7"
    assert request.parameters == {"timeout": 5, "task": "label"}


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_reads_what_it_writes_over_http(binary):
    y = np.random.default_rng(0).random((2, 3), np.float32)
    body, length = rest.encode_response(
        InferResponse("m", [Tensor("label", y)]), InferRequest([], binary=binary)
    )
    result = triton_http.InferenceServerClient.parse_response_body(body, header_length=length)
    assert_same(result.as_numpy("label"), y)


def test_messages_have_tritonclients_fields():
    def fields(file):
        pending, found = list(file.message_types_by_name.values()), {}
        while pending:
            one = pending.pop()
            pending += one.nested_types
            found[one.full_name] = {(f.number, f.name, f.type, f.is_repeated) for f in one.fields}
        return found

    ours = fields(pool().FindFileByName("grpc_service.proto"))
    assert ours == fields(service_pb2.DESCRIPTOR)
    assert message("ModelInferRequest") is not service_pb2.ModelInferRequest


def test_it_speaks_grpc_with_tritonclients_messages():
    x = np.random.default_rng(0).random((2, 3), np.float32)
    sent = triton_grpc.InferInput("query", x.shape, "FP32")
    sent.set_data_from_numpy(x)
    theirs = triton_grpc._utils._get_inference_request(
        inputs=[sent], model_name="m", model_version="", request_id="7",
        outputs=None, sequence_id=0, sequence_start=False, sequence_end=False, priority=0,
        timeout=5, parameters={"task": "label"},
    )  # fmt: skip
    request = grpc_codec.decode_request(
        message("ModelInferRequest").FromString(theirs.SerializeToString())
    )
    assert_same(request.inputs[0].array, x)
    assert request.parameters == {"timeout": 5, "task": "label"}
    answer = grpc_codec.encode_response(InferResponse("m", [Tensor("label", x)]))
    result = triton_grpc.InferResult(
        service_pb2.ModelInferResponse.FromString(answer.SerializeToString())
    )
    assert_same(result.as_numpy("label"), x)


def test_the_compiled_description_is_that_of_the_proto_files(tmp_path):
    out = tmp_path / "inference.binpb"
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={out}", "grpc_service.proto"], check=True)
    parse = descriptor_pb2.FileDescriptorSet.FromString
    assert parse((PROTO / "inference.binpb").read_bytes()) == parse(out.read_bytes())
    assert pool().FindServiceByName(SERVICE)


def test_typed_contents_are_read_as_raw_ones_are():
    request = message("ModelInferRequest")()
    request.inputs.add(name="x", datatype="FP32", shape=[2]).contents.fp32_contents[:] = [0.1, 2]
    request.inputs.add(name="n", datatype="INT8", shape=[2]).contents.int_contents[:] = [-128, 127]
    request.inputs.add(name="b", datatype="BOOL", shape=[1]).contents.bool_contents[:] = [True]
    request.inputs.add(name="w", datatype="BYTES", shape=[1]).contents.bytes_contents[:] = [b"w"]
    x, n, b, w = (tensor.array for tensor in grpc_codec.decode_request(request).inputs)
    assert_same(x, np.array([0.1, 2], np.float32))
    assert_same(n, np.array([-128, 127], np.int8))
    assert_same(b, np.array([True]))
    assert_same(w, np.array([b"w"], object))


FP32 = {"name": "x", "datatype": "FP32", "shape": [2]}


@pytest.mark.parametrize(
    ("entry", "message_part"),
    [
        (FP32 | {"data": [1, "2"]}, "expected numbers of FP32"),
        (FP32 | {"data": ["1", "2"]}, "expected numbers of FP32"),
        (FP32 | {"data": [None, 1]}, "expected numbers of FP32"),
        (FP32 | {"data": [1, 2, 3]}, "expected 2 numbers"),
        (FP32 | {"data": [[1], [2, 3]]}, "expected a list of numbers"),
        (FP32 | {"data": {"a": 1}}, "expected numbers of FP32"),
        (FP32 | {"data": [[1], 2]}, "expected a list of numbers"),
        (FP32 | {"data": [[[]]]}, "expected 2 numbers"),
        (FP32, "expected data, or binary_data_size"),
        (FP32 | {"datatype": "FP128", "data": [1, 2]}, "expected one of"),
        (FP32 | {"datatype": ["FP32"], "data": [1, 2]}, "expected one of"),
        (FP32 | {"shape": [-2], "data": [1, 2]}, "expected a shape"),
        (FP32 | {"shape": [True, 2], "data": [1, 2]}, "expected a shape"),
        (FP32 | {"shape": "2", "data": [1, 2]}, "expected a shape"),
        (FP32 | {"shape": None, "data": [1, 2]}, "expected a shape"),
        (FP32 | {"shape": [2**40, 2**40], "data": []}, "expected a shape"),
        (FP32 | {"shape": [0, 2**62], "data": []}, "expected a shape"),
        (FP32 | {"shape": [1] * 33, "data": [1]}, "expected a shape"),
        (FP32 | {"datatype": "INT8", "data": [1, 200]}, "from -128 to 127"),
        (FP32 | {"datatype": "UINT8", "data": [-1, 2]}, "from 0 to 255"),
        (FP32 | {"datatype": "INT8", "data": [1.0, 2.0]}, "expected numbers of INT8"),
        (FP32 | {"datatype": "BOOL", "data": [0, 1]}, "expected numbers of BOOL"),
        (FP32 | {"datatype": "BYTES", "data": ["a", 1]}, "expected strings"),
        (FP32 | {"parameters": {"binary_data_size": 9}}, "at most the 8 bytes"),
        (FP32 | {"parameters": {"binary_data_size": -1}}, "at most the 8 bytes"),
        (FP32 | {"parameters": {"binary_data_size": True}}, "at most the 8 bytes"),
        (FP32 | {"parameters": {"binary_data_size": 4}}, "expected 8 bytes"),
        (FP32 | {"shape": [1], "parameters": {"binary_data_size": 4}}, "belong to none"),
        (FP32 | {"data": [1, 2], "parameters": {"binary_data_size": 8}}, "either data or"),
        (FP32 | {"parameters": [8]}, "expected an object of"),
        (FP32 | {"name": 3}, "expected a string"),
        ("x", "expected objects"),
    ],
)
def test_a_malformed_tensor_is_named(entry, message_part):
    raw = b"" if isinstance(entry, dict) and "data" in entry else bytes(8)
    if isinstance(entry, dict) and entry.get("parameters"):
        raw = bytes(8)
    with pytest.raises(ProtocolError, match=message_part):
        rest.decode_request(*binary_request(entry, raw))


@pytest.mark.parametrize(
    ("body", "length", "message_part"),
    [
        (b"", None, "expected JSON"),
        (b"[]", None, "expected a JSON object"),
        (b"{", None, "expected JSON"),
        (b'{"inputs": []}', None, "inputs: expected a list"),
        (b'{"inputs": {}}', None, "inputs: expected a list"),
        (b"{}", None, "inputs: expected a list"),
        (b"{}", 3, "at most the body's 2 bytes"),
        (b"[" * 2000, None, "expected JSON"),
        (b'{"inputs": [{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', None, "JSON"),
        (b'{"id": 3, "inputs": []}', None, "expected a list|expected a string"),
    ],
)
def test_a_malformed_body_is_named(body, length, message_part):
    with pytest.raises(ProtocolError, match=message_part):
        rest.decode_request(body, length)


@pytest.mark.parametrize("value", ["", "-1", "1e3", "0x10", "١", "9" * 40, " 1"])
def test_a_header_length_is_a_plain_number(value):
    with pytest.raises(ProtocolError, match="expected a number of bytes"):
        rest.parse_header_length(value)


def test_a_name_given_twice_is_refused():
    entry = FP32 | {"data": [1, 2]}
    body = json.dumps({"inputs": [entry, entry]}).encode()
    with pytest.raises(ProtocolError, match="each name once"):
        rest.decode_request(body, None)


def test_malformed_grpc_tensors_are_named():
    def decode(*raws, **fields):
        request = message("ModelInferRequest")(raw_input_contents=raws)
        contents = fields.pop("contents", {})
        tensor = request.inputs.add(**{"name": "x", "datatype": "FP32", "shape": [2]} | fields)
        for key, values in contents.items():
            getattr(tensor.contents, key).extend(values)
        return grpc_codec.decode_request(request)

    for part, raws, fields in [
        ("expected 8 bytes", [bytes(7)], {}),
        ("expected one of each", [bytes(8), bytes(8)], {}),
        ("expected 2 numbers", [], {}),
        ("expected a shape", [bytes(8)], {"shape": [-1]}),
        ("expected one of", [bytes(8)], {"datatype": ""}),
        ("expected fp32_contents", [], {"contents": {"int_contents": [1, 2]}}),
        ("either contents or raw", [bytes(8)], {"contents": {"fp32_contents": [1, 2]}}),
        ("expected raw contents", [], {"datatype": "FP16", "contents": {"fp32_contents": [1, 2]}}),
        ("from 0 to 255", [], {"datatype": "UINT8", "contents": {"uint_contents": [1, 256]}}),
        ("bytes 0 or 1", [b"\1\2"], {"datatype": "BOOL"}),
        ("cut short", [b"\5\0\0\0ab"], {"datatype": "BYTES"}),
        ("too many", [b"\5\0"], {"datatype": "BYTES"}),
    ]:
        with pytest.raises(ProtocolError, match=part):
            decode(*raws, **fields)


@given(st.binary(max_size=200), st.none() | st.integers(0, 250))
def test_any_bytes_are_a_request_or_a_protocol_error(body, length):
    with contextlib.suppress(ProtocolError):
        rest.decode_request(body, length)


def test_an_answer_may_say_null_for_what_it_does_not_have():
    output = {"name": "z", "datatype": "FP32", "shape": [1], "data": [2.0], "parameters": None}
    body = {"model_name": "m", "model_version": None, "id": None, "parameters": None}
    answer = rest.decode_response(json.dumps({**body, "outputs": [output]}).encode(), None)
    assert (answer.model_version, answer.id, answer.parameters) == ("", "", {})
    assert answer.outputs[0].array == [2.0]


def test_strings_in_place_of_numbers_cost_no_more_memory_than_they_are():
    data = ["x" * 500, *[""] * 199_999]  # numpy would make 200 000 strings of 500 characters
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="expected numbers"):
            from_numbers("x", "FP32", (200_000,), data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def test_a_message_does_not_name_thousands_of_tensors():
    outputs = [{"name": str(i)} for i in range(2000)]
    encoded = message("ModelInferRequest")(outputs=outputs, inputs=[{"name": "x"}])
    with pytest.raises(ProtocolError, match="outputs: expected at most 1024, got 2000"):
        grpc_codec.decode_request(encoded)
    body = json.dumps({"inputs": [FP32 | {"data": [1, 2]}], "outputs": outputs}).encode()
    with pytest.raises(ProtocolError, match="outputs: expected at most 1024, got 2000"):
        rest.decode_request(body, None)
