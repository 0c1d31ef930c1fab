"""Open Inference Protocol v2, as the gateway and its workers' clients speak it: messages and
tensors, without any connection.

`codedinv.oip.rest` needs orjson, `codedinv.oip.grpc_codec` and `codedinv.oip.messages` protobuf and
grpcio; all come with the extra `gateway`.
"""

from __future__ import annotations

from codedinv.oip.errors import ProtocolError
from codedinv.oip.tensors import (
    InferRequest,
    InferResponse,
    Parameter,
    Parameters,
    RequestedOutput,
    Tensor,
)

__all__ = [
    "InferRequest",
    "InferResponse",
    "Parameter",
    "Parameters",
    "ProtocolError",
    "RequestedOutput",
    "Tensor",
]
