"""The examples of docs/own-models.md: networks of one's own, served while a worker is killed."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def last_lines(example: str) -> str:
    """What an example prints, run as a newcomer would: not from the repository."""
    finished = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example)],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("example", "scheme", "queries"),
    [
        ("own_resnet.py", "guided", 200),
        pytest.param("own_vit.py", "uncoded", 200, marks=pytest.mark.slow),
        pytest.param("own_tabular.py", "replication", 178, marks=pytest.mark.slow),
        ("own_onnx.py", "guided", 200),
    ],
)
def test_every_query_of_a_model_of_ones_own_is_answered(
    example: str, scheme: str, queries: int
) -> None:
    if example == "own_tabular.py":
        pytest.importorskip("sklearn", reason="pip install 'codedinv[dev]'")
    shown = last_lines(example)
    assert f"{scheme}: {queries} of {queries} answered" in shown
    (right,) = re.findall(r"(\d+) % right", shown)
    assert int(right) > 60, "of three or four classes"
    if example == "own_onnx.py":
        assert "torch was imported: False" in shown


def test_the_recipe_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "own-models.md").read_text()
    recipe = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    assert len(recipe.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    program = tmp_path / "recipe.py"
    program.write_text(
        "from models import resnet, toy\n"
        "backbone, heads = resnet.build()\n"
        "head = heads['label']\n"
        "x = toy.corners(20, seed=0)[0]\n" + recipe
    )
    found = runpy.run_path(str(program))
    assert [prediction.source for prediction in found["predictions"]] == ["exact"] * 20
    assert (tmp_path / "bundles" / "mine" / "bundle.json").is_file()
