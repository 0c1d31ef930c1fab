"""Finds tiles: every candidate of every stage's kernels, compiled, checked and timed.

Candidates are compiled first, by several processes that fill Triton's cache on disk, then timed one
after another. Each is a result of its own, so that a run goes on from where it was cut off.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from codedinv import kernels
from codedinv.kernels import testing, tuning
from codedinv.kernels.tuning import Card, Stage, StageTuning

from .case import Case
from .options import Options
from .receipts import Receipt
from .timing import Timer

# What a rehearsal pretends to tune for, so that it has candidates to leave out.
REHEARSAL_CARD = Card("rehearsal", 132, 90)
REHEARSAL_CANDIDATES = 2
# At most, for all candidates together; what is not compiled by then is when it is timed.
COMPILE_SECONDS = 240
TIMING_BUDGET_MS = 200

# Changes to the default that are tried. A kernel compiles in 5 to 10 s; with these a network has
# some 130 candidates for each dtype.
CHANGES: tuple[dict[str, int], ...] = (
    {"num_warps": 4}, {"num_warps": 8}, {"num_stages": 1}, {"num_stages": 3}, {"num_stages": 4},
    {"block_m": 32}, {"block_m": 64}, {"block_m": 128}, {"block_m": 128, "num_warps": 8},
    {"block_k": 16}, {"block_k": 32}, {"block_k": 64}, {"block_n": 32}, {"block_n": 64},
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One candidate: `entry` is what measured.json calls the kernel, "stage of few" for one."""

    entry: str
    stage: Stage
    dtype: torch.dtype
    batch: int
    tolerance: float
    tiles: StageTuning
    is_default: bool

    @property
    def key(self) -> dict[str, Any]:
        return {"entry": self.entry, "stage": str(self.stage), "tiles": asdict(self.tiles)}


def candidates(stage: Stage, dtype: torch.dtype, card: Card, few: bool) -> list[StageTuning]:
    """The default and its neighbours, without repeats.

    Args:
        stage, dtype: of the call. card: which one.
        few: whether for one image, cut into bands, else for a batch that fills the card.
    """
    bands = tuning.bands_for(stage, 1, card.multiprocessors) if few else 1
    default = tuning.default_stage_tuning(stage, dtype, card.capability, bands, few)
    tried = [default, *(replace(default, **change) for change in CHANGES)]
    if few:
        halved_and_doubled = (1, bands // 2, 2 * bands)
        tried += [
            replace(default, bands=count)
            for count in halved_and_doubled
            if valid_bands(stage, count, card.multiprocessors)
        ]
    else:
        tried += [replace(default, images=1), replace(default, images=2 * default.images)]
    return list(dict.fromkeys(tried))


def valid_bands(stage: Stage, bands: int, multiprocessors: int) -> bool:
    """Whether one image can be cut so: no band is empty, and all run at once."""
    if not 1 <= bands <= min(stage.height, multiprocessors):
        return False
    rows = -(-stage.height // bands)
    return -(-stage.height // rows) == bands


def trials(options: Options, card: Card) -> Iterator[Trial]:
    """Every candidate of a network, for the largest batch and for one image."""
    for stage, _ in options.network.stages:
        for few in (False, True):
            for kernel in ("stage", "inversion"):
                entry = f"{kernel} of few" if few else kernel
                batch = 1 if few else max(options.batches)
                tried = candidates(stage, options.dtype, card, few)
                for tiles in tried[: REHEARSAL_CANDIDATES if options.rehearse else None]:
                    yield Trial(
                        entry, stage, options.dtype, batch, options.tolerance, tiles,
                        tiles == tried[0],
                    )  # fmt: skip


@lru_cache(maxsize=1)
def case_of(entry: str, stage: Stage, dtype: torch.dtype, batch: int, tolerance: float) -> Case:
    """The inputs that all candidates of one kernel are run on."""
    return Case(entry.removesuffix(" of few"), stage, dtype, batch, tolerance)


def _case(trial: Trial) -> Case:
    return case_of(trial.entry, trial.stage, trial.dtype, trial.batch, trial.tolerance)


def measure_tune(options: Options) -> None:
    """Times every candidate that has not been; see adopt.py for what becomes of them."""
    out = Receipt(f"tune-{options.name}-{options.dtype_name}", options, tuned=False)
    card = REHEARSAL_CARD if options.rehearse else kernels.card_of(testing.DEVICE)
    waiting = [trial for trial in trials(options, card) if not out.has(**trial.key)]
    if options.rehearse:
        waiting = [trial for trial in waiting if _can_be_interpreted(trial)]
    compile_together(waiting, min(COMPILE_SECONDS, (options.ends - time.monotonic()) / 2))
    timer = Timer(options.rehearse, TIMING_BUDGET_MS)
    for trial in waiting:
        options.check_time()
        row = {**trial.key, "batch": trial.batch, "default": trial.is_default}
        try:
            row["error"] = _case(trial).check(trial.tiles)
            row["ms"] = round(timer(partial(_case(trial).launch, trial.tiles)), 5)
        except Exception as error:  # A tile that does not compile is a finding, not an end.
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
        out.add(row)
        # A kernel that broke the context ends this run here; the next goes on behind it.
        _synchronize()


def _can_be_interpreted(trial: Trial) -> bool:
    if trial.tiles.bands > 1:
        print(f"skipped {trial.key}: the interpreter runs programs one after another")
    return trial.tiles.bands == 1


def compile_together(waiting: list[Trial], seconds: float) -> None:
    """Runs each candidate once in one of several processes, so that Triton's cache has it."""
    if not waiting:
        return
    processes = max(1, min((os.cpu_count() or 2) - 2, len(waiting)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        runs = [pool.submit(_compile, trial) for trial in waiting]
        ended = wait(runs, seconds).done
        pool.shutdown(cancel_futures=True)
    ran = sum(run.exception() is None for run in ended)
    print(f"{ran} of {len(waiting)} candidates ran after compiling", flush=True)


def _compile(trial: Trial) -> None:
    """Whether it fails is found out, and said, when it is timed."""
    _case(trial).launch(trial.tiles)
    _synchronize()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
