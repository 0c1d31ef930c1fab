"""Faults on purpose: any worker can be slowed, hung, crashed or made to lie, while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from codedinv.workers.backbone import Array, Backbone


@dataclass(frozen=True)
class Faults:
    """What goes wrong with the tasks of a worker from now on; a restarted worker is sound again.

    Attributes:
        delay_s: every task takes this many seconds longer.
        hang: the next task never ends.
        crash: the worker dies on the next task.
        corrupt: results get Gaussian noise of this size, relative to their own standard deviation.
        error: every task fails with this message, unless it is empty.
    """

    delay_s: float = 0.0
    hang: bool = False
    crash: bool = False
    corrupt: float = 0.0
    error: str = ""

    def to_json(self) -> str:
        """The faults as `from_json` reads them."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Faults:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


class FaultyBackbone:
    """A backbone with faults, none at first.

    Args:
        backbone: what to wrap.
        sleep: waits so many seconds; `hang` asks it for a very long time.
        crash: ends the worker; must not return.
    """

    _FOR_EVER_S = 1e9

    def __init__(
        self, backbone: Backbone, sleep: Callable[[float], None], crash: Callable[[], None]
    ) -> None:
        self._backbone = backbone
        self._sleep = sleep
        self._crash = crash
        self._noise = np.random.default_rng(0)
        self.faults = Faults()

    def __call__(self, x: Array) -> Array:
        faults = self.faults
        if faults.crash:
            self._crash()
        if faults.hang:
            self._sleep(self._FOR_EVER_S)
        if faults.delay_s:
            self._sleep(faults.delay_s)
        if faults.error:
            raise RuntimeError(faults.error)
        result = self._backbone(x)
        if faults.corrupt:
            scale = faults.corrupt * (float(result.std()) or 1.0)
            noise = self._noise.standard_normal(result.shape).astype(np.float32)
            result = result + np.float32(scale) * noise
        return result
