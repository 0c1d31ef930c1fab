"""A saved linear backbone, pools of both kinds with their workers ready, and patience."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np
import pytest

from codedinv.workers import Backbone, BackboneSpec, Message, Pool, ProcessPool, Ready, ThreadPool
from tests.serving.linear_model import LinearModel


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """Queries of 64 bytes."""
    return LinearModel().saved(tmp_path_factory.mktemp("linear") / "bundle")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """Of the same shapes as `linear`, with other weights."""
    model = LinearModel()
    random = np.random.default_rng(5)
    model.matrix = np.linalg.qr(random.standard_normal((16, 16)))[0].astype(np.float32)
    return model.saved(tmp_path_factory.mktemp("other") / "bundle")


def spec_of(model: LinearModel) -> BackboneSpec:
    """The spec of a saved linear model."""
    assert model.folder is not None
    return BackboneSpec.of(model.folder, model.input_shape, model.embedding_shape)


def backbone_of(model: LinearModel) -> Backbone:
    """The backbone of a linear model, for threads."""
    return lambda x: model.embed(x[np.newaxis])[0]


@pytest.fixture
def spec(linear: LinearModel) -> BackboneSpec:
    """Its backbone."""
    return spec_of(linear)


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


@pytest.fixture
def start_pool(spec: BackboneSpec) -> Iterator[Callable[..., ProcessPool]]:
    """Starts pools of processes with all their workers ready, and closes them."""
    with ExitStack() as stack:

        def start(
            spec: BackboneSpec | Mapping[str, BackboneSpec] = spec,
            workers: int = 1,
            in_flight: int = 1,
        ) -> ProcessPool:
            pool = ProcessPool(spec, workers, in_flight)
            stack.callback(pool.close, 5.0)
            for worker in range(workers):
                pool.start(worker, 1)
            assert {type(m) for m in listen(pool, workers)} == {Ready}
            return pool

        yield start


StartAny = Callable[..., ProcessPool | ThreadPool]


@pytest.fixture(params=["process", "thread"])
def start_any(request: pytest.FixtureRequest, linear: LinearModel) -> Iterator[StartAny]:
    """Starts pools of either kind: `start_any({"backbone": model, ...}, workers=1)`."""
    with ExitStack() as stack:

        def start(
            models: Mapping[str, LinearModel] | None = None, workers: int = 1, in_flight: int = 8
        ) -> ProcessPool | ThreadPool:
            models = {"backbone": linear} if models is None else models
            pool: ProcessPool | ThreadPool
            if request.param == "process":
                specs = {name: spec_of(model) for name, model in models.items()}
                pool = ProcessPool(specs, workers, in_flight)
            else:
                pool = ThreadPool({n: backbone_of(model) for n, model in models.items()}, workers)
            stack.callback(pool.close, 5.0)
            for worker in range(workers):
                pool.start(worker, 1)
            assert {type(m) for m in listen(pool, workers)} == {Ready}
            return pool

        yield start
