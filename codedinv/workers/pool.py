"""What every pool of workers offers, whatever its workers are; and how local ones can be broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from codedinv.workers.backbone import Array, Backbone


class Ready(NamedTuple):
    """A worker has loaded its backbones."""

    worker: int
    generation: int


class Result(NamedTuple):
    """A task is done; `embedding` is the receiver's own copy."""

    worker: int
    generation: int
    task: int
    embedding: Array


class TaskError(NamedTuple):
    """A task could not be done; the worker is well."""

    worker: int
    generation: int
    task: int
    reason: str


class Dropped(NamedTuple):
    """A task was cancelled before the worker began it."""

    worker: int
    generation: int
    task: int


class Died(NamedTuple):
    """A worker is gone, or could not be started; the last that is heard of this generation."""

    worker: int
    generation: int
    reason: str


Message = Ready | Result | TaskError | Dropped | Died


class Task(NamedTuple):
    """A task to be sent: its id, the name of the model, and what that is given."""

    task: int
    model: str
    query: Array


class Pool(Protocol):
    """Workers by index, each in its latest generation, each running all models of a version.

    One thread owns a pool: it calls `provide` to `close`. Any thread may call the rest.

    Each task that is sent to a ready worker ends in exactly one `Result`, `TaskError`, `Dropped`,
    or the `Died` of its generation; none of them once the worker is retired.

    Raises:
        ValueError: from every method, a worker's index that the pool does not have.
        CodedInvError: from every method but `close`, `wake`, `fileno` and `pids`, which do nothing
            that matters, in a forked copy of the process that made the pool.
    """

    def provide(self, version: int, models: Mapping[str, Any]) -> None:
        """Says what workers that are started with this version run.

        Args:
            version: a number that no other models have.
            models: by name; a `BackboneSpec` for processes, a `Backbone` for threads.
        """

    def forget(self, version: int) -> None:
        """Says that no worker of this version will be started again."""

    def start(self, worker: int, generation: int, version: int = 0) -> None:
        """Starts a worker; returns at once, and `Ready` or `Died` follows from `poll`.

        Raises:
            ValueError: a version that is not provided.
        """

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        """Gives a ready worker a task; never blocks. An unknown model is a `TaskError`."""

    def send_many(self, worker: int, generation: int, tasks: Sequence[Task]) -> None:
        """As `send` of each, in their order; it is what a server calls, if there is one, and never
        `send`. A pool that has no better way leaves it out."""
        for task in tasks:
            self.send(worker, generation, *task)

    def cancel(self, worker: int, generation: int, task: int) -> None:
        """Takes a task back if it has not begun, which `Dropped` tells; else it ends as ever."""

    def retire(self, worker: int, generation: int) -> None:
        """Ends a worker by force; nothing more is heard of it."""

    def poll(self, timeout_s: float | None) -> list[Message]:
        """Waits for messages, at most `timeout_s` (None: for ever) or until `wake`."""

    def close(self, timeout_s: float) -> None:
        """Ends all workers, by force those that take longer than `timeout_s`."""

    def wake(self) -> None:
        """Ends the `poll` in progress, or else the next one, at once."""

    def fileno(self) -> int:
        """A descriptor that is readable whenever `poll(0)` may return something, or `wake` was
        called: for a caller's own event loop."""

    def pids(self) -> list[int | None]:
        """Process id of each worker; None where there is none (now)."""


class FaultInjection(Protocol):
    """Breaking workers on purpose, for demonstrations and tests; any thread may do it.

    Faults last until they are taken back or the worker is restarted, and touch the tasks that it
    has not begun. They are of a call: where a worker makes batches, those of one batch share a
    delay or a crash, and each of their results is made wrong by itself. A worker that is not there
    is left alone.
    """

    def kill(self, worker: int) -> None:
        """Ends a worker with SIGKILL or its like, as if the machine had gone."""

    def slow(self, worker: int, delay_s: float) -> None:
        """Makes every further call of a worker take `delay_s` longer; 0 ends that."""

    def hang(self, worker: int) -> None:
        """Lets a worker hang on its next task until it is killed."""

    def crash(self, worker: int) -> None:
        """Lets a worker die on its next task."""

    def fail(self, worker: int, message: str) -> None:
        """Makes every further task of a worker fail with this message; "" ends that."""

    def corrupt(self, worker: int, noise: float) -> None:
        """Adds noise to every further result, of this size relative to the result's own standard
        deviation; 0 ends that."""

    def stick(self, worker: int, stuck: bool = True) -> None:
        """Lets a worker repeat its last answer, or else its next one, for ever."""

    def flip(self, worker: int, bit: int | None = 30) -> None:
        """Flips a bit of one element of every further result, drawn at random; None ends that.

        Args:
            worker: its index.
            bit: 0..22 of the mantissa, 23..30 of the exponent, 31 is the sign.
        """

    def impersonate(self, worker: int, backbone: str | Path | Backbone | None) -> None:
        """Lets a worker run another backbone in place of all its models; None ends that.

        Args:
            worker: its index.
            backbone: a bundle's folder, or in a pool of threads also a callable. One that cannot
                be loaded makes tasks fail.
        """

    def pause(self, worker: int) -> None:
        """Stops a worker as SIGSTOP does: it is there, and neither works nor speaks."""

    def resume(self, worker: int) -> None:
        """Lets a paused worker go on."""
