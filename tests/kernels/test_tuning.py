"""What is run where: defaults that fit every stage, measured entries that override them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from codedinv.kernels import gate, tuning
from codedinv.kernels.shapes import LARGEST_TILE
from codedinv.kernels.tuning import DTYPES, STAGES, Card, Stage

H200 = Card("NVIDIA H200", 132, 90)


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


def test_a_measured_entry_overrides_the_default_on_its_card_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(4, 14, 14, 32)
    entries = {
        "Some Card": {
            "inversion 4@14x14/32 bfloat16": {
                "tuning": {"num_warps": 8},
                "faster_at_batch": [[1, 8], [64, 1024]],
            }
        }
    }
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(entries))
    monkeypatch.setattr(tuning, "MEASURED", path)
    tuning._measured.cache_clear()
    try:
        arguments = ("inversion", stage, torch.bfloat16)
        batch = 1024
        some, other = Card("Some Card", 132, 90), Card("Other", 132, 90)
        assert tuning.stage_tuning(*arguments, batch, some).num_warps == 8
        assert tuning.stage_tuning(*arguments, batch, other).num_warps == 4
        faster = [gate.measured_faster(*arguments, n, some) for n in (8, 9, 64)]
        assert faster == [True, False, True]
        assert not gate.measured_faster(*arguments, 8, other)
    finally:
        tuning._measured.cache_clear()


def test_rocm_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls its devices cuda too, and the kernels have PTX inside."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(1, 4, 7, 7))
    assert gate.unsupported(x, 32) == "ROCm (the kernels have instructions of NVIDIA GPUs)"
