"""Worker processes: what they are sent, how they end, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from codedinv.workers import BackboneSpec, Died, Message, ProcessPool, Ready, Result, TaskError
from tests.serving.linear_model import LinearModel

Listen = Callable[..., list[Message]]
StartPool = Callable[..., ProcessPool]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def start_pool(spec: BackboneSpec, listen: Listen) -> Iterator[StartPool]:
    """Starts pools with all their workers ready, and closes them."""
    with ExitStack() as stack:

        def start(spec: BackboneSpec = spec, workers: int = 1, in_flight: int = 1) -> ProcessPool:
            pool = ProcessPool(spec, workers, in_flight)
            stack.callback(pool.close, 5.0)
            for worker in range(workers):
                pool.start(worker, 1)
            assert {type(m) for m in listen(pool, workers)} == {Ready}
            return pool

        yield start


def test_a_worker_returns_the_embedding(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    query = linear.queries(1)
    pool.send(0, 1, 42, "backbone", query[0])
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    assert (result.worker, result.generation, result.task) == (0, 1, 42)
    np.testing.assert_allclose(result.embedding, linear.embed(query)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("input_shape", "embedding_shape"),
    [
        ((1, 200, 100), (1, 200, 100)),  # 80 kB both ways
        ((3, 224, 224), (3 * 224, 224)),  # 602 kB both ways
    ],
)
def test_large_arrays_go_through_shared_memory_unchanged(
    start_pool: StartPool,
    listen: Listen,
    tmp_path: Path,
    input_shape: tuple[int, ...],
    embedding_shape: tuple[int, ...],
) -> None:
    model = LinearModel(k=2, input_shape=input_shape, embedding_shape=embedding_shape)
    model.save(tmp_path / "bundle")
    spec = BackboneSpec(str(tmp_path / "bundle"), input_shape, embedding_shape)
    pool = start_pool(spec, in_flight=2)
    queries = model.queries(6)
    for task in range(0, 6, 2):
        pool.send(0, 1, task, "backbone", queries[task])
        pool.send(0, 1, task + 1, "backbone", queries[task + 1])
        for result in listen(pool, 2):
            assert isinstance(result, Result)
            expected = model.embed(queries[[result.task]])[0]
            np.testing.assert_allclose(result.embedding, expected, rtol=1e-6)


def test_many_tasks_in_flight_never_block_the_sender(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool(in_flight=256)
    pool.slow(0, 0.001)
    queries = linear.queries(256)
    for task, query in enumerate(queries):
        pool.send(0, 1, task, "backbone", query)
    results = listen(pool, 256)
    assert [r.task for r in results if isinstance(r, Result)] == list(range(256))


def test_a_kill_is_told_within_milliseconds(start_pool: StartPool, listen: Listen) -> None:
    pool = start_pool(workers=2)
    took = []
    for worker in range(2):
        killed_at = time.perf_counter()
        pool.kill(worker)
        (died,) = listen(pool, 1)
        took.append(time.perf_counter() - killed_at)
        assert isinstance(died, Died)
        assert died.worker == worker
        assert died.reason.startswith("ended")
    assert min(took) < 0.5, "measured at 2 ms; this much is a busy machine"


def test_results_sent_before_a_death_are_not_lost(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool(in_flight=8)
    for task, query in enumerate(linear.queries(8)):
        pool.send(0, 1, task, "backbone", query)
    time.sleep(0.5)
    pool.kill(0)
    time.sleep(0.1)
    kinds = [type(m) for m in listen(pool, 9)]
    assert kinds == [Result] * 8 + [Died]


def test_a_worker_that_dies_on_a_task_is_told_as_dead(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    pool.crash(0)
    pool.poll(0.0)
    pool.send(0, 1, 1, "backbone", linear.queries(1)[0])
    assert isinstance(listen(pool, 1)[0], Died)


def test_a_hung_worker_says_nothing_until_it_is_retired(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    (pid,) = pool.pids()
    pool.hang(0)
    pool.poll(0.0)
    pool.send(0, 1, 1, "backbone", linear.queries(1)[0])
    assert pool.poll(0.2) == []
    pool.retire(0, 1)
    assert pool.poll(0.2) == []
    wait_for_end([pid])
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]


def test_a_delay_lasts_until_it_is_taken_back(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    query = linear.queries(1)[0]
    for delay_s, least in ((0.2, 0.2), (0.0, 0.0)):
        pool.slow(0, delay_s)
        pool.poll(0.0)
        started = time.monotonic()
        pool.send(0, 1, 1, "backbone", query)
        listen(pool, 1)
        assert time.monotonic() - started >= least


def test_noise_changes_the_result(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    pool.corrupt(0, 0.5)
    pool.poll(0.0)
    query = linear.queries(1)
    pool.send(0, 1, 1, "backbone", query[0])
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    assert np.abs(result.embedding - linear.embed(query)[0]).max() > 0.1


def test_a_task_that_fails_leaves_the_worker_alive(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    query = linear.queries(1)[0]
    for message, kind in (("out of order", TaskError), ("", Result)):
        pool.fail(0, message)
        pool.poll(0.0)
        pool.send(0, 1, 7, "backbone", query)
        (answer,) = listen(pool, 1)
        assert isinstance(answer, kind)
        assert getattr(answer, "reason", "").endswith(message)


def test_a_backbone_that_does_not_load_says_why(spec: BackboneSpec, listen: Listen) -> None:
    pool = ProcessPool(replace(spec, folder="/nowhere"), 1)
    pool.start(0, 1)
    (died,) = listen(pool, 1)
    pool.close(1.0)
    assert isinstance(died, Died)
    assert "/nowhere/backbone.onnx" in died.reason


def test_a_backbone_of_another_shape_is_refused(spec: BackboneSpec, listen: Listen) -> None:
    pool = ProcessPool(replace(spec, embedding_shape=(16,)), 1)
    pool.start(0, 1)
    (died,) = listen(pool, 1)
    pool.close(1.0)
    assert isinstance(died, Died)
    assert "expected embeddings (16,), got (4, 2, 2)" in died.reason


def test_an_onnx_worker_has_no_torch_one_thread_and_little_memory(start_pool: StartPool) -> None:
    pool = start_pool()
    (pid,) = pool.pids()
    process = psutil.Process(pid)
    mapped = "\n".join(m.path for m in process.memory_maps())
    assert "onnxruntime" in mapped
    assert "torch" not in mapped
    assert process.memory_info().rss < 200e6
    assert process.environ()["OMP_NUM_THREADS"] == "1"


def test_a_worker_can_run_on_torch(
    small_bundle: Path, start_pool: StartPool, listen: Listen
) -> None:
    from codedinv.bundle import CodedModel

    model = CodedModel.load(small_bundle)
    shapes = tuple(model.input_shape), tuple(model.embedding_shape)
    query = np.random.default_rng(0).random((1, *shapes[0]), np.float32)
    pool = start_pool(BackboneSpec(str(small_bundle), *shapes, runtime="torch"))
    pool.send(0, 1, 1, "backbone", query[0])
    (result,) = listen(pool, 1)
    assert isinstance(result, Result)
    np.testing.assert_allclose(result.embedding, model.embed(query)[0], atol=1e-4)


def test_a_wake_ends_a_poll_and_is_never_lost(start_pool: StartPool) -> None:
    pool = start_pool()
    for _ in range(3):
        pool.wake()
        started = time.monotonic()
        assert pool.poll(20.0) == []
        assert time.monotonic() - started < 10


def test_close_leaves_no_process_thread_or_descriptor(spec: BackboneSpec, listen: Listen) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pool = ProcessPool(spec, 3)
    for worker in range(3):
        pool.start(worker, 1)
    listen(pool, 3)
    pids = pool.pids()
    pool.hang(1)
    pool.poll(0.0)
    pool.send(1, 1, 1, "backbone", np.zeros(spec.query_shape, np.float32))
    pool.close(0.5)
    wait_for_end(pids)
    assert not pool._starter.is_alive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_while_workers_start_leaves_none(spec: BackboneSpec) -> None:
    pool = ProcessPool(spec, 3)
    for worker in range(3):
        pool.start(worker, 1)
    pool.close(0.1)
    assert children_running_workers(psutil.Process()) == []


# ---- whatever kills the parent

PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from codedinv.serving import CodedServer, Policy
from tests.serving.linear_model import LinearModel
model = LinearModel()
server = CodedServer(model, workers=3, policy=Policy(hang_timeout_s=600))
server.pool.hang(1)
futures = [server.submit(q) for q in model.queries(30)]
time.sleep(0.3)
print(*server.pool.pids(), flush=True)
{then}
"""


def test_a_script_needs_no_main_guard_and_its_workers_end_with_it() -> None:
    pids = run_parent("sys.exit(0)")
    wait_for_end(pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_orphan(number: signal.Signals) -> None:
    pids = run_parent("time.sleep(600)", number)
    wait_for_end(pids)


def run_parent(then: str, number: signal.Signals | None = None) -> list[int]:
    """Runs a script that serves with one worker hung; returns its workers' process ids."""
    script = PARENT.format(root=str(ROOT), then=then)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 3
        if number is not None:
            parent.send_signal(number)
        parent.wait(60)
        return pids
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout:
            parent.stdout.close()


def wait_for_end(pids: list[int | None] | list[int], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while alive := [pid for pid in pids if pid and psutil.pid_exists(pid) and is_worker(pid)]:
        assert time.monotonic() < until, f"still alive: {alive}"
        time.sleep(0.02)


def is_worker(pid: int) -> bool:
    """Is it a worker that runs? (Not a zombie, which only waits to be looked at.)"""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return "codedinv.workers.child" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def children_running_workers(parent: psutil.Process) -> list[int]:
    return [child.pid for child in parent.children(recursive=True) if is_worker(child.pid)]


def test_a_wake_in_the_middle_of_a_wake_does_not_silence_later_ones(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = start_pool()
    real = pool._wake_read

    class WakesWhileRead:
        def recv(self, size: int) -> bytes:
            pool.wake()  # as another thread may at this very moment
            return real.recv(size)

    pool.wake()
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_wake_read", WakesWhileRead())
        pool.poll(5.0)
    pool.wake()
    before = time.monotonic()
    pool.poll(5.0)
    assert time.monotonic() - before < 4.0
