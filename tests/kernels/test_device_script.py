"""benchmarks/device.sh, rehearsed on the CPU: the same code paths, tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from codedinv.kernels import gate, tuning, versions
from codedinv.kernels.shapes import LARGEST_TILE
from codedinv.kernels.tuning import Card, Stage, StageTuning

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "device.sh"
CARD = Card("Some Card", 132, 90)
STAGE = Stage(12, 16, 16, 64)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)
def test_a_rehearsal_measures_checks_and_writes_receipts(tmp_path: Path) -> None:
    done = run("--rehearse", "ceilings", "inverse-cifar-float32", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    receipt = json.loads((tmp_path / "inverse-cifar-float32-rehearsal.json").read_text())
    assert receipt["rehearsal"] is True
    assert receipt["tf32"] == {"cudnn": False, "matmul": False}
    assert [row["batch"] for row in receipt["results"]] == [2]
    for row in receipt["results"]:
        assert row["error"] < 1e-1
        assert row["floor"] > 0
        assert min(row["kernels"], row["eager"]) > 0
        assert "failed" not in row


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_piece_can_be_rehearsed_and_is_not_measured_twice(tmp_path: Path) -> None:
    done = run("--rehearse", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in tmp_path.glob("*.json")}
    assert {
        "ceilings-rehearsal.json",
        "forward-cifar-float32-rehearsal.json",
        "inverse-cifar-float32-rehearsal.json",
        "tune-cifar-bfloat16-rehearsal.json",
        "crossover-cifar-bfloat16-rehearsal.json",
        "power-cifar-rehearsal.json",
        "serving-cifar-float32-rehearsal.json",
    } <= names
    again = run("--rehearse", "--out", str(tmp_path), "forward-cifar-float32")
    assert '{"batch"' not in again.stdout


def test_an_unknown_piece_is_named(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--rehearse", "frobnicate")
    assert done.returncode == 1
    assert "unknown piece frobnicate" in done.stderr


def test_no_piece_is_begun_when_the_minutes_are_over(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--rehearse", "--minutes", "0", "ceilings")
    assert done.returncode == 1
    assert "not-begun" in done.stdout
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "ceilings")
    assert done.returncode == 1
    assert "no CUDA device is here; --rehearse" in done.stderr


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def write(folder: Path, what: str, results: list[dict[str, Any]], **content: Any) -> None:
    """A receipt as a card would have left it."""
    receipt = {
        "what": what, "device": "Some Card", "rehearsal": False, "kernel_sources": "today",
        "dtype": what.rpartition("-")[2], "versions": versions.installed(), "results": results,
        **content,
    }  # fmt: skip
    (folder / f"{what}-{receipt['device']}.json").write_text(json.dumps(receipt))


def verdicts(folder: Path) -> dict[tuple[str, ...], str]:
    """(what, against, dtype, batch) -> verdict, as the table of bars says."""
    from device import bars

    table = [line for line in bars.report(folder, "today").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]
    return {tuple(row[:4]): row[-1] for row in rows}


def test_bars_are_met_missed_or_unmeasured(tmp_path: Path) -> None:
    baselines = {"eager": 5.0, "eager_channels_last": 4.0, "compiled": 3.0, "eager_graphed": 3.5}
    write(
        tmp_path, "forward-cifar-bfloat16",
        [
            {"batch": 1, **baselines, "kernels": 2.0, "kernels_graphed": 0.5},
            {"batch": 256, **baselines, "kernels": 1.0, "kernels_graphed": 2.0},
        ],
    )  # fmt: skip
    missing = {**baselines, "compiled": None}
    write(tmp_path, "forward-cifar-float32", [{"batch": 1, **missing, "kernels_graphed": 0.5}])
    write(tmp_path, "sanitizer", [{"tool": "memcheck", "clean": True, "summary": ["0 errors"]}])
    found = verdicts(tmp_path)
    best = "best of eager, compiled, graph"
    assert found["forward", best, "bfloat16", "1"] == "met"
    assert found["forward", best, "bfloat16", "256"] == "MISSED"
    assert found["forward", best, "float32", "1"] == "unmeasured (compiled lacking)"
    assert found["inverse to 1e-5", "eager", "float32", "1"] == "unmeasured"
    assert found["memcheck", "", "float32, bfloat16", "3"] == "met"
    assert found["racecheck", "", "float32, bfloat16", "3"] == "unmeasured"


def test_eager_is_held_against_a_launch_from_python_and_a_graph_against_a_replay(
    tmp_path: Path,
) -> None:
    times = {"eager_fixed": 30.0, "eager_graphed": 8.0, "kernels": 3.0, "kernels_graphed": 1.0}
    write(tmp_path, "inverse-cifar-bfloat16", [{"batch": 1, **times}])
    found = verdicts(tmp_path)
    assert found["inverse to 1e-3", "eager", "bfloat16", "1"] == "MISSED"
    assert found["inverse to 1e-3", "graph of eager", "bfloat16", "1"] == "met"


def test_batches_of_64_are_held_to_ten_times_the_rate_of_one() -> None:
    from device import serving

    rows = [
        {"form": form, "batch": batch, "queries_per_s": rate}
        for form, batch, rate in [
            ("eager", 1, 100.0), ("eager", 64, 999.0), ("server", 1, 100.0), ("server", 64, 1000.0),
        ]
    ]  # fmt: skip
    lines = serving.verdicts([*rows, {"form": "kernels_graphed", "batch": 1, "failed": "x"}], 1, 64)
    assert lines[0] == "eager: batch 64 10.0x batch 1 (>= 10): MISSED"
    assert lines[-1] == "server: batch 64 10.0x batch 1 (>= 10): met"
    assert "kernels_graphed: unmeasured" in lines


def test_a_rehearsal_is_never_a_measurement_and_other_kernels_are_named(tmp_path: Path) -> None:
    from device import bars

    times = {"eager": 99.0, "eager_graphed": 99.0, "kernels": 1.0, "kernels_graphed": 1.0}
    row = [{"batch": 1, **times}]
    write(tmp_path, "inverse-cifar-float32", row, rehearsal=True)
    assert set(verdicts(tmp_path).values()) == {"unmeasured"}
    write(tmp_path, "inverse-cifar-float32", row, kernel_sources="yesterday")
    assert "other kernels than today's: inverse-cifar-float32" in bars.report(tmp_path, "today")


def trial(entry: str, ms: float, default: bool = False, **tiles: int) -> dict[str, Any]:
    usual = {"images": 1, "block_m": 64, "block_k": 64, "block_n": 64, "num_warps": 4}
    return {
        "entry": entry, "stage": "12@16x16/64", "default": default, "ms": ms,
        "tiles": {**usual, "num_stages": 2, "bands": 1, **tiles},
    }  # fmt: skip


def adopted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StageTuning]:
    """Adopts a folder's receipts; returns how tiles are then chosen for (kernel, batch)."""
    from device import adopt

    path = folder / "measured.json"
    path.write_text("{}")
    monkeypatch.setattr(adopt, "MEASURED", path)
    monkeypatch.setattr(adopt, "kernel_sources", lambda: "today")
    monkeypatch.setattr(tuning, "MEASURED", path)
    adopt.adopt(SimpleNamespace(out=folder))
    monkeypatch.setattr(tuning, "_measured", lambda: json.loads(path.read_text()))

    def chosen(kernel: str, batch: int) -> StageTuning:
        return tuning.stage_tuning(kernel, STAGE, torch.bfloat16, batch, CARD)

    return chosen


def test_tiles_are_adopted_for_one_image_and_for_many_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        trial("stage", 2.0, default=True), trial("stage", 1.0, images=2, num_warps=8),
        trial("stage of few", 2.0, default=True, bands=8),
        trial("stage of few", 1.0, bands=8, block_n=32),
        trial("stage of few", 0.5, bands=16),
        trial("inversion of few", 2.0, default=True, bands=8),
        trial("inversion of few", 1.0, bands=1),
        {"entry": "inversion", "stage": "12@16x16/64", "default": True, "failed": "no registers"},
    ]  # fmt: skip
    write(tmp_path, "tune-cifar-bfloat16", rows)
    chosen = adopted(tmp_path, monkeypatch)
    many = chosen("stage", 1024)
    assert (many.images, many.num_warps, many.bands) == (2, 8, 1)
    # The bands of one image are not frozen onto other small batches ...
    for batch in (1, 64):
        few = chosen("stage", batch)
        assert (few.images, few.block_n) == (1, 32)
        assert few.bands == tuning.bands_for(STAGE, batch, CARD.multiprocessors)
    # ... unless one image is faster whole, when several are too.
    assert [chosen("inversion", batch).bands for batch in (1, 8)] == [1, 1]
    assert chosen("inversion", 1024) == tuning.default_stage_tuning(STAGE, torch.bfloat16)


FORMS = ("kernels", "eager", "eager_channels_last", "eager_graphed", "compiled")


def crossing(batch: int, *ms: float | None) -> dict[str, Any]:
    """A row of crossover; a form that failed is None, one that is left out was not tried."""
    times = dict(zip(FORMS, ms, strict=False))
    return {"kernel": "stage", "stage": str(STAGE), "batch": batch, **times}


def test_auto_takes_a_kernel_where_it_beat_every_form_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        crossing(1, 1.0, 3.0, 2.0, 1.5, 1.2),
        crossing(8, 2.5, 9.0, 9.0, 9.0, 2.0),
        crossing(32, 2.5, 9.0, 9.0, 2.0, 9.0),
        crossing(64, 1.0, None, 2.0, 1.5, None),
        crossing(256, None, 3.0, 2.0, 2.0, 2.0),
        crossing(500, 1.0, 3.0, 2.0, 2.0, 2.0),
        crossing(1024, 1.0, 3.0, 2.0),
    ]
    write(tmp_path, "crossover-cifar-bfloat16", rows, driver="580.1")
    adopted(tmp_path, monkeypatch)
    arguments = (STAGE, torch.bfloat16)
    batches = [row["batch"] for row in rows]
    won = [n for n in batches if gate.measured_faster("forward", *arguments, n, CARD)]
    assert won == [1, 64, 500]
    # 256 failed: neither it nor what lies between it and those it did not fail at.
    beside = [gate.measured_faster("forward", *arguments, n, CARD) for n in (65, 255, 257, 499)]
    assert beside == [False] * 4
    [entry] = json.loads((tmp_path / "measured.json").read_text())["Some Card"].values()
    assert entry["versions"] == {**versions.installed(), "driver": "580.1"}
    best = {row["batch"]: row["form"] for row in entry["times"]}
    assert best == {
        1: "compiled", 8: "compiled", 32: "eager_graphed", 64: "eager_graphed",
        256: "eager_channels_last", 500: "eager_channels_last",
    }  # fmt: skip


def test_a_kernel_on_chip_must_win_from_python_and_from_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = ("on_chip", "on_chip_graphed", "kernels", "kernels_graphed")
    rows = [
        {
            "kernel": "forward",
            "stage": str(STAGE),
            "batch": batch,
            **dict(zip(forms, ms, strict=True)),
        }
        for batch, ms in {
            1: (1, 1, 2, 2),
            8: (1, 2, 2, 1),
            16: (1, 1, 2, 2),
            64: (1, None, 2, 2),
            128: (1, 1, 2, 2),
        }.items()
    ]
    write(tmp_path, "on_chip-cifar-bfloat16", rows)
    adopted(tmp_path, monkeypatch)
    arguments = ("on_chip forward", STAGE, torch.bfloat16)
    won = [n for n in range(1, 200) if gate.measured_faster(*arguments, n, CARD)]
    # 64 failed, and speaks for no batch up to the next that did not.
    assert won == [1, 2, 3, 13, 14, 15, 16, *range(128, 200)]


def test_what_other_versions_found_is_not_kept_beside_what_these_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = versions.installed()
    write(tmp_path, "tune-cifar-bfloat16", [trial("stage", 1.0)], versions=here | {"triton": "1.0"})
    write(tmp_path, "crossover-cifar-bfloat16", [crossing(1, 1.0, 3.0, 2.0, 1.5, 1.2)])
    chosen = adopted(tmp_path, monkeypatch)
    assert chosen("stage", 1024) == tuning.default_stage_tuning(STAGE, torch.bfloat16)
    card = json.loads((tmp_path / "measured.json").read_text())["Some Card"]
    assert {key: entry["versions"]["triton"] for key, entry in card.items()} == {
        f"stage {STAGE} bfloat16": "1.0",
        f"forward {STAGE} bfloat16": here["triton"],
    }


@pytest.mark.parametrize("stage", tuning.STAGES, ids=str)
def test_candidates_are_valid_and_begin_with_the_default(stage: Stage) -> None:
    from device import tune

    for few in (False, True):
        tried = tune.candidates(stage, torch.bfloat16, CARD, few)
        batch = 1 if few else 1024
        assert tried[0] == tuning.stage_tuning("stage", stage, torch.bfloat16, batch, CARD)
        assert len(set(tried)) == len(tried) <= 18
        for tiles in tried:
            assert max(tiles.block_k, tiles.block_n) <= LARGEST_TILE
            rows = -(-stage.height // tiles.bands)
            assert (tiles.bands - 1) * rows < stage.height
            assert tiles.bands == 1 or tiles.images == 1
