"""Batches: who is in one, when it begins, and what becomes of it if something goes wrong."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from codedinv.errors import BundleError
from codedinv.workers import (
    BackboneSpec,
    Batching,
    Died,
    Dropped,
    Message,
    Pool,
    ProcessPool,
    Ready,
    Result,
    TaskError,
    ThreadPool,
)
from codedinv.workers.batches import Queue, results_of
from tests.workers.conftest import listen

SHAPE = (1, 1, 2)
POISON = 3.0


# ---- the decision, on virtual time


@dataclass
class Run:
    """A worker on virtual time that takes batches from a queue, each call `call_s` long."""

    batching: Batching
    limits: dict[str, int]
    capacity: int = 128
    call_s: float = 0.01
    began: list[tuple[float, str, list[int]]] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def over(self, events: Sequence[tuple[float, int, str | None]]) -> Run:
        """Plays (time, task, model, or None to cancel the task) in the order of time."""
        queue: Queue[int] = Queue(self.batching, self.limits, self.capacity)
        free, left = 0.0, sorted(events, key=lambda event: event[0])
        now = 0.0
        while left or len(queue):
            while left and left[0][0] <= now:
                at, task, model = left.pop(0)
                if model is not None:
                    queue.put(task, model, task, at)
                elif queue.cancel(task) is not None:
                    self.dropped.append(task)
            wait_s = queue.wait_s(now)
            if wait_s is not None and wait_s <= 1e-12:
                self.began.append((now, *queue.take()))
                free = now + self.call_s
                now = free
                continue
            until = [] if wait_s is None else [now + wait_s]
            now = min(until + [event[0] for event in left[:1]], default=now)
        return self


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 0.2), st.sampled_from(["a", "b", "c"]), st.booleans()), max_size=60
)


@settings(deadline=None, max_examples=300)
@given(
    arrivals=ARRIVALS,
    max_batch=st.integers(1, 9),
    delay_us=st.sampled_from([0, 500, 20_000]),
    limit_of_c=st.integers(1, 4),
    capacity=st.integers(1, 20),
)
def test_each_task_is_in_one_batch_of_its_own_kind_in_order_and_none_is_too_large(
    arrivals: list[tuple[float, str, bool]],
    max_batch: int,
    delay_us: int,
    limit_of_c: int,
    capacity: int,
) -> None:
    limits = {"a": max_batch, "b": max_batch, "c": min(limit_of_c, max_batch)}
    events: list[tuple[float, int, str | None]] = []
    for task, (at, model, cancelled) in enumerate(sorted(arrivals, key=lambda a: a[0])):
        events.append((at, task, model))
        if cancelled:
            events.append((at + 0.005, task, None))
    run = Run(Batching(max_batch, delay_us), limits, capacity).over(events)
    model_of = {task: model for _, task, model in events if model is not None}
    answered = [task for _, _, tasks in run.began for task in tasks]
    assert sorted(answered + run.dropped) == sorted(model_of)
    for _, model, tasks in run.began:
        assert {model_of[task] for task in tasks} == {model}
        assert 1 <= len(tasks) <= limits[model]
    for model in limits:
        of_model = [task for task in answered if model_of[task] == model]
        assert of_model == sorted(of_model)


@settings(deadline=None, max_examples=200)
@given(
    models=st.lists(st.sampled_from("abc"), min_size=1, max_size=40), max_batch=st.integers(1, 8)
)
def test_a_task_waits_for_no_more_batches_than_tasks_came_before_it(
    models: list[str], max_batch: int
) -> None:
    limits = dict.fromkeys("abc", max_batch)
    run = Run(Batching(max_batch), limits).over([(0.0, i, m) for i, m in enumerate(models)])
    place = {task: i for i, (_, _, tasks) in enumerate(run.began) for task in tasks}
    assert all(place[task] <= task for task in place)


def test_a_worker_takes_what_is_there_and_waits_for_nobody_by_default() -> None:
    run = Run(Batching(8), {"a": 8}).over([(0.0, 0, "a"), (0.001, 1, "a"), (0.002, 2, "a")])
    assert run.began == [(0.0, "a", [0]), (0.01, "a", [1, 2])]


def test_with_a_delay_the_oldest_waits_so_long_for_others_and_no_longer() -> None:
    arrivals = [(0.0, 0, "a"), (0.001, 1, "a"), (0.0035, 2, "a")]
    run = Run(Batching(8, 3000), {"a": 8}).over(arrivals)
    assert [(round(at, 6), tasks) for at, _, tasks in run.began] == [(0.003, [0, 1]), (0.013, [2])]


def test_a_full_batch_and_a_full_worker_wait_for_nobody() -> None:
    pair = [(0.0, 0, "a"), (0.001, 1, "a")]
    assert Run(Batching(2, 3000), {"a": 2}).over(pair).began == [(0.001, "a", [0, 1])]
    assert Run(Batching(8, 3000), {"a": 8}, capacity=2).over(pair).began == [(0.001, "a", [0, 1])]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 0), "max_batch: expected an integer from 1 to 64, got 0"),
        ((65, 0), "max_batch: expected an integer from 1 to 64, got 65"),
        ((True, 0), "max_batch: expected an integer from 1 to 64, got True"),
        ((8, -1), "max_queue_delay_us: expected an integer from 0 to 1000000, got -1"),
        ((8, 0.5), "max_queue_delay_us: expected an integer"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batching(*numbers)


def test_a_query_that_fails_the_whole_call_fails_alone() -> None:
    sizes = []

    def call(queries: np.ndarray) -> np.ndarray:
        sizes.append(len(queries))
        if (queries == POISON).any():
            raise RuntimeError("poisoned")
        return queries + 1

    queries = [np.full(2, value, np.float32) for value in (0.0, POISON, 2.0)]
    first, second, third = results_of(call, queries)
    np.testing.assert_array_equal([first, third], [[1, 1], [3, 3]])
    assert isinstance(second, RuntimeError)
    assert sizes == [3, 1, 1, 1]


def test_a_call_that_loses_a_row_is_no_result_of_any() -> None:
    queries = [np.full(2, value, np.float32) for value in range(3)]
    results = list(results_of(lambda batch: batch[: max(1, len(batch) - 1)], queries))
    np.testing.assert_array_equal(results, queries)


# ---- workers


def counting_model(folder: Path, batch: int | str = "batch") -> BackboneSpec:
    """f(x) = (x[0], number of queries in the call); a value of 3 or more fails the whole call."""
    folder.mkdir()
    nodes = [
        helper.make_node("ReduceMax", ["query"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["nothing"]),
        helper.make_node("Shape", ["query"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["query", "mask"], ["first"]),
        helper.make_node("Mul", ["count", "other"], ["second"]),
        helper.make_node("Add", ["first", "second"], ["sum"]),
        helper.make_node("Add", ["sum", "nothing"], ["embedding"]),
    ]
    constants = {
        "table": np.zeros(3, np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "mask": np.array([1, 0], np.float32),
        "other": np.array([0, 1], np.float32),
    }
    tensor = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *SHAPE])
        for name in ("query", "embedding")
    ]
    graph = helper.make_graph(
        nodes, "g", tensor[:1], tensor[1:],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "backbone.onnx")
    return BackboneSpec.of(folder, SHAPE, SHAPE, runtime="onnx")


def counting(queries: np.ndarray) -> np.ndarray:
    """The same for threads."""
    if (queries >= POISON).any():
        raise RuntimeError("poisoned")
    return np.concatenate([queries[..., :1], np.full_like(queries[..., :1], len(queries))], -1)


def query(value: float) -> np.ndarray:
    return np.full(SHAPE, value, np.float32)


Start = Callable[..., ProcessPool | ThreadPool]


@pytest.fixture(params=["process", "thread"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Starts a pool of one worker with so many in flight, the models "backbone" and "twin"."""
    pools: list[ProcessPool | ThreadPool] = []

    def make(batching: Batching, in_flight: int = 16) -> ProcessPool | ThreadPool:
        names = ("backbone", "twin")
        if request.param == "thread":
            pools.append(ThreadPool(dict.fromkeys(names, counting), 1, in_flight, batching))
        else:
            specs = {name: counting_model(tmp_path / name) for name in names}
            pools.append(ProcessPool(specs, 1, in_flight, batching))
        pools[-1].start(0, 1)
        assert listen(pools[-1], 1) == [Ready(0, 1)]
        return pools[-1]

    yield make
    for pool in pools:
        pool.close(5.0)


def at_once(pool: Pool, tasks: Sequence[tuple[int, str, float]]) -> dict[int, Message]:
    """Gives a stopped worker tasks (id, model, value); how they end once it goes on, in order."""
    assert isinstance(pool, ProcessPool | ThreadPool)
    pool.pause(0)
    for task, model, value in tasks:
        pool.send(0, 1, task, model, query(value))
    pool.resume(0)
    return {m.task: m for m in listen(pool, len(tasks)) if not isinstance(m, Ready | Died)}


def sizes(ends: dict[int, Message]) -> list[int]:
    """How many were in the call of each task, in the order they ended."""
    return [int(m.embedding[0, 0, 1]) for m in ends.values() if isinstance(m, Result)]


def test_what_waits_at_a_worker_goes_into_one_call(start: Start) -> None:
    pool = start(Batching(4))
    ends = at_once(pool, [(task, "backbone", task / 10) for task in range(9)])
    values = {t: float(m.embedding[0, 0, 0]) for t, m in ends.items() if isinstance(m, Result)}
    assert values == pytest.approx({task: task / 10 for task in range(9)})
    assert max(sizes(ends)) == 4
    assert list(ends) == list(range(9))


def test_a_batch_holds_one_model_and_overtakes_no_older_task_of_its_own(start: Start) -> None:
    pool = start(Batching(4))
    names = ["backbone", "twin", "backbone", "backbone", "twin"]
    ends = at_once(pool, [(i, name, i / 10) for i, name in enumerate(names)])
    # A worker that wakes up slowly may begin with what it has read by then.
    assert sizes(ends) in ([3, 3, 3, 2, 2], [1, 2, 2, 2, 2]), list(ends)
    assert [task for task in ends if task in (0, 2, 3)] == [0, 2, 3]
    assert [task for task in ends if task in (1, 4)] == [1, 4]


def test_a_poisonous_query_does_not_fail_those_in_its_batch(start: Start) -> None:
    pool = start(Batching(8))
    ends = at_once(pool, [(i, "backbone", POISON if i == 3 else i / 10) for i in range(6)])
    assert {task: type(m) for task, m in ends.items()} == {
        task: TaskError if task == 3 else Result for task in range(6)
    }
    for task, message in ends.items():
        if isinstance(message, Result):
            assert message.embedding[0, 0, 0] == pytest.approx(task / 10)


def test_a_cancelled_task_that_waits_is_dropped_before_a_batch_is_formed(start: Start) -> None:
    pool = start(Batching(4))
    pool.pause(0)
    for task in range(5):
        pool.send(0, 1, task, "backbone", query(task / 10))
    for task in (0, 2):
        pool.cancel(0, 1, task)
    pool.resume(0)
    ends = {m.task: m for m in listen(pool, 5) if not isinstance(m, Ready | Died)}
    if isinstance(pool, ThreadPool):  # a process may have begun the first before it was stopped
        assert isinstance(ends[0], Dropped)
        assert sizes(ends) == [3, 3, 3]
    assert isinstance(ends[2], Dropped)
    assert {type(ends[task]) for task in (1, 3, 4)} == {Result}


def test_a_kill_in_the_middle_of_a_batch_is_one_death_and_no_more(start: Start) -> None:
    pool = start(Batching(8))
    pool.hang(0)
    pool.poll(0.0)
    for task in range(6):
        pool.send(0, 1, task, "backbone", query(0.0))
    assert pool.poll(0.5) == []
    pool.cancel(0, 1, 0)  # it is in the call, so it cannot be dropped
    assert pool.poll(0.2) == []
    pool.kill(0)
    messages = listen(pool, 1)
    messages += pool.poll(0.3)
    assert [type(m) for m in messages if not isinstance(m, Dropped)] == [Died]
    pool.start(0, 2)
    assert listen(pool, 1) == [Ready(0, 2)]
    pool.send(0, 2, 7, "backbone", query(0.5))
    assert isinstance(listen(pool, 1)[0], Result)


def test_a_delay_is_of_a_call_and_noise_of_each_result(start: Start) -> None:
    pool = start(Batching(8))
    pool.slow(0, 0.4)
    pool.flip(0, 22)
    pool.poll(0.0)
    began = time.monotonic()
    ends = at_once(pool, [(task, "backbone", 1.0) for task in range(8)])
    assert len(ends) == 8
    assert time.monotonic() - began >= 0.4
    flips = {m.embedding.tobytes() for m in ends.values() if isinstance(m, Result)}
    assert query(1.0).tobytes() not in flips
    assert len(flips) > 1


def test_an_idle_worker_waits_for_a_batch_to_fill_up(start: Start) -> None:
    pool = start(Batching(3, 10**6))
    for first in (0, 3, 6, 9):  # more than once, for a machine that stops for a second
        for task in range(first, first + 3):
            pool.send(0, 1, task, "backbone", query(0.0))
            time.sleep(0.05)
        if sizes({m.task: m for m in listen(pool, 3) if isinstance(m, Result)}) == [3, 3, 3]:
            return
    pytest.fail("no batch was waited for")


def test_64_tasks_go_into_one_call_of_a_process(tmp_path: Path) -> None:
    pool = ProcessPool(counting_model(tmp_path / "m"), 1, 128, Batching(64))
    pool.start(0, 1)
    listen(pool, 1)
    ends = at_once(pool, [(task, "backbone", task / 128) for task in range(100)])
    assert max(sizes(ends)) == 64
    assert sorted(ends) == list(range(100))
    pool.close(5.0)


def test_a_graph_with_a_fixed_batch_axis_is_called_one_by_one_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = ProcessPool(counting_model(tmp_path / "fixed", batch=1), 1, 8, Batching(8))
    pool.start(0, 1)
    listen(pool, 1)
    assert set(sizes(at_once(pool, [(task, "backbone", 0.5) for task in range(5)]))) == {1}
    pool.close(5.0)
    assert "backbone: its batch axis is fixed, so it takes 1 at a time" in capfd.readouterr().err


def test_a_graph_for_four_queries_and_no_other_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected a batch axis of any length, or of 1, got 4"):
        counting_model(tmp_path / "four", batch=4).load()


def test_a_backbone_of_threads_may_take_fewer(caplog: pytest.LogCaptureFixture) -> None:
    class Few:
        max_batch = 2

        def __call__(self, queries: np.ndarray) -> np.ndarray:
            return counting(queries)

    pool = ThreadPool(Few(), 1, 8, Batching(8))
    with caplog.at_level(logging.WARNING):
        pool.start(0, 1)
    listen(pool, 1)
    assert max(sizes(at_once(pool, [(task, "backbone", 0.5) for task in range(6)]))) == 2
    assert "takes 2 at a time" in caplog.text
    pool.close(5.0)
