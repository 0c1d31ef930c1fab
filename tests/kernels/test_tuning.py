"""What is run where: defaults that fit every stage, measured entries that override them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codedinv.kernels import gate, tuning, versions
from codedinv.kernels.shapes import LARGEST_TILE
from codedinv.kernels.tuning import DTYPES, STAGES, Card, Stage

H200 = Card("NVIDIA H200", 132, 90)

Measure = Callable[..., None]


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_default_tiles_fit_their_stage(stage: Stage) -> None:
    for dtype in DTYPES:
        for few in (False, True):
            chosen = tuning.default_stage_tuning(stage, dtype, few=few)
            for size in (chosen.block_m, chosen.block_k, chosen.block_n):
                assert size >= 16
                assert size & (size - 1) == 0
            assert max(chosen.block_k, chosen.block_n) <= LARGEST_TILE
            assert chosen.images == 1 or not few


def test_a_small_batch_is_cut_into_bands_and_a_large_one_is_not() -> None:
    stage = Stage(12, 16, 16, 64)
    few = tuning.stage_tuning("stage", stage, torch.bfloat16, batch=1, card=H200)
    many = tuning.stage_tuning("stage", stage, torch.bfloat16, batch=256, card=H200)
    assert (few.bands, few.images) == (8, 1)
    assert many.bands == 1


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize("batch", [1, 5, 33, 66, 132, 1000])
def test_bands_run_all_at_once_and_none_is_empty(stage: Stage, batch: int) -> None:
    bands = tuning.bands_for(stage, batch, H200.multiprocessors)
    assert bands == 1 or batch * bands <= H200.multiprocessors
    rows = -(-stage.height // bands)
    assert (bands - 1) * rows < stage.height <= bands * rows


INVERSION = ("inversion", Stage(4, 14, 14, 32), torch.bfloat16)
SOME_CARD = Card("Some Card", 132, 90)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Measure]:
    """Makes measured.json hold one entry, of Some Card and the versions installed here."""
    path = tmp_path / "measured.json"
    monkeypatch.setattr(tuning, "MEASURED", path)

    def measure(**entry: object) -> None:
        whole = {"versions": versions.installed(), **entry}
        path.write_text(json.dumps({SOME_CARD.name: {"inversion 4@14x14/32 bfloat16": whole}}))
        tuning._measured.cache_clear()

    yield measure
    tuning._measured.cache_clear()


def times(*rows: tuple[int, float, float]) -> list[dict[str, float]]:
    """(batch, ours, other) in ms."""
    return [{"batch": batch, "ours": ours, "other": other} for batch, ours, other in rows]


def faster(*batches: int, card: Card = SOME_CARD) -> list[bool]:
    return [gate.measured_faster(*INVERSION, batch, card) for batch in batches]


def test_a_measured_entry_overrides_the_default_on_its_card_only(measured: Measure) -> None:
    measured(tuning={"num_warps": 8}, times=times((8, 1, 2)))
    other = Card("Other", 132, 90)
    assert tuning.stage_tuning(*INVERSION, 1024, SOME_CARD).num_warps == 8
    assert tuning.stage_tuning(*INVERSION, 1024, other).num_warps == 4
    assert faster(8) == [True]
    assert faster(8, card=other) == [False]


def test_between_measured_batches_times_are_interpolated_with_a_margin(measured: Measure) -> None:
    # Ours grows from 1 to 9 ms, the other's from 3 to 5: they meet at batch 22.
    measured(times=times((1, 1, 3), (64, 9, 5), (128, 9, 20)))
    assert faster(1, 2, 20, 22, 64) == [True, True, False, False, False]
    assert faster(80, 128) == [False, True]
    measured(times=times((8, 0.95, 1), (16, 0.95, 1)))
    assert faster(8, 12, 16) == [True, False, True]


def test_nothing_is_known_below_the_smallest_batch_and_beyond_twice_the_largest(
    measured: Measure,
) -> None:
    measured(times=times((8, 1, 2), (64, 4, 8)))
    assert faster(7, 8, 64, 128, 129) == [False, True, True, True, False]
    measured(times=times((64, 7.5, 8)))
    assert faster(64, 65) == [True, False]


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_an_entry_of_another_release_is_not_used(measured: Measure, package: str) -> None:
    here = versions.installed()
    row = times((8, 1, 2))
    for number, used in ((f"{here[package]}+cu999", True), ("1.0.0", False), (None, False)):
        measured(times=row, tuning={"num_warps": 8}, versions=here | {package: number})
        assert faster(8) == [used]
        warps = tuning.stage_tuning(*INVERSION, 1024, SOME_CARD).num_warps
        assert warps == (8 if used else 4)
    measured(times=row, versions=None)
    assert faster(8) == [False]


def test_a_patch_of_a_release_does_not_void_what_was_measured() -> None:
    here = versions.installed()
    patched = {name: f"{versions.release(number)}.99" for name, number in here.items()}
    assert versions.speaks_here({**patched, "driver": "580.1"})


def test_rocm_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls its devices cuda too, and the kernels have PTX inside."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(1, 4, 7, 7))
    assert gate.unsupported(x, 32) == "ROCm (the kernels have instructions of NVIDIA GPUs)"
