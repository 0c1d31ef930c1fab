"""Workers as actors of a real Ray on this machine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codedinv.serving import CodedServer
from codedinv.workers import BackboneSpec, Died, Dropped, Ready, Result, TaskError
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import listen, spec_of

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]

StartRay = Callable[..., Any]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray cluster of this machine alone, with room for twelve actors."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'codedinv[ray]'")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=12, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1"
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def start_ray(ray: Any, spec: BackboneSpec) -> Iterator[StartRay]:
    """Starts a pool of one actor, waits until it is ready, and closes it in the end."""
    from codedinv.workers.ray import RayPool

    with ExitStack() as stack:

        def start(models: Any = spec, **options: Any) -> RayPool:
            pool = RayPool(models, 1, **options)
            stack.callback(pool.close, 20.0)
            pool.start(0, 1)
            (message,) = listen(pool, 1)
            assert message == Ready(0, 1), message
            return pool

        yield start


def test_an_actor_runs_each_model_that_it_was_given(
    start_ray: StartRay, linear: LinearModel, other: LinearModel
) -> None:
    pool = start_ray({"backbone": spec_of(linear), "parity": spec_of(other)})
    query = linear.queries(1)
    for name, model in (("parity", other), ("backbone", linear)):
        pool.send(0, 1, 7, name, query[0])
        (result,) = listen(pool, 1)
        assert isinstance(result, Result)
        np.testing.assert_allclose(result.embedding, model.embed(query)[0], atol=1e-5)
    pool.send(0, 1, 8, "nothing", query[0])
    reason = "model: expected one of ['backbone', 'parity'], got 'nothing'"
    assert listen(pool, 1) == [TaskError(0, 1, 8, reason)]


def test_a_task_that_fails_says_why_and_the_actor_goes_on(
    start_ray: StartRay, linear: LinearModel
) -> None:
    pool = start_ray()
    pool.fail(0, "poisoned")
    until = time.monotonic() + 60
    while isinstance(message := ask(pool, linear), Result):  # the fault is on its way
        assert time.monotonic() < until
    assert message == TaskError(0, 1, 7, "RuntimeError: poisoned")
    pool.fail(0, "")
    while not isinstance(ask(pool, linear), Result):
        assert time.monotonic() < until


def test_a_task_that_waits_behind_another_can_be_taken_back(
    start_ray: StartRay, linear: LinearModel
) -> None:
    pool = start_ray()
    pool.slow(0, 3.0)
    time.sleep(0.5)  # the fault travels
    for task in (1, 2):
        pool.send(0, 1, task, "backbone", linear.queries(1)[0])
    pool.cancel(0, 1, 2)
    assert {m.task: type(m) for m in listen(pool, 2)} == {1: Result, 2: Dropped}


def test_a_killed_actor_dies_once_though_idle_and_is_made_anew(
    start_ray: StartRay, linear: LinearModel
) -> None:
    pool = start_ray()
    (before,) = pool.pids()
    pool.kill(0)
    (died,) = listen(pool, 1)
    assert isinstance(died, Died)
    assert died.generation == 1
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]
    assert pool.pids() != [before]
    assert isinstance(ask(pool, linear, generation=2), Result)


def test_an_actor_that_ray_restarts_is_used_again(start_ray: StartRay, linear: LinearModel) -> None:
    pool = start_ray(max_restarts=1)
    handle = pool._actors[0].handle
    pool.kill(0)
    (died,) = listen(pool, 1)
    assert isinstance(died, Died)
    generation = start_until_ready(pool, 2)
    assert pool._actors[0].handle is handle
    assert isinstance(ask(pool, linear, generation), Result)
    pool.kill(0)
    listen(pool, 1)
    start_until_ready(pool, generation + 1)
    assert pool._actors[0].handle is not handle


def start_until_ready(pool: Any, generation: int) -> int:
    """As a server does: an actor that Ray is still restarting may be unavailable at first."""
    until = time.monotonic() + 100
    while True:
        pool.start(0, generation)
        (message,) = listen(pool, 1)
        if isinstance(message, Ready):
            return generation
        assert time.monotonic() < until, message
        generation += 1
        time.sleep(0.2)


def test_actors_go_where_a_placement_group_says(ray: Any, start_ray: StartRay) -> None:
    group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}])
    ray.get(group.ready(), timeout=60)
    pool = start_ray(placement=group)

    def placed(_: object) -> object:
        import ray

        return ray.util.get_current_placement_group().id

    assert ray.get(pool._actors[0].handle.__ray_call__.remote(placed)) == group.id
    pool.close(20.0)
    ray.util.remove_placement_group(group)


def test_a_bundle_that_was_replaced_is_refused(
    ray: Any, linear: LinearModel, spec: BackboneSpec
) -> None:
    from codedinv.workers.ray import RayPool

    pool = RayPool(replace(spec, hashes={"backbone.onnx": "0" * 64}), 1)
    pool.start(0, 1)
    (died,) = listen(pool, 1)
    pool.close(20.0)
    assert isinstance(died, Died)
    assert "backbone.onnx: expected sha256 0000" in died.reason


@pytest.mark.parametrize("how", ["ray.kill", "SIGKILL"])
def test_a_killed_actor_of_five_costs_no_answer(ray: Any, linear: LinearModel, how: str) -> None:
    from codedinv.workers.ray import RayPool

    queries = linear.queries(400)
    pool = {"backend": "ray"} if how == "ray.kill" else {"pool": RayPool(None, 6, num_cpus=0.5)}
    with CodedServer(linear, workers=5, **pool) as server:
        futures = []
        for i, query in enumerate(queries):
            futures.append(server.submit(query, deadline=60.0))
            if i == 100 and how == "ray.kill":
                server.pool.kill(2)
            elif i == 100:  # of which Ray hears later
                os.kill(server.pool.pids()[2], signal.SIGKILL)
            time.sleep(0.01)
        predictions = [future.result() for future in futures]
        for prediction, row in zip(predictions, linear.outputs(queries), strict=True):
            np.testing.assert_allclose(prediction.outputs["label"], row, atol=1e-4)
        until = time.monotonic() + 60
        while server.stats().deaths < 1 or server.stats().workers.count("ready") < 5:
            assert time.monotonic() < until, server.stats()
            time.sleep(0.1)


def ask(pool: Any, model: LinearModel, generation: int = 1) -> Any:
    """What comes of one task of worker 0."""
    pool.send(0, generation, 7, "backbone", model.queries(1)[0])
    (message,) = listen(pool, 1)
    return message
