"""The gRPC service's messages and calls, made from its compiled description.

They live in a descriptor pool of their own: tritonclient, kserve and others register messages of
the same names in the process's default pool, which takes only one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from codedinv.oip.errors import ProtocolError

SERVICE = "inference.GRPCInferenceService"


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """The pool with the service's description."""
    own = descriptor_pool.DescriptorPool()
    compiled = files("codedinv.oip").joinpath("proto", "inference.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        own.AddSerializedFile(file.SerializeToString())
    return own


@cache
def message(name: str) -> Any:
    """The class of a message: `message("ModelInferRequest")`."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(f"inference.{name}"))


class Stub:
    """The service's calls over a channel of `grpc` or `grpc.aio`: `stub.ModelInfer(request)`.

    Each is the channel's multi-callable, with its `timeout`, `metadata` and `future`.
    """

    def __init__(self, channel: Any) -> None:
        for method in pool().FindServiceByName(SERVICE).methods:
            if not (method.client_streaming or method.server_streaming):
                call = channel.unary_unary(
                    f"/{SERVICE}/{method.name}",
                    request_serializer=message(method.input_type.name).SerializeToString,
                    response_deserializer=message(method.output_type.name).FromString,
                )
                setattr(self, method.name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{SERVICE} has no call {name!r}")


def parse_request(method: str, wire: bytes) -> Any:
    """The request message of a method.

    Raises:
        ProtocolError: it is none.
    """
    name = pool().FindServiceByName(SERVICE).FindMethodByName(method).input_type.name
    try:
        return message(name).FromString(wire)
    except DecodeError:
        raise ProtocolError(f"expected the bytes of an inference.{name}") from None


def handlers(calls: Mapping[str, Callable[..., Any]], parsed: bool = True) -> Any:
    """A generic handler for a server of `grpc` or `grpc.aio`.

    Args:
        calls: by the method's name; what is not there is answered by UNIMPLEMENTED.
        parsed: they get messages; else bytes, for `parse_request`, where a client that sends no
            message is to be told INVALID_ARGUMENT: grpc itself says UNKNOWN.
    """
    import grpc

    by_name = {method.name: method for method in pool().FindServiceByName(SERVICE).methods}
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            name: grpc.unary_unary_rpc_method_handler(
                call,
                request_deserializer=(
                    message(by_name[name].input_type.name).FromString if parsed else None
                ),
                response_serializer=message(by_name[name].output_type.name).SerializeToString,
            )
            for name, call in calls.items()
        },
    )
