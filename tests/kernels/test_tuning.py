"""What is run where: defaults that fit every stage, measured entries that override them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from codedinv.kernels import tuning
from codedinv.kernels.tuning import DTYPES, STAGES, Card, Stage

H200 = Card("NVIDIA H200", 132, 90)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_default_tiles_fit_their_stage(stage: Stage) -> None:
    for dtype in DTYPES:
        chosen = tuning.default_stage_tuning(stage, dtype)
        assert chosen.block_m & (chosen.block_m - 1) == 0
        assert chosen.block_n == tuning.padded_width(stage.hidden) or (
            stage.hidden % chosen.block_n == 0 and stage.hidden % chosen.block_k3 == 0
        )
        assert min(chosen.block_k1, chosen.block_k3) >= 16
        assert max(chosen.block_k1, chosen.block_k3) <= 64


def test_a_small_batch_is_cut_into_bands_and_a_large_one_is_not() -> None:
    stage = Stage(12, 16, 16, 64)
    few = tuning.block_tuning(stage, torch.bfloat16, batch=1, card=H200)
    many = tuning.block_tuning(stage, torch.bfloat16, batch=256, card=H200)
    assert (few.bands, few.images) == (8, 1)
    assert many.bands == 1
    assert tuning.smallest_stage_batch(stage, torch.bfloat16, H200) <= 256


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
        some, other = Card("Some Card", 132, 90), Card("Other", 132, 90)
        assert tuning.stage_tuning(*arguments, some).num_warps == 8
        assert tuning.stage_tuning(*arguments, other).num_warps == 4
        faster = [tuning.measured_faster(*arguments, n, some) for n in (8, 9, 64)]
        assert faster == [True, False, True]
        assert not tuning.measured_faster(*arguments, 8, other)
    finally:
        tuning._measured.cache_clear()
