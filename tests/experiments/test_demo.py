"""The demo, with real processes, a real SIGKILL and a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)  # of a busy machine; alone it takes some ten seconds


@pytest.fixture(scope="module")
def finished(
    small_bundle: Path, idx_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo's folder and its process, which had no terminal."""
    out = tmp_path_factory.mktemp("demo") / "figures"
    command = [
        sys.executable, "-m", "codedinv", "demo", "--model", str(small_bundle), "--out", str(out),
        "--data", str(idx_folder), "--queries", "200", "--rate", "80",
    ]  # fmt: skip
    return out, subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_no_query_is_lost_to_a_sigkill(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, process = finished
    assert process.returncode == 0, process.stderr
    assert "200 of 200 queries answered, 0 lost" in process.stdout
    runs = json.loads((out / "summary.json").read_text())["result"]["runs"]
    assert runs["coded"]["answered"] == runs["uncoded"]["answered"] == 200
    assert runs["coded"]["stats"]["deaths"] == runs["uncoded"]["stats"]["deaths"] == 1
    assert runs["coded"]["by_source"].get("reconstructed", 0) > 0
    assert set(runs["uncoded"]["by_source"]) == {"exact"}


def test_without_a_terminal_it_prints_plain_lines(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, process = finished
    assert "SIGKILL" in process.stdout
    assert "slowed by 100 ms" in process.stdout
    assert "\x1b[" not in process.stdout
    assert process.stderr == ""


def test_both_figures_are_written(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = finished
    for name in ("latency.png", "recovery.png"):
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
