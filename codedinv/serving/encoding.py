"""The encoder beside the loop: parity queries are made in a thread of their own, so that however
long they take, answers do not wait for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from codedinv.schemes import Scheme
from codedinv.schemes.scheme import Array
from codedinv.serving import events as ev
from codedinv.serving.arrays import is_finite, stacked

_BATCH = 4  # groups in one call; more would let the first of them wait for the last


def parities_of(scheme: Scheme, queries: Array) -> Array:
    """Parity queries (G, n - k, *parity_shape) of G groups (G, k, *input).

    Raises:
        ValueError: the encoder's result has another shape.
        Whatever the encoder raises.
    """
    shape = queries.shape[2:] if scheme.parity_shape is None else scheme.parity_shape
    expected = (len(queries), scheme.plan.n - scheme.plan.k, *shape)
    parities = np.ascontiguousarray(scheme.encode(queries), np.float32)
    if parities.shape != expected:
        raise ValueError(f"encoder: expected parities {expected}, got {parities.shape}")
    return parities


class _Job(NamedTuple):
    """A group to be encoded."""

    group: int
    scheme: Scheme
    members: Sequence[Array]  # k queries, in slot order


class EncoderThread:
    """Encodes groups in the order they come, a few at once where they wait.

    Args:
        done: called in the encoder's thread with the result of each group.
    """

    def __init__(self, done: Callable[[ev.Encoded | ev.EncodeFailed], None]) -> None:
        self._done = done
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None  # none before the first group

    def encode(self, group: int, scheme: Scheme, members: Sequence[Array]) -> None:
        """Has a group's parities made; returns at once."""
        if self._thread is None:
            name = "codedinv-encoder"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()
        self._jobs.put(_Job(group, scheme, members))

    def close(self, timeout_s: float) -> None:
        """Ends the thread; one that hangs in the encoder is left behind after `timeout_s`."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            batches = {id(job.scheme): [job]}  # one, but while a model is being replaced
            ends = False
            for _ in range(_BATCH - 1):
                if self._jobs.empty():
                    break
                another = self._jobs.get()
                if another is None:
                    ends = True
                    break
                batches.setdefault(id(another.scheme), []).append(another)
            for batch in batches.values():
                self._encode(batch)
            if ends:
                return

    def _encode(self, batch: list[_Job]) -> None:
        try:
            queries = stacked([query for job in batch for query in job.members])
            queries = queries.reshape(len(batch), -1, *queries.shape[1:])
            parities = parities_of(batch[0].scheme, queries)
        except BaseException as error:  # SystemExit too: it is this thread that would end
            if len(batch) > 1:  # one of them may be the reason, and the others need not suffer
                for job in batch:
                    self._encode([job])
            else:
                self._fail(batch[0], f"{type(error).__name__}: {error}")
            return
        for job, rows in zip(batch, parities, strict=True):
            if is_finite(rows):
                self._done(ev.Encoded(time.monotonic(), job.group, tuple(rows)))
            else:
                self._fail(job, "the parity query has NaN or infinite values")

    def _fail(self, job: _Job, reason: str) -> None:
        self._done(ev.EncodeFailed(time.monotonic(), job.group, reason))
