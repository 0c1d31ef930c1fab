"""CodedServer: predictions that come on time, through slow and dead workers."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from codedinv.errors import CodedInvError, Overloaded
from codedinv.schemes import Scheme, ServedModel, build_scheme
from codedinv.schemes.scheme import Array
from codedinv.serving.engine import Engine
from codedinv.serving.metrics import Stats
from codedinv.serving.policy import Policy
from codedinv.serving.prediction import Prediction
from codedinv.workers import BackboneSpec, LocalPool, ProcessPool, ThreadPool

Backend = Literal["process", "thread"]


class CodedServer:
    """Serves a model with workers of which some may be slow or dead.

        with CodedServer("fashion-mnist") as server:
            prediction = server.predict(image)

    Returns once every worker is ready or has failed to start, and at least one is ready.

    Args:
        model: a `CodedModel`, the name of a bundled one, or a bundle's folder.
        workers: how many; None: n, the slots of a coding group. Fewer also work; then a worker's
            death may cost a group more than one result.
        backend: "process": each worker a process with one thread; "thread": threads of this
            process, for tests and small uses.
        policy: see `Policy`.
        scheme: "invertible", "replication" (two copies), "uncoded", or a `Scheme`.

    Attributes:
        pool: the workers; `pool.kill(i)` is SIGKILL, `pool.slow(i, seconds)`, `pool.hang(i)`,
            `pool.crash(i)`, `pool.fail(i, message)` and `pool.corrupt(i, noise)` break them in
            other ways.

    Raises:
        ValueError: a bad argument.
        CodedInvError: no worker could be started; the message says what a worker said.
    """

    def __init__(
        self,
        model: ServedModel | str | Path,
        workers: int | None = None,
        backend: Backend = "process",
        policy: Policy | None = None,
        scheme: str | Scheme = "invertible",
    ) -> None:
        self.model = _load(model)
        self.policy = policy if policy is not None else Policy()
        self.scheme = build_scheme(scheme, self.model)
        if workers is None:
            workers = self.scheme.plan.n
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise ValueError(f"workers: expected an integer of 1 or more, got {workers!r}")
        self._input_shape = tuple(self.model.input_shape)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.pool = self._build_pool(backend, workers)
        shape = tuple(self.model.embedding_shape)
        self._engine = Engine(self.scheme, self._heads, shape, self.policy, self.pool, workers)
        try:
            self._warm_up()
            self._wait_until_ready()
        except BaseException:  # Ctrl-C too: nothing started here may outlive it
            self.close()
            raise

    def _build_pool(self, backend: Backend, workers: int) -> LocalPool:
        model = self.model
        if backend == "thread":
            return ThreadPool(lambda x: _as_float32(model.embed(x[np.newaxis])[0]), workers)
        if backend != "process":
            raise ValueError(f"backend: expected 'process' or 'thread', got {backend!r}")
        folder = model.folder
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="codedinv-")
            folder = Path(self._temporary.name) / "bundle"
            model.save(folder)
        spec = BackboneSpec.of(folder, self._input_shape, tuple(model.embedding_shape))
        return ProcessPool(spec, workers, self.policy.in_flight)

    def _warm_up(self) -> None:
        """Runs head and encoder once, so that the first query does not pay for their loading."""
        plan = self.scheme.plan
        self._heads(np.zeros((1, *self.model.embedding_shape), np.float32))
        if plan.n > plan.k:
            self.scheme.encode(np.zeros((1, plan.k, *self._input_shape), np.float32))

    def _wait_until_ready(self) -> None:
        self._engine.settled.wait()
        if self._engine.failure is not None:
            raise CodedInvError("the server could not start") from self._engine.failure
        stats = self._engine.stats()
        if not any(state in ("ready", "busy") for state in stats.workers):
            raise CodedInvError(f"no worker could be started; {stats.last_error}")

    # ---- queries

    def submit(self, x: Any, deadline: float | None = None) -> Future[Prediction]:
        """Sends one query.

        Args:
            x: (*input), a numpy array, torch tensor or nested list, in [0, 1]. float32, or float16,
                which float32 holds exactly. float64 is refused, for rounding is the caller's
                decision, and so are integers, which are usually pixels not yet scaled. It is
                copied.
            deadline: seconds from now; None: `Policy.deadline_s`.

        Returns:
            A future that ends exactly once: with a `Prediction`, or with `DeadlineExceeded`,
            `Unrecoverable` or `ServerClosed`. It cannot be cancelled.

        Raises:
            ValueError: wrong shape or dtype, NaN or infinity, or a deadline that is not positive.
            Overloaded: `Policy.max_queue` queries are not answered yet.
            ServerClosed: the server is closed.
        """
        if deadline is None:
            deadline = self.policy.deadline_s
        elif not (math.isfinite(deadline) and deadline > 0):
            raise ValueError(f"deadline: expected a positive number of seconds, got {deadline!r}")
        return self._engine.submit(self._query(x), deadline)

    def predict(self, x: Any, deadline: float | None = None) -> Prediction | list[Prediction]:
        """Answers one query (*input), or a batch (B, *input) as a list in its order.

        A batch may be larger than the server's queue: it is sent as room comes free, and each
        query's deadline counts from when it is sent.

        Raises:
            As `submit` and its future; of a batch, the first error once all its queries ended.
        """
        queries, single = self._queries(x)
        futures: list[Future[Prediction]] = []
        oldest = 0
        for query in queries:
            while (future := self._try_submit(query, deadline, len(futures) - oldest)) is None:
                wait([futures[oldest]])
                oldest += 1
            futures.append(future)
        wait(futures)
        predictions = [future.result() for future in futures]
        return predictions[0] if single else predictions

    async def predict_async(
        self, x: Any, deadline: float | None = None
    ) -> Prediction | list[Prediction]:
        """As `predict`, without blocking the event loop."""
        queries, single = self._queries(x)
        futures: list[asyncio.Future[Prediction]] = []
        oldest = 0
        for query in queries:
            while (future := self._try_submit(query, deadline, len(futures) - oldest)) is None:
                await asyncio.wait([futures[oldest]])
                oldest += 1
            futures.append(asyncio.wrap_future(future))
        if futures:
            await asyncio.wait(futures)
        predictions = [future.result() for future in futures]
        return predictions[0] if single else predictions

    def _try_submit(
        self, query: Array, deadline: float | None, own: int
    ) -> Future[Prediction] | None:
        """None: wait for one of the caller's `own` outstanding queries first.

        A batch takes at most half of the queue, so that it does not shut out everybody else.
        """
        if own > self.policy.max_queue // 2:
            return None
        try:
            return self.submit(query, deadline)
        except Overloaded:
            if not own:
                raise
            return None

    # ---- the rest

    def stats(self) -> Stats:
        """Counters, worker states and latency quantiles as of now."""
        return self._engine.stats()

    def close(self) -> None:
        """Takes no more queries, waits for those there, ends the workers; a second call waits too.

        Queries that have not ended after `Policy.drain_timeout_s` end with `ServerClosed`.
        """
        self._engine.close("the server is closed", self.policy.drain_timeout_s)
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> CodedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _heads(self, embeddings: Array) -> Mapping[str, Array]:
        head, tasks = self.model.head, self.model.heads
        return {task: _as_float32(head(embeddings, task)) for task in tasks}

    def _queries(self, x: Any) -> tuple[Iterable[Array], bool]:
        """The queries of a batch or of a single one, all checked before the first is sent."""
        array = _as_array(x)
        single = array.shape == self._input_shape
        if not single and array.shape[1:] != self._input_shape:
            shape = self._input_shape
            raise ValueError(f"x: expected shape {shape} or (B, *{shape}), got {array.shape}")
        batch = array[np.newaxis] if single else array
        _check_finite(batch)
        return batch, single

    def _query(self, x: Any) -> Array:
        array = _as_array(x)
        if array.shape != self._input_shape:
            raise ValueError(f"x: expected shape {self._input_shape}, got {array.shape}")
        _check_finite(array)
        return np.array(array, np.float32, order="C")


def _load(model: ServedModel | str | Path) -> ServedModel:
    if not isinstance(model, str | Path):
        return model
    from codedinv.bundle import CodedModel

    return CodedModel.load(model)


def _as_float32(x: Any) -> Array:
    return np.asarray(x, np.float32)


def _as_array(x: Any) -> np.ndarray[Any, Any]:
    """The argument as a floating array that float32 holds exactly."""
    if isinstance(x, list | tuple):
        x = np.asarray(x, np.float32)  # Python's numbers are not meant as float64
    if hasattr(x, "detach"):  # a torch tensor; torch itself need not be imported
        x = x.detach().cpu()
    array = np.asarray(x)
    if array.dtype not in (np.float32, np.float16):
        raise ValueError(f"x: expected dtype float32 or float16, got {array.dtype}")
    return array


def _check_finite(array: np.ndarray[Any, Any]) -> None:
    if not np.isfinite(array).all():
        raise ValueError("x: expected finite values, got NaN or infinity")
