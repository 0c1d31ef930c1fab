"""The wire between a pool and a worker process: what is sent together arrives, each by itself."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from codedinv.workers.channel import MOST_SLOTS, Channel, Kind, Layout, Parcel, create_memory

SMALL, LARGE, EMBEDDING = (1, 4, 4), (3, 64, 64), (7,)


@pytest.fixture(params=[8, MOST_SLOTS])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Channel, Channel]]:
    """A pool's end and a worker's, with places for so many tasks."""
    layout = Layout((SMALL, LARGE), EMBEDDING, request.param)
    memory = create_memory(layout.memory_bytes)
    sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pool, worker = (
        Channel(sock, memory, layout, is_worker)
        for sock, is_worker in zip(sockets, (False, True), strict=True)
    )
    os.close(memory)
    yield pool, worker
    pool.close()
    worker.close()


def parcels(count: int, shapes: list[tuple[int, ...]]) -> list[Parcel]:
    """One in each slot, of the models in turn."""
    random = np.random.default_rng(0)
    return [
        Parcel(1000 + i, i, i % len(shapes), random.random(shapes[i % len(shapes)], np.float32))
        for i in range(count)
    ]


def test_small_and_large_queries_share_a_message(ends: tuple[Channel, Channel]) -> None:
    pool, worker = ends
    for count in (1, 2, 8):
        sent = parcels(count, [SMALL, LARGE])
        pool.send_arrays(Kind.TASK, sent)
        received = worker.receive(wait=False)
        assert received is not None
        assert [(r.kind, r.task, r.slot, r.model) for r in received] == [
            (Kind.TASK, p.task, p.slot, p.model) for p in sent
        ]
        for got, parcel in zip(received, sent, strict=True):
            np.testing.assert_array_equal(got.array, parcel.array)


def test_an_array_that_came_is_not_touched_by_the_next_message(
    ends: tuple[Channel, Channel],
) -> None:
    pool, worker = ends
    first, second = parcels(2, [EMBEDDING])
    arrays = []
    for parcel in (first, second):
        worker.send_arrays(Kind.RESULT, [parcel])
        (result,) = pool.receive(wait=False) or ()
        arrays.append(result.array)
    np.testing.assert_array_equal(arrays[0], first.array)
    np.testing.assert_array_equal(arrays[1], second.array)


def test_as_many_small_queries_as_there_are_slots_fit_in_a_message(
    ends: tuple[Channel, Channel],
) -> None:
    pool, worker = ends
    sent = parcels(8, [SMALL]) * (MOST_SLOTS // 8)
    pool.send_arrays(Kind.TASK, sent)
    received = worker.receive(wait=False)
    assert received is not None
    assert [r.task for r in received] == [p.task for p in sent]


def test_a_full_message_has_room_where_the_system_gives_sockets_little() -> None:
    inline = 64 * 1024 // MOST_SLOTS
    layout = Layout(((inline // 4,),), EMBEDDING, MOST_SLOTS)
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * 1024)
    pool, worker = (
        Channel(sock, None, layout, is_worker)
        for sock, is_worker in zip(pair, (False, True), strict=True)
    )
    pool.send_arrays(Kind.TASK, parcels(MOST_SLOTS, [layout.query_shapes[0]]))
    assert len(worker.receive(wait=False) or ()) == MOST_SLOTS
    pool.close()
    worker.close()


def test_a_message_of_another_size_than_its_model_says_is_an_error(
    ends: tuple[Channel, Channel],
) -> None:
    pool, worker = ends
    pool.send_arrays(Kind.TASK, [Parcel(1, 0, 0, np.zeros(17, np.float32))])
    with pytest.raises(ValueError, match="68 bytes"):
        worker.receive(wait=False)


def test_texts_come_as_they_were_sent(ends: tuple[Channel, Channel]) -> None:
    pool, worker = ends
    worker.send_text(Kind.ERROR, "größer", task=5, slot=3)
    worker.send_text(Kind.READY)
    for expected in ((Kind.ERROR, 5, 3, 0, None, "größer"), (Kind.READY, 0, 0, 0, None, "")):
        assert pool.receive(wait=False) == [expected]
    worker.close()
    assert pool.receive(wait=True) is None
