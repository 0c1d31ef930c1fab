"""Checkpoints of a training, written so that a kill at any moment leaves a whole one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codedinv.errors import CodedInvError
from codedinv.training.identity import differences

_ANEW = "to start anew: --fresh (resume=False), or another --out"
# What torch.load raises for files that are cut short, overwritten or of another kind.
_UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError)


class CheckpointError(CodedInvError):
    """A checkpoint cannot be read, and neither can the one before it."""


@dataclass
class State:
    """Everything a resumed training needs.

    Attributes:
        modules: by name; their state_dicts are kept.
        optimizers, schedulers: in a fixed order.
        step: optimizer steps done.
        history: one row of named numbers per evaluation.
        seconds: time spent training, over all resumes.
        sums: each loss since the last evaluation, summed over `summed` steps.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[torch.optim.lr_scheduler.LRScheduler]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    sums: dict[str, Any] = field(default_factory=dict)
    summed: int = 0

    def save(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Writes a checkpoint; the last one stays beside it as `<name>.previous`.

        Args:
            path: of the checkpoint.
            identity: what the training is of (see training.identity); plain JSON values.
        """
        content = {
            "identity": dict(identity),
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "step": self.step,
            "history": self.history,
            "seconds": self.seconds,
            "sums": {name: float(value) for name, value in self.sums.items()},
            "summed": self.summed,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(_previous(path))
        partial.replace(path)

    def load(self, path: Path, identity: Mapping[str, Any]) -> str | None:
        """Restores the newest whole checkpoint, if there is one.

        Returns:
            What was wrong with the newest, if the one before it was taken; else None.

        Raises:
            ValueError: it is of a training of something else; the message says what changed.
            CheckpointError: no checkpoint here can be read; the message names the file.
        """
        problems = []
        for candidate in (path, _previous(path)):
            if not candidate.exists():
                continue
            try:
                content = torch.load(candidate, weights_only=True, map_location="cpu")
                known = content["identity"]
            except _UNREADABLE as error:
                problems.append(f"{candidate} is damaged ({_first_line(error)})")
                continue
            changed = differences(known, identity)
            if changed:
                raise ValueError(
                    f"{candidate} is of another training: {'; '.join(changed)}; {_ANEW}"
                )
            self._restore(content)
            return problems[0] if problems else None
        if problems:
            raise CheckpointError(f"{'; '.join(problems)}; {_ANEW}")
        return None

    def _restore(self, content: Mapping[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(content["modules"][name])
        for optimizer, saved in zip(self.optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, content["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        self.step, self.history = content["step"], content["history"]
        self.seconds, self.sums = content["seconds"], dict(content["sums"])
        self.summed = content["summed"]
        torch.set_rng_state(content["rng"])
        if content["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["cuda_rng"])


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
