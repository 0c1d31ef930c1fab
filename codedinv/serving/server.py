"""CodedServer: predictions that come on time, through slow and dead workers."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from codedinv.errors import CodedInvError, WrongProcess
from codedinv.model.runtimes import Runtime
from codedinv.schemes import Scheme, ServedModel
from codedinv.schemes.scheme import Array
from codedinv.serving import batches
from codedinv.serving.admission import Reload
from codedinv.serving.answers import Corrected
from codedinv.serving.deployments import Backend, Deployment, Deployments, make_pool
from codedinv.serving.engine import Engine
from codedinv.serving.futures import PredictionFuture
from codedinv.serving.light import Grouping
from codedinv.serving.metrics import Snapshot, Stats
from codedinv.serving.policy import Policy
from codedinv.serving.prediction import Prediction
from codedinv.serving.queries import QueryCheck, check_deadline
from codedinv.serving.runners import Home, in_thread, to_the_end
from codedinv.serving.tracing import Tracing
from codedinv.serving.versions import Fallback, output_shapes
from codedinv.workers import Batching, Pool
from codedinv.workers.batches import ONE_BY_ONE
from codedinv.workers.devices import CPU, choose_devices, choose_runtime_on

if TYPE_CHECKING:
    from codedinv.workers.oip import Security

_PATIENCE_S = 10.0  # beyond its own limit, for the loop to tell that a worker did not start


class CodedServer:
    """Serves a model with workers of which some may be slow or dead.

        with CodedServer("fashion-mnist") as server:
            prediction = server.predict(image)

        async with CodedServer("fashion-mnist") as server:  # in the caller's event loop
            prediction = await server.predict_async(image)

    Returns once every worker is ready or has failed to start, and at least one is ready.

    Args:
        model: a `CodedModel`, the name of a bundled one, or a bundle's folder.
        workers: how many; None: n, the slots of a coding group. Fewer also work; then a worker's
            death may cost a group more than one result. Or endpoints of servers that speak the
            Open Inference Protocol, one a worker: ["grpc://10.0.0.1:8001", "http://10.0.0.2:8000"].
        backend: "process" (the default): each worker a process with one thread; "thread": threads
            of this process, for tests and small uses; "ray": Ray actors, see
            `codedinv.workers.ray.RayPool`.
        policy: see `Policy`.
        scheme: "invertible", "worker-encoded" (the same, encoded at the parity worker), "guided"
            (copies of the queries that the light model is least sure of), "replication" (two copies
            of each), "uncoded", or a `Scheme`. None: the one that the model is meant for,
            "invertible" where it does not say.
        grouping: "arrival": queries are coded together as they come. "alike": those to which the
            light model gives the same class, as far as enough of them come within `group_wait_s`.
        fuse: mix the light model's answer into reconstructed ones, by weights that the model
            carries; where it carries none they are given as they are decoded.
        pool: workers of your own in place of a backend, with `workers + 1` indices: the last is
            the spare that a reload uses. The server closes it.
        security: certificates and token for endpoints, as `codedinv.workers.oip.Security(ca=...,
            certificate=..., key=..., token=...)`; the first for grpcs:// and https://, with the
            two others where the servers want to know who asks.
        fallback: answers a query that nothing else answered in time, with source "fallback". A
            function of queries (B, *input) to {task: (B, outputs)}, or an array where there is one
            task; it runs in the server's loop, so it must be quick. Or constants, a mapping task ->
            (outputs,). Or "light", the model's own light model. None: that one if there is one.
        max_batch: queries that a local worker takes in one call at most, of those that wait at it,
            64 or fewer. A worker then has twice as many in hand (`Policy.in_flight` is raised to
            that): one batch runs and the next one waits.
        max_queue_delay_us: how long the oldest query at an idle worker may wait for others to fill
            the batch. It pays where a call of many takes hardly longer than a call of one.
        devices: of worker processes: "cpu", "cuda" (all there are, in turn; several workers may
            share one), or a list, ["cuda:0", "cuda:1"], gone through again and again.
        runtime: what runs the model in worker processes: "onnx", "torch", or "auto": ONNX Runtime
            where it is installed; on CUDA devices torch where that is built for them.
        on_correction: called with (query id, `Prediction`) when the exact answer comes after a
            reconstructed one or a fallback was given; runs where done-callbacks run.
        tracing: makes OpenTelemetry spans of queries that are submitted under a span that is
            recorded (extra `otel`): queue, worker, encode, decode, head, by the program's own
            tracer provider. Remote workers are sent the trace context.

    Attributes:
        pool: the workers. Local ones can be broken in many ways, for tests and demonstrations:
            `pool.kill(i)` is SIGKILL; see `codedinv.workers.FaultInjection`.

    Raises:
        ValueError: a bad argument.
        CodedInvError: no worker could be started; the message says what a worker said.
    """

    def __init__(
        self,
        model: ServedModel | str | Path,
        workers: int | Sequence[str] | None = None,
        backend: Backend | None = None,
        policy: Policy | None = None,
        scheme: str | Scheme | None = None,
        *,
        grouping: Grouping = "arrival",
        fuse: bool = True,
        pool: Pool | None = None,
        security: Security | None = None,
        fallback: Fallback = None,
        max_batch: int = 1,
        max_queue_delay_us: int = 0,
        devices: str | Sequence[str] = CPU,
        runtime: Runtime = "auto",
        on_correction: Corrected | None = None,
        tracing: bool = False,
    ) -> None:
        _check_workers(workers, backend, pool, security)
        batching = Batching(max_batch, max_queue_delay_us)
        chosen = choose_devices(devices)
        _check_local(workers, backend, pool, batching, chosen, runtime)
        self.policy = _with_room(policy if policy is not None else Policy(), batching)
        self._owner = os.getpid()
        self._deployments = Deployments(
            scheme,
            grouping,
            fuse,
            fallback,
            as_threads=backend == "thread",
            others_too=pool is not None,
            verify=self.policy.verify,
            start_timeout_s=self.policy.start_timeout_s,
            runtime=choose_runtime_on(chosen, runtime),
        )
        self._scheme_is_fixed = isinstance(scheme, Scheme)
        self._reloading = threading.Lock()
        self._version = 0
        now = self._deployments.prepare(model)
        self._deployed = [now]  # one; a list, so that a reload can replace it without the server
        workers = workers if workers is not None else now.served.scheme.plan.n
        count = workers if isinstance(workers, int) else len(workers)
        try:
            if pool is None:
                kind, in_flight = backend or "process", self.policy.in_flight
                pool = make_pool(now.models, kind, workers, in_flight, batching, chosen, security)
            else:
                pool.provide(0, now.models)
            self.pool: Any = pool  # a local one can do more than a `Pool`
            traced = Tracing() if tracing else None
            self._engine = Engine(now.served, self.policy, pool, count, on_correction, traced)
        except BaseException:
            now.remove()
            raise
        self._home = Home(self._engine)
        try:
            self._wait_until_ready()
        except BaseException:  # Ctrl-C too: nothing started here may outlive it
            self.close()
            raise

    def _wait_until_ready(self) -> None:
        limit = self.policy.start_timeout_s + _PATIENCE_S
        if not self._engine.settled.wait(min(limit, threading.TIMEOUT_MAX)):
            raise CodedInvError(f"the workers did not start within {limit} s")
        if self._engine.failure is not None:
            raise CodedInvError("the server could not start") from self._engine.failure
        stats = self.stats()
        if not any(state in ("ready", "busy") for state in stats.workers):
            raise CodedInvError(f"no worker could be started; {stats.last_error}")

    @property
    def model(self) -> ServedModel:
        """The model that is served."""
        return self._deployed[0].model

    @property
    def scheme(self) -> Scheme:
        """The scheme that it is served by."""
        return self._deployed[0].served.scheme

    # ---- queries

    def submit(self, x: Any, deadline: float | None = None) -> PredictionFuture:
        """Sends one query.

        Args:
            x: (*input), a numpy array, torch tensor or nested list, in the range that the model
                was made for. float32, or float16, which float32 holds exactly. float64 is refused,
                for rounding is the caller's decision, and so are integers, which are usually
                pixels not yet scaled. It is copied.
            deadline: seconds from now; None: `Policy.deadline_s`.

        Returns:
            A `concurrent.futures.Future` that ends exactly once: with a `Prediction`, or with
            `DeadlineExceeded`, `Unrecoverable`, `ServerClosed`, or `CodedInvError` if head or
            decoder raised. Its attribute `query_id` is that of the prediction. It can be cancelled
            until it ends, which frees its place in the queue. Its callbacks run in a thread of the
            server's own, whatever they do.

        Raises:
            ValueError: wrong shape or dtype, NaN, infinity or a value out of the model's range, or
                a deadline that is not positive.
            Overloaded: `Policy.max_queue` queries are not answered yet.
            ServerClosed: the server is closed.
            WrongProcess: this is a forked copy of the server's process.
        """
        if os.getpid() != self._owner:
            self._check_process()
        query = self._deployed[0].check.one(x)
        return self._engine.admission.submit(query, self._seconds(deadline))

    def _submit_checked(
        self, check: QueryCheck, seconds: float | None, query: np.ndarray[Any, Any]
    ) -> PredictionFuture:
        """As `submit`, of a query that `check` has passed."""
        if os.getpid() != self._owner:
            self._check_process()
        now = self._deployed[0].check
        own = check.copy(query) if check is now else now.one(query)  # or reloaded meanwhile
        return self._engine.admission.submit(own, seconds)

    def _seconds(self, deadline: float | None) -> float | None:
        return self.policy.deadline_s if deadline is None else check_deadline(deadline)

    def predict(self, x: Any, deadline: float | None = None) -> Prediction | list[Prediction]:
        """Answers one query (*input), or a batch (B, *input) as `predict_batch` does.

        Raises:
            As `submit` and its future; WrongThread: as `predict_batch`.
        """
        check = self._deployed[0].check
        queries, single = check.one_or_batch(x)
        if not single:
            return self._predict(check, queries, deadline)
        self._home.check_may_wait("predict", "await predict_async(x)")
        future = self.submit(queries[0], deadline)
        try:
            return future.result()
        except BaseException:  # Ctrl-C: nobody waits any more
            future.cancel()
            raise

    def predict_batch(self, xs: Any, deadline: float | None = None) -> list[Prediction]:
        """Answers a batch (B, *input), in its order.

        It may be larger than the server's queue: it is sent as room comes free, and each query's
        deadline counts from when it is sent.

        Raises:
            As `submit` and its future; the first error once all queries have ended.
            WrongThread: this thread's event loop runs the server, and must not wait.
        """
        check = self._deployed[0].check
        return self._predict(check, check.batch(xs), deadline)

    def _predict(
        self, check: QueryCheck, queries: Iterable[Array], deadline: float | None
    ) -> list[Prediction]:
        self._home.check_may_wait("predict", "await predict_async(x)")
        submit = partial(self._submit_checked, check, self._seconds(deadline))
        return batches.predict(submit, queries, self._most_at_once)

    async def predict_async(
        self, x: Any, deadline: float | None = None
    ) -> Prediction | list[Prediction]:
        """As `predict`, without blocking the event loop. Cancelling it cancels its queries."""
        check = self._deployed[0].check
        queries, single = check.one_or_batch(x)
        submit = partial(self._submit_checked, check, self._seconds(deadline))
        predictions = await batches.predict_async(submit, queries, self._most_at_once)
        return predictions[0] if single else predictions

    @property
    def _most_at_once(self) -> int:
        """A batch takes at most half of the queue, so that it does not shut out everybody else."""
        return self.policy.max_queue // 2

    # ---- another model

    def reload(
        self,
        model: ServedModel | str | Path,
        timeout: float | None = None,
        scheme: Scheme | None = None,
    ) -> None:
        """Replaces the model while queries go on: worker by worker, none lost, and no coding group
        of two models. Returns when every worker runs the new one.

        Args:
            model: a `CodedModel`, the name of a bundled one, or a bundle's folder, with the same
                `input_shape`, tasks and outputs: queries under way may be answered by either.
                Anything else takes a server of its own.
            timeout: seconds to wait for that; the reload itself goes on. None:
                `Policy.start_timeout_s` for each worker.
            scheme: for the new model, if the server was given a `Scheme` and not a name.

        Raises:
            ValueError: the model does not fit in the present one's place.
            CodedInvError: the new model could not be started, and the present one goes on; or it
                takes longer than `timeout`.
            ServerClosed: the server is closed, or was before the end.
            WrongThread: as `predict_batch`.
        """
        self._check_process()
        self._home.check_may_wait("reload", "await reload_async(model)")
        if self._scheme_is_fixed and scheme is None:
            raise ValueError("scheme: expected one for the new model, as this server was given one")
        if timeout is None:
            timeout = self.policy.start_timeout_s * (len(self.stats().workers) + 1)
        deployment = self._deployments.prepare(model, scheme)
        reloaded: Future[None] = Future()
        reloaded.add_done_callback(partial(_replace, self._deployed, deployment))
        try:
            _check_fit(deployment, self._deployed[0])
            with self._reloading:
                self._version += 1
                version = self._version
                served, models = deployment.served, deployment.models
                self._engine.admission.reload(Reload(version, served, models, reloaded))
        except BaseException as error:
            reloaded.set_exception(error)
            raise
        try:
            reloaded.result(min(timeout, threading.TIMEOUT_MAX))
        except TimeoutError as error:
            raise CodedInvError(f"the reload is not done after {timeout} s; it goes on") from error

    async def reload_async(
        self,
        model: ServedModel | str | Path,
        timeout: float | None = None,
        scheme: Scheme | None = None,
    ) -> None:
        """As `reload`, without blocking the event loop."""
        await in_thread(partial(self.reload, model, timeout, scheme))

    # ---- the rest

    def stats(self) -> Stats:
        """Counters, worker states and latency quantiles as of now; a snapshot, of one moment."""
        return self.snapshot().stats()

    def snapshot(self) -> Snapshot:
        """What `stats` is made of: counts and whole histograms, for monitoring."""
        self._check_process()
        return self._engine.snapshot() if self._home.is_here() else self._engine.admission.ask()

    @property
    def closed(self) -> bool:
        """Does it take no more queries, for good?"""
        return self._engine.admission.is_closed

    def close(self) -> None:
        """Takes no more queries, waits for those there, ends the workers; a second call waits too.

        Queries that have not ended after `Policy.drain_timeout_s` end with `ServerClosed`. In a
        forked copy of the server's process nothing happens.

        Raises:
            WrongThread: this thread's event loop runs the server: use `async with`.
        """
        if os.getpid() != self._owner:
            return
        self._home.check_may_wait("close", "async with")
        drain_s = self.policy.drain_timeout_s
        self._engine.admission.close("the server is closed", drain_s)
        self._home.wait_for_end(drain_s)
        self._deployed[0].remove()

    def __enter__(self) -> CodedServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> CodedServer:
        self._check_process()
        try:
            await self._home.move_to_loop()
        except asyncio.CancelledError:
            await to_the_end(self.close)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._home.leave_loop()  # which has other things to do than to wait for workers to end
        await to_the_end(self.close)

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is None or os.getpid() != self._owner or engine.admission.is_closed:
            return
        warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, 2, source=self)
        engine.admission.close("the server was dropped", self.policy.drain_timeout_s)

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise WrongProcess(
                f"this server belongs to process {self._owner}, and this is a forked copy of it "
                f"(process {os.getpid()}); make a server in each process"
            )


def _replace(deployed: list[Deployment], deployment: Deployment, reloaded: Future[None]) -> None:
    """A reload has ended: the new model takes the place of the old one, or goes."""
    if reloaded.exception() is None:
        deployed[0], deployment = deployment, deployed[0]
    deployment.remove()


def _check_workers(
    workers: int | Sequence[str] | None,
    backend: Backend | None,
    pool: Pool | None,
    security: Security | None,
) -> None:
    """Refuses arguments of `CodedServer` that do not go together."""
    if security is not None and (workers is None or isinstance(workers, int)):
        raise ValueError("security: expected with `workers` that are endpoints")
    if backend not in (None, *get_args(Backend)):
        raise ValueError(f"backend: expected 'process', 'thread' or 'ray', got {backend!r}")
    if pool is not None and (backend is not None or not isinstance(workers, int)):
        raise ValueError("pool: expected with `workers`, how many there are, and no `backend`")
    if isinstance(workers, Sequence) and not isinstance(workers, str | bytes):
        if backend is not None:
            raise ValueError(f"backend: expected none beside endpoints, got {backend!r}")
        if not workers:
            raise ValueError("workers: expected at least one endpoint")
    elif workers is not None and (
        not isinstance(workers, int) or isinstance(workers, bool) or workers < 1
    ):
        raise ValueError(
            f"workers: expected an integer of 1 or more, or endpoints, got {workers!r}"
        )


def _check_local(
    workers: int | Sequence[str] | None,
    backend: Backend | None,
    pool: Pool | None,
    batching: Batching,
    devices: tuple[str, ...],
    runtime: Runtime,
) -> None:
    """Refuses what only local workers can do of others."""
    elsewhere = pool is not None or backend == "ray" or not isinstance(workers, int | None)
    if batching != ONE_BY_ONE and elsewhere:
        raise ValueError(
            "max_batch and max_queue_delay_us: expected with processes or threads of this machine; "
            "other servers, Ray actors and pools of your own make their batches themselves"
        )
    if (devices != (CPU,) or runtime != "auto") and (elsewhere or backend == "thread"):
        raise ValueError("devices and runtime: expected with worker processes of this machine")


def _with_room(policy: Policy, batching: Batching) -> Policy:
    """The policy, under which a worker may hold a batch that runs and one that waits."""
    least = 2 * batching.max_batch if batching.max_batch > 1 else 1
    return replace(policy, in_flight=max(policy.in_flight, least))


def _check_fit(new: Deployment, present: Deployment) -> None:
    shape, expected = new.check.input_shape, present.check.input_shape
    if shape != expected:
        raise ValueError(f"model: expected input_shape {expected}, got {shape}")
    outputs, known = output_shapes(new.model), output_shapes(present.model)
    if outputs != known:
        raise ValueError(
            f"model: expected the tasks and outputs {known}, for queries under way may be answered "
            f"by either model, got {outputs}; start another server for it"
        )
    if present.served.fallback is not None and new.served.fallback is None:
        raise ValueError("model: expected one with a light model, which is the server's fallback")
