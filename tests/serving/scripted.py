"""A pool that does what a test tells it, and an engine that a test steps."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import numpy as np

from codedinv.schemes import build_scheme
from codedinv.serving.engine import Engine
from codedinv.serving.policy import Policy
from codedinv.serving.prediction import Prediction
from codedinv.serving.versions import Served, build_served
from codedinv.workers import Message, Ready, Result
from tests.serving.linear_model import LinearModel


class ScriptedPool:
    """Workers that are ready at once and answer when told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.sent: list[tuple[int, int, int, str, np.ndarray]] = []
        self.started: list[tuple[int, int, int]] = []
        self.retired: list[tuple[int, int]] = []
        self.cancelled: list[tuple[int, int, int]] = []
        self.provided: list[int] = []
        self.forgotten: list[int] = []
        self.polls = 0
        self.is_closed = False

    def provide(self, version: int, models: Any) -> None:
        self.provided.append(version)

    def forget(self, version: int) -> None:
        self.forgotten.append(version)

    def start(self, worker: int, generation: int, version: int = 0) -> None:
        self.started.append((worker, generation, version))
        self.messages.append(Ready(worker, generation))

    def send(self, worker: int, generation: int, task: int, model: str, query: np.ndarray) -> None:
        self.sent.append((worker, generation, task, model, query))

    def cancel(self, worker: int, generation: int, task: int) -> None:
        self.cancelled.append((worker, generation, task))

    def retire(self, worker: int, generation: int) -> None:
        self.retired.append((worker, generation))

    def poll(self, timeout_s: float | None) -> list[Message]:
        self.polls += 1
        messages, self.messages = self.messages, []
        return messages

    def close(self, timeout_s: float) -> None:
        self.is_closed = True

    def wake(self) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def pids(self) -> list[int | None]:
        return []

    def answer(self, model: LinearModel) -> None:
        """Every task that was sent is done."""
        for worker, generation, task, _, query in self.sent:
            result = model.embed(query[np.newaxis])[0]
            self.messages.append(Result(worker, generation, task, result))
        self.sent.clear()


class Stepped:
    """An engine with a scripted pool, whose turns happen when a test says so."""

    def __init__(
        self,
        model: LinearModel | None = None,
        policy: Policy | None = None,
        workers: int = 5,
        served: Served | None = None,
        **options: Any,
    ) -> None:
        self.model = model or LinearModel()
        self.pool = ScriptedPool()
        served = served or build_served(self.model, build_scheme("invertible", self.model), None)
        self.engine = Engine(served, policy or Policy(), self.pool, workers, **options)
        self.now = time.monotonic()
        self.turn()
        self.turn()  # the workers are ready

    def submit(self, query: np.ndarray, deadline_s: float | None = None) -> Future[Prediction]:
        return self.engine.admission.submit(query, deadline_s)

    def turn(self, after_s: float = 0.001, is_blind: bool = False) -> float:
        """A turn this much later; `is_blind`: its own poll finds nothing."""
        self.now += after_s
        messages = [] if is_blind else self.pool.poll(0.0)
        return self.engine.step(messages, self.now)

    @property
    def counts(self) -> Any:
        return self.engine._core.counts
