"""Staging memory and batch buckets, on a device that is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codedinv.workers import Batching, Ready, Result, ThreadPool
from codedinv.workers.staging import Staged, buckets_for
from tests.workers.conftest import listen
from tests.workers.stub_device import StubDevice

SHAPE = (1, 2, 3)


def network(x: torch.Tensor) -> torch.Tensor:
    return 2 * x.flatten(1)[:, :4] + 1


def expected(queries: np.ndarray) -> np.ndarray:
    return 2 * queries.reshape(len(queries), -1)[:, :4] + 1


def draw(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *SHAPE), np.float32)


@given(st.integers(1, 64))
def test_a_bucket_is_at_most_twice_the_batch_and_the_largest_is_the_limit(most: int) -> None:
    buckets = buckets_for(most)
    assert buckets[0] == 1
    assert buckets[-1] == most
    assert list(buckets) == sorted(set(buckets))
    for batch in range(1, most + 1):
        assert next(size for size in buckets if size >= batch) < 2 * batch


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=12))
def test_every_batch_gets_its_own_results_whatever_was_there_before(counts: list[int]) -> None:
    staged = Staged(network, StubDevice(), SHAPE, 8)
    for seed, count in enumerate(counts):
        queries = draw(count, seed)
        np.testing.assert_allclose(staged(queries), expected(queries), rtol=1e-6)


def test_a_network_is_recorded_once_for_each_bucket_and_run_on_no_other_size() -> None:
    device, sizes, places = StubDevice(), [], set()

    def watched(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        places.add(x.data_ptr())
        return network(x)

    staged = Staged(watched, device, SHAPE, 8)
    assert device.recorded == len(staged.buckets) == 4
    allocated = list(device.allocated)
    for count in (1, 3, 5, 8, 2):
        staged(draw(count))
    assert sizes[-5:] == [1, 4, 8, 8, 2]
    assert set(sizes) == {1, 2, 4, 8}
    assert len(places) == 1  # a recording knows addresses, not tensors
    assert device.allocated == allocated


def test_results_are_the_callers_own() -> None:
    staged = Staged(network, StubDevice(), SHAPE, 4)
    queries = draw(4)
    first = staged(queries)
    staged(draw(4, seed=1))
    np.testing.assert_allclose(first, expected(queries), rtol=1e-6)


def test_more_than_there_is_memory_for_is_refused() -> None:
    with pytest.raises(ValueError, match="queries: expected 4 at most, got 5"):
        Staged(network, StubDevice(), SHAPE, 4)(draw(5))


def test_a_worker_gives_it_no_more_than_it_takes() -> None:
    pool = ThreadPool(Staged(network, StubDevice(), SHAPE, 4), 1, 16, Batching(8))
    pool.start(0, 1)
    assert listen(pool, 1) == [Ready(0, 1)]
    queries = draw(16)
    pool.pause(0)
    for task, query in enumerate(queries):
        pool.send(0, 1, task, "backbone", query)
    pool.resume(0)
    for message in listen(pool, 16):
        assert isinstance(message, Result)
        np.testing.assert_allclose(
            message.embedding, expected(queries[[message.task]])[0], rtol=1e-6
        )
    pool.close(5.0)
