"""benchmarks/device.sh, rehearsed on the CPU: the same code paths, tiny shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "device.sh"


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
        "power-cifar-rehearsal.json",
    } <= names
    again = run("--rehearse", "--out", str(tmp_path), "forward-cifar-float32")
    assert '{"batch"' not in again.stdout


def test_an_unknown_piece_is_named(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "--rehearse", "frobnicate")
    assert done.returncode == 1
    assert "unknown piece frobnicate" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path), "ceilings")
    assert done.returncode == 1
    assert "no CUDA device is here; --rehearse" in done.stderr
