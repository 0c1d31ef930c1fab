"""The loop that every training shares: steps, evaluations, progress, checkpoints, resume."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from codedinv.training.checkpoint import State
from codedinv.training.curves import plot_history

CHECKPOINT_EVERY_S = 45.0  # a killed run loses less than a minute
_BEFORE_EVALUATION_S = 10.0  # an evaluation may be long: what is older is saved before it
_PLAIN_LINE_EVERY_S = 30.0
_EVALUATION_LINE_EVERY_S = 2.0  # short steps would print faster than anybody reads


@dataclass(frozen=True)
class Training:
    """One training, as the loop sees it.

    Attributes:
        name: of its files: `<name>.checkpoint`, `<name>.history.json`, `<name>.curves.png`.
        title: of its progress, for people.
        steps: optimizer steps of the whole run.
        step: takes the step number, returns named losses.
        evaluate: returns named numbers for the history.
        evaluate_every: steps between evaluations; one more is made at the end.
        modules, optimizers, schedulers: whose state a checkpoint keeps.
        identity: what the training is of (see training.identity).
    """

    name: str
    title: str
    steps: int
    step: Callable[[int], Mapping[str, Tensor]]
    evaluate: Callable[[], Mapping[str, float]]
    evaluate_every: int
    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler]
    identity: Mapping[str, Any]


def train(
    training: Training, out: Path, resume: bool = True, console: Console | None = None
) -> State:
    """Takes optimizer steps until all are done, evaluating, printing and checkpointing.

    Ctrl-C finishes the step, saves, and raises KeyboardInterrupt; a second one stops at once.

    Args:
        training: what to train.
        out: folder for the checkpoint, the history and its plot.
        resume: False starts afresh although a checkpoint exists.
        console: for progress; None: stdout.

    Returns:
        The final state, with its history and the seconds it took over all resumes.

    Raises:
        ValueError: the checkpoint is of a training of something else.
        CheckpointError: it is damaged, and no older one is whole.
        KeyboardInterrupt: stopped by Ctrl-C, after saving.
    """
    out.mkdir(parents=True, exist_ok=True)
    state = State(training.modules, training.optimizers, training.schedulers)
    checkpoint = out / f"{training.name}.checkpoint"
    console = Console() if console is None else console
    if resume:
        problem = state.load(checkpoint, training.identity)
        if problem:
            console.print(f"{training.title}: {problem}; the checkpoint before it is used")
        if state.step:
            console.print(f"{training.title}: resumed at step {state.step} of {training.steps}")
    _Course(training, state, checkpoint, console).run()
    history = out / f"{training.name}.history.json"
    history.write_text(json.dumps(state.history, indent=1) + "\n")
    plot_history(state.history, out / f"{training.name}.curves.png", training.title)
    return state


class _Course:
    """The steps of one call of `train`."""

    def __init__(
        self, training: Training, state: State, checkpoint: Path, console: Console
    ) -> None:
        self.training = training
        self.state = state
        self.checkpoint = checkpoint
        self.console = console
        self.started = self.saved = self.printed = time.monotonic()
        self.before = state.seconds

    def run(self) -> None:
        with _progress(self.console) as progress, _interrupts() as interrupted:
            task = progress.add_task(
                self.training.title, total=self.training.steps, completed=self.state.step, note=""
            )
            while True:
                if self._evaluation_is_due():
                    self._save_if_older_than(_BEFORE_EVALUATION_S)
                    progress.update(task, note=self._evaluate())
                if self.state.step == self.training.steps:
                    break
                self._take_step()
                progress.advance(task)
                self._print_plainly()
                if interrupted():
                    self._stop()
                self._save_if_older_than(CHECKPOINT_EVERY_S)
            self._save()

    def _take_step(self) -> None:
        state = self.state
        for name, value in self.training.step(state.step).items():
            state.sums[name] = state.sums.get(name, 0.0) + value.detach()
        state.summed += 1
        state.step += 1

    def _evaluation_is_due(self) -> bool:
        step, history = self.state.step, self.state.history
        due = step == self.training.steps or (step and step % self.training.evaluate_every == 0)
        return bool(due) and not (history and history[-1]["step"] == step)

    def _evaluate(self) -> str:
        """Adds a row to the history; says it in a line if it is the last, or none was of late."""
        state = self.state
        means = {name: float(value) / state.summed for name, value in state.sums.items()}
        state.sums, state.summed = {}, 0
        state.history.append({"step": float(state.step), **means, **self.training.evaluate()})
        row = state.history[-1]
        note = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "step")
        now, last = time.monotonic(), state.step == self.training.steps
        if last or now - self.printed > _EVALUATION_LINE_EVERY_S:
            self.console.print(f"{self._place()}  {note}", highlight=False)
            self.printed = now
        return note

    def _place(self) -> str:
        taken = time.monotonic() - self.started
        return f"{self.training.title} {self.state.step}/{self.training.steps}  {taken:.0f} s"

    def _print_plainly(self) -> None:
        """A line now and then, with the time left, where no bar can be drawn."""
        now = time.monotonic()
        if self.console.is_terminal or now - self.printed < _PLAIN_LINE_EVERY_S:
            return
        self.printed = now
        spent = self.before + now - self.started
        left = spent / self.state.step * (self.training.steps - self.state.step)
        self.console.print(f"{self._place()}, about {left:.0f} s left", highlight=False)

    def _stop(self) -> None:
        self._save()
        self.console.print(
            f"{self.training.title}: stopped at step {self.state.step} of {self.training.steps} "
            f"and saved; the same command goes on from there",
            highlight=False,
        )
        raise KeyboardInterrupt

    def _save_if_older_than(self, seconds: float) -> None:
        if time.monotonic() - self.saved > seconds:
            self._save()

    def _save(self) -> None:
        self.state.seconds = self.before + time.monotonic() - self.started
        self.state.save(self.checkpoint, self.training.identity)
        self.saved = time.monotonic()


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C waits for the step to end: yields a function that says whether it came.

    A second Ctrl-C is as always. In other threads than the main one signals cannot be caught, and
    nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )


def autocast(device: torch.device, enabled: bool) -> Any:
    """bf16 autocast on the device, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
