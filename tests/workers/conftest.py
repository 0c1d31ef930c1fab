"""A saved linear backbone, pools of both kinds with their workers ready, and patience."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import numpy as np
import pytest

from codedinv.workers import (
    Backbone,
    BackboneSpec,
    Message,
    Pool,
    ProcessPool,
    Ready,
    Result,
    ThreadPool,
)
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
    return model.embed


@pytest.fixture
def spec(linear: LinearModel) -> BackboneSpec:
    """Its backbone."""
    return spec_of(linear)


def listen(pool: Pool, count: int, timeout_s: float = 100.0) -> list[Message]:
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


@pytest.fixture(scope="session")
def sound_pools(linear: LinearModel) -> Iterator[dict[int, ProcessPool]]:
    """Pools of processes that a test left sound, for the next (a start costs 0.2 s of processor
    time), by their number of workers: all in generation 1, all running `linear`, 8 in flight."""
    pools: dict[int, ProcessPool] = {}
    yield pools
    for pool in pools.values():
        pool.close(5.0)


@pytest.fixture(params=["process", "thread"])
def start_any(
    request: pytest.FixtureRequest, linear: LinearModel, sound_pools: dict[int, ProcessPool]
) -> Iterator[StartAny]:
    """Starts pools of either kind: `start_any({"backbone": model, ...}, workers=1)`."""
    reusable: list[ProcessPool] = []
    with ExitStack() as stack:

        def start(
            models: Mapping[str, LinearModel] | None = None, workers: int = 1
        ) -> ProcessPool | ThreadPool:
            of_linear, models = models is None, models or {"backbone": linear}
            if request.param == "thread":
                return ready(ThreadPool({n: backbone_of(m) for n, m in models.items()}, workers))
            if of_linear and workers in sound_pools:
                reusable.append(sound_pools.pop(workers))
                return reusable[-1]
            pool = ProcessPool({name: spec_of(m) for name, m in models.items()}, workers, 8)
            if not of_linear:
                return ready(pool)
            reusable.append(pool)
            return start_all(pool)

        def ready(pool: ProcessPool | ThreadPool) -> ProcessPool | ThreadPool:
            stack.callback(pool.close, 5.0)
            return start_all(pool)

        yield start
        for pool in reusable:
            if len(pool.pids()) not in sound_pools and is_sound(pool, linear):
                sound_pools[len(pool.pids())] = pool
            else:
                pool.close(0.2)


def start_all(pool: ProcessPool | ThreadPool) -> ProcessPool | ThreadPool:
    """Starts generation 1 of every worker and waits until it is ready."""
    workers = len(pool.pids())
    for worker in range(workers):
        pool.start(worker, 1)
    assert {type(m) for m in listen(pool, workers)} == {Ready}
    return pool


def is_sound(pool: ProcessPool, linear: LinearModel) -> bool:
    """Takes all faults back; is it then as if it had just been started?"""
    workers = range(len(pool.pids()))
    if None in pool.pids() or list(pool._versions) != [0]:
        return False
    for worker in workers:
        pool.resume(worker)
        pool.slow(worker, 0.0)
        pool.fail(worker, "")
        pool.corrupt(worker, 0.0)
        pool.stick(worker, False)
        pool.flip(worker, None)
        pool.impersonate(worker, None)
    queries = linear.queries(1)
    pool.poll(0.0)
    for worker in workers:
        pool.send(worker, 1, 12345, "backbone", queries[0])
    results = [m for _ in workers for m in pool.poll(0.3)]
    expected = linear.embed(queries)[0]
    return {(m.worker, m.generation) for m in results} == {(w, 1) for w in workers} and all(
        isinstance(m, Result) and m.task == 12345 and np.allclose(m.embedding, expected, atol=1e-5)
        for m in results
    )
