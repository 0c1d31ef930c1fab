"""Workers that can be broken on purpose, and what pools of processes and threads share."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from codedinv.workers.backbone import Backbone
from codedinv.workers.base import WatchedPool
from codedinv.workers.pool import FaultInjection


class BreakablePool(WatchedPool, FaultInjection):
    """Base of pools whose workers have `Faults` that can be set."""

    def slow(self, worker: int, delay_s: float) -> None:
        if not delay_s >= 0:
            raise ValueError(f"delay_s: expected 0 or more seconds, got {delay_s}")
        self._set_faults(worker, delay_s=float(delay_s))

    def hang(self, worker: int) -> None:
        self._set_faults(worker, hang=True)

    def crash(self, worker: int) -> None:
        self._set_faults(worker, crash=True)

    def fail(self, worker: int, message: str) -> None:
        self._set_faults(worker, error=message)

    def corrupt(self, worker: int, noise: float) -> None:
        if not (math.isfinite(noise) and noise >= 0):
            raise ValueError(f"noise: expected a finite number of 0 or more, got {noise}")
        self._set_faults(worker, corrupt=float(noise))

    def stick(self, worker: int, stuck: bool = True) -> None:
        self._set_faults(worker, stuck=stuck)

    def flip(self, worker: int, bit: int | None = 30) -> None:
        if bit is not None and not 0 <= bit <= 31:
            raise ValueError(f"bit: expected 0..31 or None, got {bit}")
        self._set_faults(worker, flip=bit)

    def impersonate(self, worker: int, backbone: str | Path | Backbone | None) -> None:
        self._set_faults(worker, backbone=self._other_backbone(backbone))

    # ---- for the pools

    def _other_backbone(self, backbone: str | Path | Backbone | None) -> str | Backbone | None:
        """What `Faults.backbone` is to be.

        Raises:
            TypeError: these workers cannot run it.
        """
        return os.path.abspath(backbone) if isinstance(backbone, str | Path) else backbone

    def _set_faults(self, worker: int, **changes: Any) -> None:
        """Changes a worker's `Faults`."""
        raise NotImplementedError
