"""What goes wrong in `codedinv chaos`: faults of workers, of the front end and of the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from codedinv.model.manifest import BACKBONE

_EVERY_S = (0.5, 1.5)  # from the end of one fault to the next, uniform
_STOP_SELF = """
import os, signal, sys, time
parent, seconds = int(sys.argv[1]), float(sys.argv[2])
os.kill(parent, signal.SIGSTOP)
time.sleep(seconds)
os.kill(parent, signal.SIGCONT)
"""


@dataclass(frozen=True)
class Fault:
    """One kind of mischief.

    Attributes:
        name: as it is shown.
        begin: does it, to the worker of that index.
        end: undoes it; None: nothing to undo.
        lasts_s: in between.
        is_stop: the front end itself stands still meanwhile.
    """

    name: str
    begin: Callable[[int], Any]
    end: Callable[[int], Any] | None = None
    lasts_s: float = 0.0
    is_stop: bool = False


class Mischief:
    """A thread that lets one thing go wrong after another, each to a random worker.

    One at a time, since that is what a code with one parity promises to cover; what a fault leaves
    behind (a restart, a quarantine) may still last when the next one comes.

    Args:
        faults: what to choose from.
        workers: how many there are.
        random: chooses.
        tell: called with worker and name of each fault.
    """

    def __init__(
        self,
        faults: list[Fault],
        workers: int,
        random: Random,
        tell: Callable[[int, str], None],
    ) -> None:
        self._faults, self._workers, self._random, self._tell = faults, workers, random, tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mischief", daemon=True)
        self.counts: Counter[str] = Counter()
        self.stops: list[tuple[float, float]] = []  # of the front end: monotonic begin and end
        self.error: BaseException | None = None

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the fault that is under way is undone.

        Raises:
            Whatever a fault raised: then the run proves nothing.
        """
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._over.wait(self._random.uniform(*_EVERY_S)):
                self._one()
        except BaseException as error:
            self.error = error

    def _one(self) -> None:
        fault = self._random.choice(self._faults)
        worker = self._random.randrange(self._workers)
        self._tell(worker, fault.name)
        self.counts[fault.name] += 1
        began = time.monotonic()
        fault.begin(worker)
        if not fault.is_stop:
            self._over.wait(fault.lasts_s)
        if fault.end is not None:
            fault.end(worker)
        if fault.is_stop:
            self.stops.append((began, time.monotonic()))


def stop_this_process(seconds: float) -> None:
    """SIGSTOP to this process, SIGCONT after so many seconds; returns after that."""
    code = [sys.executable, "-c", _STOP_SELF, str(os.getpid()), str(seconds)]
    subprocess.run(code, check=True)


def swap_folders(one: Path, other: Path) -> None:
    """Exchanges two folders, as a deployment that replaces a bundle in place does."""
    aside = one.with_name(one.name + ".aside")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)


def copy_of(folder: Path, to: Path) -> Path:
    """A copy of a bundle that may be tampered with."""
    shutil.copytree(folder, to)
    return to


def drifted_copy(folder: Path, to: Path, share: float = 2.0, seed: int = 0) -> Path:
    """A copy of a bundle whose backbone has other weights, as another training's would be.

    Args:
        folder: of the bundle.
        to: of the copy; its bundle.json no longer fits.
        share: noise on each convolution's weights, relative to their own standard deviation. 2.0
            halves the accuracy; 0.3 costs one point of it, and is a drift that no check here sees.
        seed: of the noise.
    """
    import onnx
    from onnx import numpy_helper

    copy_of(folder, to)
    path = to / BACKBONE
    network = onnx.load(str(path))
    random = np.random.default_rng(seed)
    for tensor in network.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.ndim == 4:
            noise = random.standard_normal(weights.shape).astype(np.float32)
            drifted = weights + share * weights.std() * noise
            tensor.CopyFrom(numpy_helper.from_array(drifted.astype(np.float32), tensor.name))
    onnx.save(network, str(path))
    return to
