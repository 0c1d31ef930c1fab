"""What is run where: defaults that fit every stage, measured entries that override them."""

from __future__ import annotations

import json

import pytest
import torch
from codedinv.kernels import tuning
from codedinv.kernels.tuning import DTYPES, STAGES, Stage


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
    few = tuning.block_tuning(stage, torch.bfloat16, batch=1, multiprocessors=132)
    many = tuning.block_tuning(stage, torch.bfloat16, batch=256, multiprocessors=132)
    assert (few.bands, few.images) == (8, 1)
    assert many.bands == 1
    assert tuning.smallest_stage_batch(stage, torch.bfloat16, 132) <= 256


def test_a_measured_entry_overrides_the_default_on_its_card_only(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
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
    path = tmp_path / "measured.json"  # type: ignore[operator]
    path.write_text(json.dumps(entries))
    monkeypatch.setattr(tuning, "MEASURED", path)
    tuning._measured.cache_clear()
    try:
        arguments = ("inversion", stage, torch.bfloat16)
        assert tuning.stage_tuning(*arguments, "Some Card").num_warps == 8
        assert tuning.stage_tuning(*arguments, "Other").num_warps == 4
        faster = [tuning.measured_faster(*arguments, n, "Some Card") for n in (8, 9, 64)]
        assert faster == [True, False, True]
        assert not tuning.measured_faster(*arguments, 8, "Other")
    finally:
        tuning._measured.cache_clear()
