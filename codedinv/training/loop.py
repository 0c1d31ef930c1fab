"""The loop that both trainings share: progress, checkpoints, resume, history and its plot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

CHECKPOINT_EVERY_S = 45.0  # a killed run loses less than a minute
_PLAIN_LINE_EVERY_S = 30.0


@dataclass
class Run:
    """Everything a resumed run needs: modules, optimizers, schedulers, step and history.

    Attributes:
        modules: by name; their state_dicts are kept.
        optimizers, schedulers: in a fixed order.
        step: optimizer steps done.
        history: one row of named numbers per evaluation.
        seconds: time spent training, over all resumes.
    """

    modules: Mapping[str, nn.Module]
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[torch.optim.lr_scheduler.LRScheduler]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Writes a checkpoint; a kill at any moment leaves the old or the new one whole."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "rng": torch.get_rng_state(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Restores a checkpoint of the same recipe.

        Raises:
            ValueError: it holds other networks.
        """
        state = torch.load(path, weights_only=True, map_location="cpu")
        try:
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"{path} is of a recipe with another network; to start anew: --fresh, or another "
                "--out"
            ) from error
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.step, self.history = state["step"], state["history"]
        self.seconds = state["seconds"]
        torch.set_rng_state(state["rng"])


def run_to(
    run: Run,
    steps: int,
    step: Callable[[int], Mapping[str, float | Tensor]],
    evaluate: Callable[[], Mapping[str, float]],
    evaluate_every: int,
    out: Path,
    label: str,
    resume: bool = True,
) -> None:
    """Takes optimizer steps until `steps` are done, evaluating, printing and checkpointing.

    Args:
        run: what is trained; resumed from `out/<label>.checkpoint` where that exists.
        steps: total number of steps of the whole run.
        step: takes the step number, returns named losses.
        evaluate: returns named numbers for the history.
        evaluate_every: steps between evaluations; one more is made at the end.
        out: folder for the checkpoint, `<label>.history.json` and `<label>.curves.png`.
        label: name of the run.
        resume: False starts afresh although a checkpoint exists.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / f"{label}.checkpoint"
    console = Console()
    if resume and checkpoint.exists():
        run.load(checkpoint)
        console.print(f"{label}: resumed at step {run.step} of {steps}")
    sums: dict[str, float | Tensor] = {}
    summed = 0
    saved = printed = started = time.monotonic()
    before = run.seconds
    with _progress(console) as progress:
        task = progress.add_task(label, total=steps, completed=run.step, note="")
        while run.step < steps:
            for name, value in step(run.step).items():
                sums[name] = sums.get(name, 0.0) + (
                    value.detach() if isinstance(value, Tensor) else value
                )
            summed += 1
            run.step += 1
            progress.advance(task)
            now = time.monotonic()
            if run.step % evaluate_every == 0 or run.step == steps:
                means = {name: float(value) / summed for name, value in sums.items()}
                sums, summed = {}, 0
                row = {"step": float(run.step), **means, **evaluate()}
                run.history.append(row)
                note = "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "step")
                progress.update(task, note=note)
                console.print(f"{label} {run.step}/{steps}  {now - started:.0f} s  {note}")
            elif not console.is_terminal and now - printed > _PLAIN_LINE_EVERY_S:
                console.print(f"{label} {run.step}/{steps}  {now - started:.0f} s")
                printed = now
            if now - saved > CHECKPOINT_EVERY_S or run.step == steps:
                run.seconds = before + now - started
                run.save(checkpoint)
                saved = now
    (out / f"{label}.history.json").write_text(json.dumps(run.history, indent=1) + "\n")
    plot_history(run.history, out / f"{label}.curves.png", label)


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


def plot_history(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draws one panel per recorded number against the optimizer step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in history[0] if name != "step"] if history else []
    if not names:
        return
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.2 * len(names), 2.8), squeeze=False, layout="constrained"
    )
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([row["step"] for row in history], [row[name] for row in history], color="#0072B2")
        axis.set_xlabel("optimizer step")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def autocast(device: torch.device, enabled: bool) -> Any:
    """bf16 autocast on the device, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
