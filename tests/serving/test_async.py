"""The server in its caller's event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from codedinv.errors import CodedInvError, ServerClosed, WrongThread
from codedinv.serving import CodedServer, Policy
from tests.serving.helpers import check_answers, wait_until
from tests.serving.linear_model import LinearModel

EXACT = Policy(release="grace", grace_s=60.0)


def engine_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "codedinv-engine"]


def test_the_event_loop_runs_the_server_and_gives_every_answer(
    linear: LinearModel, backend: str
) -> None:
    queries = linear.queries(60)

    async def main() -> Any:
        async with CodedServer(linear, backend=backend) as server:
            assert engine_threads() == []
            answers = await asyncio.gather(*(server.predict_async(q) for q in queries))
            batch = await server.predict_async(queries)
        with pytest.raises(ServerClosed):
            server.submit(queries[0])
        return answers, batch, server.pool.pids(), server.stats()

    answers, batch, pids, stats = asyncio.run(main())
    check_answers(answers, linear.outputs(queries))
    check_answers(batch, linear.outputs(queries))
    assert stats.accepted == 120
    assert not any(pids)


def test_queries_that_are_under_way_survive_the_moves(linear: LinearModel) -> None:
    queries = linear.queries(40)
    server = CodedServer(linear, backend="thread", policy=EXACT)
    for worker in range(5):
        server.pool.slow(worker, 0.02)
    before = [server.submit(q) for q in queries]

    async def main() -> Any:
        async with server:
            during = [server.submit(q) for q in queries]
            await asyncio.sleep(0.05)
        return during

    during = asyncio.run(main())
    check_answers(
        [f.result(0) for f in before + during], linear.outputs(queries[list(range(40)) * 2])
    )


def test_other_threads_use_the_server_while_the_loop_runs_it(linear: LinearModel) -> None:
    queries = linear.queries(20)

    async def main() -> Any:
        async with CodedServer(linear, backend="thread") as server:
            predictions = await asyncio.to_thread(server.predict, queries)
            assert (await asyncio.to_thread(server.stats)).accepted == 20
            assert server.stats().accepted == 20
        return predictions

    check_answers(asyncio.run(main()), linear.outputs(queries))


def test_the_loop_itself_must_not_wait_for_the_server(linear: LinearModel) -> None:
    query = linear.queries(1)

    async def main() -> None:
        async with CodedServer(linear, backend="thread") as server:
            with pytest.raises(WrongThread, match=r"await predict_async\(x\)"):
                server.predict(query[0])
            with pytest.raises(WrongThread, match=r"await predict_async\(x\)"):
                server.predict_batch(query)
            with pytest.raises(WrongThread, match="async with"):
                server.close()
            with pytest.raises(WrongThread, match=r"await reload_async\(model\)"):
                server.reload(linear)
            with pytest.raises(CodedInvError, match="runs this server already"):
                await server.__aenter__()
            check_answers([await server.predict_async(query[0])], linear.outputs(query))

    asyncio.run(main())


def test_a_cancelled_task_cancels_its_queries(linear: LinearModel) -> None:
    async def main() -> None:
        policy = Policy(hang_timeout_s=60.0, drain_timeout_s=0.5)
        async with CodedServer(
            linear, backend="thread", workers=1, scheme="uncoded", policy=policy
        ) as server:
            server.pool.hang(0)
            task = asyncio.create_task(server.predict_async(linear.queries(5)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.stats().failed["cancelled"] < 5:
                await asyncio.sleep(0.01)
            assert server.stats().outstanding == 0

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_timeout_around_a_prediction_is_a_cancellation(linear: LinearModel) -> None:
    with CodedServer(
        linear, backend="thread", workers=1, scheme="uncoded", policy=Policy(drain_timeout_s=0.5)
    ) as server:
        server.pool.hang(0)

        async def main() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(server.predict_async(linear.queries(1)[0]), 0.05)

        asyncio.run(main())
        wait_until(lambda: server.stats().failed["cancelled"] == 1)


def test_a_loop_that_is_blocked_kills_no_worker(linear: LinearModel) -> None:
    async def main() -> Any:
        policy = Policy(hang_timeout_s=0.5, release="grace", grace_s=60.0)
        async with CodedServer(linear, policy=policy) as server:
            futures = [server.submit(q) for q in linear.queries(10)]
            await asyncio.sleep(0)
            time.sleep(2.0)
            predictions = [await asyncio.wrap_future(f) for f in futures]
            return predictions, server.stats()

    predictions, stats = asyncio.run(main())
    check_answers(predictions, linear.outputs(linear.queries(10)))
    assert stats.hangs == 0
    assert stats.stalls >= 1


def test_leaving_the_loop_does_not_block_it(linear: LinearModel) -> None:
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.01)

        ticking: asyncio.Task[None]
        async with CodedServer(linear, backend="thread", policy=EXACT) as server:
            for worker in range(5):
                server.pool.slow(worker, 0.5)
            futures = [server.submit(q) for q in linear.queries(4)]
            ticking = asyncio.create_task(tick())
        ticking.cancel()
        assert all(f.done() for f in futures)
        return ticks

    assert asyncio.run(main()) > 5


def test_a_loop_that_ends_without_leaving_hands_the_server_back(linear: LinearModel) -> None:
    server = CodedServer(linear, backend="thread", policy=EXACT)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(server.__aenter__())
    future = server.submit(linear.queries(1)[0])
    loop.close()
    server.close()
    check_answers([future.result(0)], linear.outputs(linear.queries(1)))


def test_an_async_server_gives_up_its_queries_on_an_error_in_the_block(
    linear: LinearModel,
) -> None:
    async def main() -> None:
        async with CodedServer(linear, backend="thread") as server:
            server.submit(linear.queries(1)[0])
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(main())
    wait_until(lambda: engine_threads() == [])


def test_a_query_of_the_loops_own_rings_no_bell(linear: LinearModel) -> None:
    async def main() -> int:
        policy = Policy(deadline_s=None)
        async with CodedServer(linear, backend="thread", scheme="uncoded", policy=policy) as server:
            await server.predict_async(linear.queries(1))
            rings = 0
            ring = server.pool.wake

            def counted() -> None:
                nonlocal rings
                rings += 1
                ring()

            server.pool.wake = counted
            await server.predict_async(linear.queries(20))
            return rings

    assert asyncio.run(main()) == 0


def test_what_was_asked_in_the_loops_last_round_is_answered_elsewhere(linear: LinearModel) -> None:
    async def main() -> Any:
        server = CodedServer(linear, backend="thread")
        await server.__aenter__()
        return server, server.submit(linear.queries(1)[0])  # and the loop ends

    server, future = asyncio.run(main())
    with server:
        wait_until(lambda: not server.closed and (server.stats(), future.done())[1])
        check_answers([future.result()], linear.outputs(linear.queries(1)))
