"""Faults on purpose: any worker can be slowed, hung, crashed or made to lie, while it runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from codedinv.workers.backbone import Array, Backbone, ParityBackbone


@dataclass(frozen=True)
class Faults:
    """What goes wrong with the tasks of a worker from now on; a restarted worker is sound again.

    A worker that makes batches has them with each call of a backbone: a delay is one for all tasks
    of a batch, and a crash takes them all. What makes results wrong does so to each by itself.

    Attributes:
        delay_s: every call takes this many seconds longer.
        hang: the next call never ends.
        crash: the worker dies on the next call.
        corrupt: results get Gaussian noise of this size, relative to their own standard deviation.
        error: every task fails with this message, unless it is empty.
        stuck: every result is the one before.
        flip: this bit (0..31) of one element of every result is flipped.
        backbone: what runs instead of the worker's models: a bundle's folder, or a callable.
    """

    delay_s: float = 0.0
    hang: bool = False
    crash: bool = False
    corrupt: float = 0.0
    error: str = ""
    stuck: bool = False
    flip: int | None = None
    backbone: str | Backbone | None = None

    def to_json(self) -> str:
        """The faults as `from_json` reads them; a callable cannot travel."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Faults:
        """Reads what `to_json` wrote."""
        return cls(**json.loads(text))


class FaultyBackbones:
    """A worker's backbones by model name, with faults, none at first.

    Args:
        backbones: what to wrap.
        sleep: waits so many seconds; `hang` asks it for a very long time.
        crash: ends the worker; must not return.
        load: opens the backbone of a folder, for `Faults.backbone`.
    """

    _FOR_EVER_S = 1e9  # the kernel refuses sleeps ten times as long

    def __init__(
        self,
        backbones: Mapping[str, Backbone],
        sleep: Callable[[float], None],
        crash: Callable[[], None],
        load: Callable[[str], Backbone],
    ) -> None:
        self._backbones = backbones
        self._sleep = sleep
        self._crash = crash
        self._load = load
        self._loaded: tuple[str, Backbone] | None = None
        self._random = np.random.default_rng(0)
        self._last: dict[str, Array] = {}
        self.faults = Faults()

    def __call__(self, model: str, queries: Array) -> Array:
        """Runs a model on queries (B, *input) -> (B, *embedding)."""
        faults = self.faults
        if faults.crash:
            self._crash()
        if faults.hang:
            self._sleep(self._FOR_EVER_S)
        if faults.delay_s:
            self._sleep(min(faults.delay_s, self._FOR_EVER_S))
        if faults.error:
            raise RuntimeError(faults.error)
        if not (faults.stuck and model in self._last):
            results = np.asarray(self._backbone(model, faults)(queries), np.float32)
            self._last[model] = results[0 if faults.stuck else -1]
            if not faults.stuck:
                return self._falsified(results, faults)
        return self._falsified(np.stack([self._last[model]] * len(queries)), faults)

    def _backbone(self, model: str, faults: Faults) -> Backbone:
        mine = self._backbones[model]
        if faults.backbone is None:
            return mine
        other = self._other(faults.backbone)
        return replace(mine, backbone=other) if isinstance(mine, ParityBackbone) else other

    def _other(self, backbone: str | Backbone) -> Backbone:
        if not isinstance(backbone, str):
            return backbone
        if self._loaded is None or self._loaded[0] != backbone:
            self._loaded = backbone, self._load(backbone)
        return self._loaded[1]

    def _falsified(self, results: Array, faults: Faults) -> Array:
        if not faults.corrupt and faults.flip is None:
            return results
        return np.stack([self._falsified_one(result, faults) for result in results])

    def _falsified_one(self, result: Array, faults: Faults) -> Array:
        if faults.corrupt:
            scale = faults.corrupt * (float(result.std()) or 1.0)
            noise = self._random.standard_normal(result.shape).astype(np.float32)
            result = result + np.float32(scale) * noise
        if faults.flip is not None:
            flipped = np.array(result, order="C")
            bits = flipped.view(np.uint32).reshape(-1)
            bits[self._random.integers(bits.size)] ^= np.uint32(1 << faults.flip)
            result = flipped
        return result
