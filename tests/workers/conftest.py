"""A saved linear backbone, and patience."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from codedinv.workers import BackboneSpec, Message, Pool
from tests.serving.linear_model import LinearModel


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """Queries of 64 bytes."""
    return LinearModel().saved(tmp_path_factory.mktemp("linear") / "bundle")


@pytest.fixture
def spec(linear: LinearModel) -> BackboneSpec:
    """Its backbone."""
    return BackboneSpec(str(linear.folder), linear.input_shape, linear.embedding_shape)


def listen(pool: Pool, count: int, timeout_s: float = 30.0) -> list[Message]:
    """The next `count` messages."""
    messages: list[Message] = []
    until = time.monotonic() + timeout_s
    while len(messages) < count:
        assert time.monotonic() < until, f"expected {count} messages, got {messages}"
        messages += pool.poll(1.0)
    return messages


@pytest.fixture(name="listen")
def listen_fixture() -> Callable[..., list[Message]]:
    """`listen`."""
    return listen
