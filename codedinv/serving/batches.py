"""Batches: many queries of one caller, sent as the server's queue has room for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import wait

from codedinv.errors import Overloaded
from codedinv.schemes.scheme import Array
from codedinv.serving.futures import PredictionFuture
from codedinv.serving.prediction import Prediction

Submit = Callable[[Array], PredictionFuture]


def predict(submit: Submit, queries: Iterable[Array], most: int) -> list[Prediction]:
    """Answers of all queries, in their order.

    Args:
        submit: sends one.
        queries: each (*input).
        most: how many may be outstanding at a time.

    Raises:
        Overloaded: others fill the queue.
        The first error of a query once all have ended; they are cancelled if the wait is broken
        off.
    """
    batch = _Batch(submit, most)
    try:
        for query in queries:
            while (future := batch.oldest_unless_sent(query)) is not None:
                wait([future])
                batch.oldest_ended()
        wait(batch.futures)
    except BaseException:
        batch.cancel()
        raise
    return batch.predictions()


async def predict_async(submit: Submit, queries: Iterable[Array], most: int) -> list[Prediction]:
    """As `predict`, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    batch = _Batch(submit, most)
    try:
        for query in queries:
            while (future := batch.oldest_unless_sent(query)) is not None:
                await future.ended_in(loop)
                batch.oldest_ended()
        for future in batch.futures:
            if not future.done():
                await future.ended_in(loop)
    except BaseException:
        batch.cancel()
        raise
    return batch.predictions()


class _Batch:
    """What was sent, and whether more may be."""

    def __init__(self, submit: Submit, most: int) -> None:
        self._submit = submit
        self._most = most
        self._ended = 0  # of the oldest
        self.futures: list[PredictionFuture] = []

    def oldest_unless_sent(self, query: Array) -> PredictionFuture | None:
        """Sends a query; or else returns the future that is to end before it is tried again."""
        own = len(self.futures) - self._ended
        if own <= self._most:
            try:
                self.futures.append(self._submit(query))
                return None
            except Overloaded:
                if not own:
                    raise
        return self.futures[self._ended]

    def oldest_ended(self) -> None:
        """That future has ended."""
        self._ended += 1

    def cancel(self) -> None:
        """Nobody waits any more."""
        for future in self.futures:
            future.cancel()

    def predictions(self) -> list[Prediction]:
        """All answers, or the first error."""
        return [future.result() for future in self.futures]
