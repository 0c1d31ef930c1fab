"""The documentation keeps its word: code runs, links lead somewhere, numbers are the receipts'."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from codedinv.experiments.tables import (
    accuracy_receipts,
    accuracy_table,
    replace_table,
)

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RECEIPTS = accuracy_receipts(ROOT / "benchmarks" / "receipts")
CONTROLS = json.loads((ROOT / "benchmarks" / "receipts" / "controls.json").read_text())


def run_example(name: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_readmes_ten_lines_are_the_quickstart_example() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    example = (ROOT / "examples" / "quickstart.py").read_text()
    assert example.split('"""\n\n', 1)[1] == block


@pytest.mark.timeout(300)
def test_the_quickstart_answers_every_query() -> None:
    lines = run_example("quickstart.py").splitlines()
    assert len(lines) == 41
    assert all("exact" in line or "reconstructed" in line for line in lines)


@pytest.mark.timeout(300)
def test_a_group_decoded_by_hand_gives_back_the_lost_embedding() -> None:
    shown = run_example("by_hand.py")
    assert float(shown.rsplit(maxsplit=1)[-1]) < 1.0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_on_data_of_ones_own(tmp_path: Path) -> None:
    last = run_example("own_data.py", str(tmp_path / "toy")).splitlines()[-1]
    normal, degraded = map(float, re.findall(r"A_[nd] ([\d.]+) %", last))
    assert normal > 60
    assert degraded > 50


def test_every_example_is_run_by_a_test() -> None:
    tests = Path(__file__).read_text()
    for example in (ROOT / "examples").glob("*.py"):
        assert f'run_example("{example.name}"' in tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_accuracy_table_is_what_the_receipts_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {r["result"]["model"] for r in RECEIPTS} == {"fashion-mnist", "fashion-mnist-k10"}
    assert replace_table(readme, accuracy_table(RECEIPTS, CONTROLS)) == readme


def test_the_table_of_compiled_kernels_is_what_the_receipt_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = runpy.run_path(str(ROOT / "benchmarks" / "compiled.py"))["table"]
    receipt = json.loads((ROOT / "benchmarks" / "receipts" / "compiled-sm-90.json").read_text())
    assert receipt["spilled"] == []
    assert table(receipt) in (ROOT / "docs" / "kernels.md").read_text()


def test_the_tables_of_wrong_results_are_what_the_receipt_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    program = runpy.run_path(str(ROOT / "benchmarks" / "corruption.py"))
    receipt = json.loads((ROOT / "benchmarks" / "receipts" / "corruption.json").read_text())
    models = receipt["result"]["models"]
    page = (ROOT / "docs" / "verification.md").read_text()
    assert program["table"](models) in page
    assert program["unusual_table"](models) in page
    assert program["bars"](models) == receipt["result"]["bars"]
    missed = [bar["claim"] for bar in receipt["result"]["bars"] if not bar["met"]]
    assert missed == ["fashion-mnist-k10: exponent bit 23 flipped, found within 3 groups"]
    assert "One bar is missed" in page


def test_a_table_has_a_row_for_each_receipt_and_half_widths() -> None:
    result = {
        "model": "m", "n": 5, "k": 4, "encoder_over_backbone": 0.0871, "A_n": 88.0, "A_d": 87.0,
        "agreement": 95.0, "whole_group": 87.75,
        "interval95": {name: [1.0, 3.5] for name in ("A_n", "A_d", "agreement", "whole_group")},
    }  # fmt: skip
    controls = {"result": {"head_alone_A_n": 80.0, "models": {"m": {"A_d_plain_sum": 12.3}}}}
    lines = accuracy_table([{"result": result}] * 2, controls).splitlines()
    assert len(lines) == 6
    assert "| 12.30 |" in lines[3]
    assert "80.00" in lines[5]
    assert lines[2].startswith("| `m` | (5, 4) | 8.7% | 88.00 ± 1.25 |")


def test_a_text_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="accuracy table"):
        replace_table("no table here", "|")
