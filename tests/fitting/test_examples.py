"""The four example networks go through `codedinv fit` and are served through a killed worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_fit.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["resnet", "vit", "tabular", "onnx"])
def test_a_network_becomes_a_bundle_that_serves(kind: str, tmp_path: Path) -> None:
    if kind == "tabular":
        pytest.importorskip("sklearn", reason="pip install 'codedinv[dev]'")
    finished = subprocess.run(
        [sys.executable, str(EXAMPLE), kind, str(tmp_path)],
        capture_output=True, text=True, timeout=580, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "no redundancy, fall back" in finished.stdout
    said = " ".join(finished.stdout.split())  # the sentence is longer than a line
    assert re.search(r"Serve .* for \d+% more work|Do not code", said)
    (right,) = re.findall(rf"{kind}: 200 of 200 answered, (\d+) % right", finished.stdout)
    assert int(right) > 60
    assert (tmp_path / "fitted" / "frontier.png").is_file()
