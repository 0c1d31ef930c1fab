"""Seeded requests that are right, nearly right, or rubbish, over REST and gRPC."""

from __future__ import annotations

import gzip
import json
import random
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from codedinv.oip import InferRequest, RequestedOutput, Tensor, grpc_codec, rest

SHAPE = (1, 28, 28)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 1.5, -0.0, 1e308, "", "x", "é\u0000", []),
    *({}, [[]], [1, [2]], {"a": {"b": []}}, "9" * 300, [None], [-1], [2**62, 2**62]),
)


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        wire: an HTTP body, or a serialised `ModelInferRequest`.
        headers: of HTTP.
        model: in HTTP's path.
        queries: (B, 1, 28, 28) whose answer is expected if it is accepted; None: who knows.
    """

    wire: bytes
    headers: dict[str, str]
    model: str = "fashion-mnist"
    queries: Any = None


class Fuzzer:
    """Makes cases; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numpy = np.random.default_rng(seed)

    def http(self) -> Case:
        """A request over REST."""
        if self._random.random() < 0.05:
            return Case(self._random.randbytes(self._random.randrange(300)), self._headers({}))
        request = self._request()
        binary = self._random.random() < 0.5
        wire, length = rest.encode_request(request, binary)
        headers = {} if length is None else {rest.HEADER_LENGTH: str(length)}
        kind = self._random.randrange(7)
        if kind == 0:
            return Case(wire, headers, queries=request.inputs[0].array)
        if kind == 1:
            return Case(self._damaged(wire), headers)
        if kind == 2:
            return Case(wire, self._headers(headers), self._random.choice(["fashion-mnist", "x"]))
        if kind == 3:
            squeezed = gzip.compress(wire)
            if self._random.random() < 0.5:
                squeezed = self._damaged(squeezed)
            return Case(squeezed, headers | {"content-encoding": "gzip"})
        return Case(*self._odd_json(wire, length))

    def grpc(self) -> Case:
        """A call of ModelInfer."""
        if self._random.random() < 0.05:
            return Case(self._random.randbytes(self._random.randrange(300)), {})
        request = self._request()
        message = grpc_codec.encode_request("fashion-mnist", request)
        kind = self._random.randrange(5)
        if kind == 0:
            return Case(message.SerializeToString(), {}, queries=request.inputs[0].array)
        if kind == 1:
            return Case(self._damaged(message.SerializeToString()), {})
        for _ in range(self._random.randint(1, 3)):
            self._change(message)
        return Case(message.SerializeToString(), {})

    def _request(self) -> InferRequest:
        count = self._random.choice([1, 1, 2, 3, 5])
        x = self._numpy.random((count, *SHAPE), np.float32)
        wanted = [RequestedOutput("label", self._random.random() < 0.5)]
        return InferRequest([Tensor("query", x)], wanted if self._random.random() < 0.7 else [])

    def _damaged(self, wire: bytes) -> bytes:
        found = bytearray(wire)
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(found)) if found else 0
            kind = self._random.randrange(4)
            if kind == 0:
                found[at : at + 1] = self._random.randbytes(1)
            elif kind == 1:
                del found[at : at + self._random.randint(1, 40)]
            elif kind == 2:
                found[at:at] = self._random.randbytes(self._random.randint(1, 40))
            else:
                del found[at:]
        return bytes(found)

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        """Headers that lie."""
        odd = self._random.choice(["", "0", "7", "-1", "1e9", "9" * 30, "99999999", "x"])
        return headers | {
            self._random.choice([rest.HEADER_LENGTH, "content-type", "content-encoding"]): odd
        }

    def _odd_json(self, wire: bytes, length: int | None) -> tuple[bytes, dict[str, str]]:
        """A body with something odd at some place of its JSON."""
        end = len(wire) if length is None else length
        header = json.loads(wire[:end])
        place: Any = header
        while True:
            keys: Any = list(place) if isinstance(place, dict) else range(len(place))
            key = self._random.choice(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and inner and self._random.random() < 0.7:
                place = inner
                continue
            break
        if self._random.random() < 0.2 and isinstance(place, dict):
            del place[key]
        else:
            place[key] = self._random.choice(_ODD)
        encoded = json.dumps(header).encode()
        headers = {} if length is None else {rest.HEADER_LENGTH: str(len(encoded))}
        return encoded + wire[end:], headers

    def _change(self, message: Any) -> None:
        tensor = message.inputs[0] if message.inputs else message.inputs.add()
        kind = self._random.randrange(10)
        if kind == 0:
            sizes = [-1, 0, 1, 28, 2**31, 2**62]
            tensor.shape[:] = self._random.choices(sizes, k=self._random.randrange(40))
        elif kind == 1:
            tensor.datatype = self._random.choice(
                ["", "FP16", "FP64", "BYTES", "INT8", "BF16", "?"]
            )
        elif kind == 2:
            message.raw_input_contents.append(self._random.randbytes(self._random.randrange(64)))
        elif kind == 3:
            del message.raw_input_contents[:]
        elif kind == 4:
            tensor.contents.fp32_contents[:] = [self._random.random()] * self._random.randrange(900)
        elif kind == 5:
            tensor.contents.bytes_contents[:] = [b"x"]
        elif kind == 6:
            message.inputs.add(name=self._random.choice(["", "query", "other"]))
        elif kind == 7:
            message.model_name = self._random.choice(["", "x", "fashion-mnist"])
        elif kind == 8:
            message.outputs.add(name=self._random.choice(["", "label", "nothing"]))
        else:
            name = self._random.choice(["timeout", "task", "scheme", "other"])
            parameter = message.parameters[name]
            self._random.choice(
                [
                    lambda: setattr(parameter, "int64_param", self._random.choice([-1, 0, 2**62])),
                    lambda: setattr(parameter, "string_param", "x" * self._random.randrange(500)),
                    lambda: setattr(parameter, "double_param", float("nan")),
                    lambda: None,
                ]
            )()
        if message.raw_input_contents and self._random.random() < 0.1:
            raw = bytearray(message.raw_input_contents[0])
            if len(raw) >= 4:
                raw[:4] = struct.pack("<f", self._random.choice([float("nan"), float("inf"), 1e9]))
            message.raw_input_contents[0] = bytes(raw)
