"""A model is replaced while queries go on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codedinv.errors import CodedInvError, ServerClosed
from codedinv.schemes import invertible
from codedinv.serving import CodedServer, Policy, Prediction
from tests.serving.helpers import check_answers, wait_until
from tests.serving.linear_model import Anchors, LinearModel

Serve = Callable[..., CodedServer]


def other_model(**options: Any) -> LinearModel:
    """A model that says the opposite."""
    model = LinearModel(**options)
    assert model.matrix is not None
    model.matrix = -model.matrix
    model.anchors = Anchors(model.anchors.queries, model.embed(model.anchors.queries))
    return model


def test_a_reload_under_traffic_loses_nothing_and_mixes_nothing(
    serve: Serve, linear: LinearModel, tmp_path: Path, backend: str
) -> None:
    """Every answer, reconstructed ones too, is wholly the old model's or wholly the new one's."""
    new = other_model().saved(tmp_path / "new")
    server = serve(backend=backend)
    queries = linear.queries(32)
    of_old, of_new = linear.outputs(queries), new.outputs(queries)
    answers: list[tuple[int, Prediction]] = []
    stop = threading.Event()

    def traffic(seed: int) -> None:
        i = seed
        while not stop.is_set():
            answers.append((i % 32, server.predict(queries[i % 32])))
            i += 1

    callers = [threading.Thread(target=traffic, args=(seed,)) for seed in range(3)]
    for caller in callers:
        caller.start()
    server.reload(new)
    done = len(answers)
    wait_until(lambda: len(answers) > done + 20)
    stop.set()
    for caller in callers:
        caller.join(30)
    kinds = []
    for i, prediction in answers:
        label = prediction.outputs["label"]
        is_old, is_new = (np.allclose(label, of[i], atol=1e-4) for of in (of_old, of_new))
        assert is_old != is_new, "an answer of neither model"
        kinds.append(is_new)
    assert all(kinds[done + 3 :]), "an answer of the old model after the reload"
    assert server.model is new
    stats = server.stats()
    assert stats.reloads == 1
    assert sum(stats.failed.values()) == 0
    assert len(stats.workers) == 5
    check_answers(server.predict(queries), of_new)


def test_a_reload_may_change_code_and_embedding(serve: Serve, tmp_path: Path) -> None:
    server = serve(LinearModel(k=4).saved(tmp_path / "old"), workers=5)
    new = LinearModel(k=2, embedding_shape=(16,)).saved(tmp_path / "new")
    server.reload(new)
    queries = new.queries(8)
    check_answers(server.predict(queries), new.outputs(queries))
    assert server.scheme.plan.k == 2


def test_one_reload_after_another(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread")
    queries = linear.queries(4)
    for new in (other_model(), linear, other_model()):
        server.reload(new)
        check_answers(server.predict(queries), new.outputs(queries))
    assert server.stats().reloads == 3


def test_reloads_of_several_threads_follow_each_other(serve: Serve) -> None:
    server = serve(backend="thread")
    models = [other_model() for _ in range(3)]
    callers = [threading.Thread(target=server.reload, args=(m,)) for m in models]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert server.stats().reloads == 3
    assert any(server.model is model for model in models)


def test_an_event_loop_reloads_its_server(linear: LinearModel) -> None:
    new = other_model()
    queries = linear.queries(4)

    async def main() -> Any:
        async with CodedServer(linear, backend="thread") as server:
            await server.reload_async(new)
            return await server.predict_async(queries)

    check_answers(asyncio.run(main()), new.outputs(queries))


def test_a_model_that_cannot_start_is_refused_and_the_old_one_goes_on(
    serve: Serve, linear: LinearModel, tmp_path: Path
) -> None:
    server = serve()
    broken = other_model().saved(tmp_path / "broken")
    (tmp_path / "broken" / "backbone.onnx").write_bytes(b"not a network")
    with pytest.raises(CodedInvError, match="could not be started"):
        server.reload(broken)
    assert server.model is linear
    assert server.stats().reloads == 0
    assert server.stats().reloads_failed == 1
    queries = linear.queries(8)
    check_answers(server.predict(queries), linear.outputs(queries))
    new = other_model().saved(tmp_path / "new")
    server.reload(new)
    check_answers(server.predict(queries), new.outputs(queries))


def test_a_model_of_another_shape_is_refused(serve: Serve, linear: LinearModel) -> None:
    server = serve(backend="thread")
    with pytest.raises(ValueError, match=r"input_shape \(1, 4, 4\), got \(1, 2, 8\)"):
        server.reload(LinearModel(input_shape=(1, 2, 8)))
    assert server.model is linear


def test_a_batch_that_waits_for_room_is_checked_by_the_model_that_takes_it(serve: Serve) -> None:
    """Also if that has a narrower range than the one that the batch came for."""
    narrow: Any = other_model()
    narrow.input_range = 0.0, 1.0
    server = serve(backend="thread", workers=1, scheme="uncoded", policy=Policy(max_queue=2))
    reloaded = threading.Thread(target=server.reload, args=(narrow,))
    reloaded.start()
    with pytest.raises(ValueError, match=r"finite values in \[0.0, 1.0\]"):
        server.predict_batch(np.broadcast_to(np.float32(2), (100_000, *narrow.input_shape)))
    reloaded.join(60)


def test_a_model_of_other_tasks_is_refused(serve: Serve, linear: LinearModel) -> None:
    other = other_model()
    other.heads = {"label": other.classifier, "kind": other.counter}
    server = serve()
    with pytest.raises(ValueError, match=r"tasks and outputs .*'count'.*got .*'kind'"):
        server.reload(other)
    check_answers([server.predict(linear.queries(1)[0])], linear.outputs(linear.queries(1)))


def test_a_server_with_a_scheme_of_the_callers_needs_one_for_the_new_model(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread", scheme=invertible(linear))
    new = other_model()
    with pytest.raises(ValueError, match="scheme: expected one for the new model"):
        server.reload(new)
    server.reload(new, scheme=invertible(new))
    queries = new.queries(4)
    check_answers(server.predict(queries), new.outputs(queries))


def test_a_reload_that_takes_too_long_is_told_and_goes_on(
    serve: Serve, linear: LinearModel
) -> None:
    server = serve(backend="thread", policy=Policy(hang_timeout_s=1.0))
    server.pool.hang(0)
    server.submit(linear.queries(1)[0])
    new = other_model()
    with pytest.raises(CodedInvError, match="it goes on"):
        server.reload(new, timeout=0.001)
    wait_until(lambda: server.model is new)


def test_closing_ends_a_reload(linear: LinearModel) -> None:
    server = CodedServer(linear, backend="thread", policy=Policy(drain_timeout_s=0.2))
    for worker in range(5):
        server.pool.hang(worker)
    futures = [server.submit(q) for q in linear.queries(5)]  # no worker is free to be replaced
    errors: list[BaseException] = []

    def reload() -> None:
        try:
            server.reload(other_model())
        except BaseException as error:
            errors.append(error)

    caller = threading.Thread(target=reload)
    caller.start()
    time.sleep(0.2)
    server.close()
    caller.join(30)
    assert isinstance(errors[0], ServerClosed)
    assert all(f.done() for f in futures)
    with pytest.raises(ServerClosed):
        server.reload(other_model())


def test_the_folder_of_a_model_that_is_replaced_goes_with_it(serve: Serve) -> None:
    server = serve(LinearModel(), workers=2)
    first = server._deployed[0].temporary
    assert first is not None
    server.reload(other_model())
    second = server._deployed[0].temporary
    assert second is not None
    assert second.path.exists()
    wait_until(lambda: not first.path.exists())
