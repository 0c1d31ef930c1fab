"""What a server says of its model, held against the backbone that it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from codedinv.errors import CodedInvError
from codedinv.oip import InferRequest, InferResponse, ProtocolError, RequestedOutput, Tensor
from codedinv.workers.backbone import Array, BackboneSpec
from codedinv.workers.integrity import content_hash

HASH_PARAMETER = "codedinv_sha256"  # in a model's configuration or metadata
QUERY, EMBEDDING = "query", "embedding"


class TensorInfo(NamedTuple):
    """One tensor of a model's signature; a size of -1 is any."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelInfo(NamedTuple):
    """What a server says of a model; `parameters` are those of its metadata and configuration."""

    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    parameters: Mapping[str, str]


class WrongModel(CodedInvError):
    """A server's model is not the backbone that is to be served."""


@dataclass(frozen=True)
class Signature:
    """How to ask a model for an embedding. Made by `Signature.of`.

    Attributes:
        query, embedding: the tensors' names at the server.
        query_shape, embedding_shape: of one query and its result.
        is_batch: the server wants a leading axis, and gives one.
    """

    query: str
    embedding: str
    query_shape: tuple[int, ...]
    embedding_shape: tuple[int, ...]
    is_batch: bool

    @classmethod
    def of(cls, info: ModelInfo, spec: BackboneSpec) -> Signature:
        """Checks that a server's model can be the backbone: tensors, datatype, shapes, and the
        hash of its files where the server gives one.

        A tensor may have any name where there is only one; else `query` and `embedding` are meant.

        Raises:
            WrongModel: it cannot; the message says what was expected and what the server has.
        """
        query = _the_one("inputs", info.inputs, QUERY)
        embedding = _the_one("outputs", info.outputs, EMBEDDING)
        for tensor in (query, embedding):
            if tensor.datatype != "FP32":
                raise WrongModel(f"{tensor.name}: expected FP32, the server has {tensor.datatype}")
        is_batch = _is_batch(query, spec.query_shape)
        if _is_batch(embedding, spec.embedding_shape) != is_batch:
            raise WrongModel(
                f"expected a batch axis in both or neither, the server has {query.name} "
                f"{list(query.shape)} and {embedding.name} {list(embedding.shape)}"
            )
        stated, meant = info.parameters.get(HASH_PARAMETER), _hash_of(spec)
        if stated and meant and stated != meant:
            raise WrongModel(f"{HASH_PARAMETER}: expected {meant}, the server has {stated}")
        return cls(query.name, embedding.name, spec.query_shape, spec.embedding_shape, is_batch)

    def request(self, query: Array, identity: str) -> InferRequest:
        """What to send for a query (*input); `identity` is for the server's log, and because some
        servers do not answer a request that has none."""
        array = query[np.newaxis] if self.is_batch else query
        return InferRequest(
            inputs=[Tensor(self.query, np.ascontiguousarray(array, np.float32))],
            outputs=[RequestedOutput(self.embedding, binary=True)],
            id=identity,
        )

    def result(self, response: InferResponse) -> Array:
        """The embedding (*embedding) of an answer, the receiver's own copy.

        Raises:
            ProtocolError: the answer has none, or one of another shape or datatype.
        """
        tensor = next((t for t in response.outputs if t.name == self.embedding), None)
        if tensor is None:
            got = [t.name for t in response.outputs]
            raise ProtocolError(f"answer: expected an output {self.embedding!r}, got {got}")
        shape = (1, *self.embedding_shape) if self.is_batch else self.embedding_shape
        if tensor.datatype != "FP32" or tensor.array.shape != shape:
            raise ProtocolError(
                f"{self.embedding}: expected FP32 {list(shape)}, "
                f"got {tensor.datatype} {list(tensor.array.shape)}"
            )
        return np.array(tensor.array, np.float32).reshape(self.embedding_shape)


def _the_one(what: str, tensors: Sequence[TensorInfo], name: str) -> TensorInfo:
    named = [tensor for tensor in tensors if tensor.name == name]
    if named or len(tensors) == 1:
        return (named or list(tensors))[0]
    got = [tensor.name for tensor in tensors]
    raise WrongModel(f"{what}: expected one, or one of name {name!r}; the server has {got}")


def _is_batch(tensor: TensorInfo, shape: tuple[int, ...]) -> bool:
    """Does the server's tensor have an axis more than one query's?"""
    got = tensor.shape
    for is_batch, expected in ((False, shape), (True, (1, *shape))):
        if len(got) == len(expected) and all(
            size in (-1, wanted) for size, wanted in zip(got, expected, strict=True)
        ):
            return is_batch
    raise WrongModel(
        f"{tensor.name}: expected {[-1, *shape]} or {list(shape)}, the server has {list(got)}"
    )


def _hash_of(spec: BackboneSpec) -> str | None:
    return content_hash(Path(spec.folder), spec.hashes)
