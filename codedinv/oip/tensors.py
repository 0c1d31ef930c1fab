"""Tensors, requests and answers as they are before and after they travel."""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from codedinv.oip.datatypes import BYTES, datatype_of, dtype_of
from codedinv.oip.errors import ProtocolError

Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]

MAX_DIMENSIONS = 32
MAX_TENSORS = 1024  # that a message names
_MOST_ELEMENTS = 2**48  # of a shape, not counting dimensions of 0: numpy refuses larger ones

_KINDS = {"b": "b", "i": "iu", "u": "iu"}  # what numpy may make of a list, by the datatype's kind
_REPR = reprlib.Repr()  # cuts at some 6 elements and 30 characters
_REPR.maxlevel = 2


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named array.

    Attributes:
        name: in the model's signature.
        array: of a dtype that the protocol has; for BYTES dtype object, each element `bytes`. One
            that was decoded may be read-only, and a view of the message.
    """

    name: str
    array: np.ndarray[Any, Any]

    @property
    def datatype(self) -> str:
        """The protocol's name of the dtype."""
        return datatype_of(self.array.dtype)


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the answer is to have.

    Attributes:
        name: in the model's signature.
        binary: over REST: as raw bytes after the JSON header, not in it.
        class_count: 0: the tensor itself; else its so many largest values, as "value:index".
    """

    name: str
    binary: bool = False
    class_count: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """What a client asks of a model.

    Attributes:
        inputs: tensors.
        outputs: those that are wanted; empty: all.
        id: the client's name of the request, given back in the answer.
        parameters: of the request.
        binary: over REST: all outputs as raw bytes, where `outputs` is empty.
    """

    inputs: Sequence[Tensor]
    outputs: Sequence[RequestedOutput] = ()
    id: str = ""
    parameters: Parameters = field(default_factory=dict)
    binary: bool = False

    def wants_binary(self, output: str) -> bool:
        """Is this output to come as raw bytes?"""
        return next((o.binary for o in self.outputs if o.name == output), self.binary)


@dataclass(frozen=True, slots=True, eq=False)
class InferResponse:
    """What a model answers.

    Attributes:
        model_name: who answered.
        model_version: of it; empty: it has none.
        outputs: tensors.
        id: of the request.
        parameters: of the answer.
    """

    model_name: str
    outputs: Sequence[Tensor]
    model_version: str = ""
    id: str = ""
    parameters: Parameters = field(default_factory=dict)


def with_names(
    error: ProtocolError, names: Sequence[Any], expected: Sequence[str]
) -> ProtocolError:
    """A tensor's error, and beside it that the tensors are not those that are expected: a client
    with both mistakes would else hear of the second when it has mended the first.

    Args:
        names: of the message's tensors.
        expected: of the model's; empty: not known.
    """
    if not expected or list(names) == list(expected):
        return error
    wanted = " and ".join(map(repr, expected))
    return ProtocolError(f"inputs: expected {wanted}, got {shortened(list(names))}; {error}")


def shortened(value: Any) -> str:
    """What came, for an error's message, however large it was."""
    return _REPR.repr(value)


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """The shape that a message states.

    Raises:
        ProtocolError: not a list of a few integers of 0 or more.
    """
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or any(type(size) is not int or size < 0 for size in shape)
        or math.prod(size for size in shape if size) > _MOST_ELEMENTS
    ):
        raise ProtocolError(
            f"tensor {name!r}: expected a shape of at most {MAX_DIMENSIONS} integers of 0 or more, "
            f"got {shortened(shape)}"
        )
    return tuple(shape)


def check_count(what: str, count: int) -> None:
    """How many tensors a message names, before they are looked at one by one.

    Raises:
        ProtocolError: too many.
    """
    if count > MAX_TENSORS:
        raise ProtocolError(f"{what}: expected at most {MAX_TENSORS}, got {count}")


def class_count_of(output: str, parameters: Parameters) -> int:
    """An output's parameter `classification`.

    Raises:
        ProtocolError: not a count.
    """
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise ProtocolError(f"{output}: classification: expected a count, got {count!r}")
    return count


def from_raw(name: str, datatype: Any, shape: tuple[int, ...], raw: Any) -> Tensor:
    """A tensor from raw bytes: little-endian, rows last; BYTES as (uint32 length, bytes) each.

    Raises:
        ProtocolError: the bytes are not those of such a tensor.
    """
    dtype = dtype_of(datatype)
    count = math.prod(shape)
    if datatype == BYTES:
        return Tensor(name, _objects(_split(name, raw, count), shape))
    if len(raw) != count * dtype.itemsize:
        raise ProtocolError(
            f"tensor {name!r}: expected {count * dtype.itemsize} bytes for {datatype} "
            f"{list(shape)}, got {len(raw)}"
        )
    if datatype == "BOOL" and count and np.frombuffer(raw, np.uint8).max() > 1:
        raise ProtocolError(f"tensor {name!r}: expected bytes 0 or 1 for BOOL")
    return Tensor(name, np.frombuffer(raw, dtype).reshape(shape))


def to_raw(array: np.ndarray[Any, Any]) -> bytes:
    """The raw bytes of an array, as `from_raw` reads them."""
    datatype = datatype_of(array.dtype)
    if datatype == BYTES:
        elements = [bytes(element) for element in array.ravel()]
        return b"".join(struct.pack("<I", len(element)) + element for element in elements)
    return array.astype(dtype_of(datatype), copy=False).tobytes()


def from_numbers(name: str, datatype: Any, shape: tuple[int, ...], values: Any) -> Tensor:
    """A tensor from an array, or a flat or nested list of Python's numbers; for BYTES from a list
    of strings or bytes.

    Raises:
        ProtocolError: other things than numbers of this datatype, or another count of them.
    """
    dtype = dtype_of(datatype)
    count = math.prod(shape)
    if datatype == BYTES:
        return Tensor(name, _objects(_strings(name, values), shape))
    found = values if isinstance(values, np.ndarray) else _array(name, datatype, values, shape)
    if found.size != count:
        raise ProtocolError(
            f"tensor {name!r}: expected {count} numbers for shape {list(shape)}, got {found.size}"
        )
    if not count:
        return Tensor(name, np.empty(shape, dtype))
    if found.dtype.kind not in _KINDS.get(dtype.kind, "fiu"):
        raise ProtocolError(
            f"tensor {name!r}: data: expected numbers of {datatype}, got {found.dtype}"
        )
    if dtype.kind in "iu":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        if int(found.min()) < least or int(found.max()) > most:
            raise ProtocolError(f"tensor {name!r}: expected {datatype}, from {least} to {most}")
    with np.errstate(over="ignore"):  # infinity; who cannot use it says so
        return Tensor(name, found.astype(dtype).reshape(shape))


def _array(name: str, datatype: str, values: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The numbers of a flat or nested list, in one dimension.

    numpy is given nothing but numbers, and no more than it should be: of a million strings it makes
    a million of the longest one's size, and over millions of empty lists it thinks for half a
    minute.
    """
    most = math.prod(size for size in shape if size)
    level = values if isinstance(values, list) else [values]
    while level and len(level) <= most and isinstance(level[0], list):
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            raise ProtocolError(
                f"tensor {name!r}: data: expected a list of numbers, got a ragged one"
            )
        level = list(chain.from_iterable(level))
    if len(level) > most:
        raise ProtocolError(
            f"tensor {name!r}: expected {math.prod(shape)} numbers for shape {list(shape)}, "
            f"got {len(level)} or more"
        )
    kinds = set(map(type, level))
    if not kinds <= {bool, int, float}:
        got = sorted(kind.__name__ for kind in kinds)
        raise ProtocolError(f"tensor {name!r}: data: expected numbers of {datatype}, got {got}")
    if kinds == {int} and max(level) > np.iinfo(np.int64).max:
        # numpy would make floats of a list with small and such large ones.
        return np.asarray(level, np.uint64 if min(level) >= 0 and max(level) < 2**64 else object)
    return np.asarray(level)


def _split(name: str, raw: Any, count: int) -> list[bytes]:
    """The elements of a BYTES tensor."""
    elements, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ProtocolError(f"tensor {name!r}: {len(raw) - at} bytes too many at its end")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4 + length
        if at > len(raw):
            raise ProtocolError(f"tensor {name!r}: its last element is cut short")
        elements.append(bytes(raw[at - length : at]))
    if len(elements) != count:
        raise ProtocolError(f"tensor {name!r}: expected {count} elements, got {len(elements)}")
    return elements


def _strings(name: str, values: Any) -> list[bytes]:
    flat: list[bytes] = []
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += reversed(value)
        elif isinstance(value, str):
            flat.append(value.encode())
        elif isinstance(value, bytes):
            flat.append(value)
        else:
            raise ProtocolError(f"tensor {name!r}: data: expected strings, got {shortened(value)}")
    return flat


def _objects(elements: list[bytes], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    array = np.empty(len(elements), object)
    array[:] = elements
    if math.prod(shape) != len(elements):
        raise ProtocolError(
            f"expected {math.prod(shape)} elements for shape {list(shape)}, got {len(elements)}"
        )
    return array.reshape(shape)
