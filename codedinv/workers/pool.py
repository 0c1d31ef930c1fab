"""What every pool of workers offers, whatever its workers are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from codedinv.workers.backbone import Array


class Ready(NamedTuple):
    """A worker has loaded its backbone."""

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


class Died(NamedTuple):
    """A worker is gone, or could not be started."""

    worker: int
    generation: int
    reason: str


Message = Ready | Result | TaskError | Died


class Pool(Protocol):
    """Workers by index, each in its latest generation.

    One thread owns a pool: it calls `start`, `send`, `retire`, `poll` and `close`. Any thread may
    call the rest, which is what demonstrations and tests break workers with.
    """

    def start(self, worker: int, generation: int) -> None:
        """Starts a worker; returns at once, and `Ready` or `Died` follows from `poll`."""

    def send(self, worker: int, generation: int, task: int, model: str, query: Array) -> None:
        """Gives a ready worker a task; `Result`, `TaskError` or `Died` follows from `poll`."""

    def retire(self, worker: int, generation: int) -> None:
        """Ends a worker by force; nothing more is heard of it."""

    def poll(self, timeout_s: float | None) -> list[Message]:
        """Waits for messages, at most `timeout_s` (None: for ever) or until `wake`."""

    def close(self, timeout_s: float) -> None:
        """Ends all workers, by force those that take longer than `timeout_s`."""

    def wake(self) -> None:
        """Ends the `poll` in progress, or else the next one, at once."""

    def kill(self, worker: int) -> None:
        """Ends a worker with SIGKILL or its like, as if the machine had gone."""

    def slow(self, worker: int, delay_s: float) -> None:
        """Makes every further task of a worker take `delay_s` longer; 0 ends that."""

    def hang(self, worker: int) -> None:
        """Lets a worker hang on its next task until it is killed."""

    def crash(self, worker: int) -> None:
        """Lets a worker die on its next task."""

    def fail(self, worker: int, message: str) -> None:
        """Makes every further task of a worker fail with this message; "" ends that."""

    def corrupt(self, worker: int, noise: float) -> None:
        """Adds noise to every further result of a worker; relative to the result's own spread."""

    def pids(self) -> list[int | None]:
        """Process id of each worker; None where there is none (now)."""
