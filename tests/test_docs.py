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
    accuracy_tables,
    replace_table,
    with_fit_table,
    with_tables,
)
from codedinv.model import CodedModel, bundled_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RECEIPTS = accuracy_receipts(ROOT / "benchmarks" / "receipts")


def run_example(name: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_readmes_ten_lines_are_the_quickstart_example() -> None:
    block, fit = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert fit in (ROOT / "docs" / "fit.md").read_text(), "which a test of fit runs"
    assert len(fit.strip().splitlines()) <= 10
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


@pytest.mark.timeout(300)
def test_a_model_beside_other_pages_of_a_fastapi_application() -> None:
    assert "{'queries': 1}" in run_example("fastapi_app.py")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_on_data_of_ones_own(tmp_path: Path) -> None:
    last = run_example("own_data.py", str(tmp_path / "toy")).splitlines()[-1]
    normal, degraded = map(float, re.findall(r"A_[nd] ([\d.]+) %", last))
    assert normal > 60
    assert degraded > 50


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    for example in (ROOT / "examples").glob("*.py"):
        assert example.name in tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_tables_are_what_the_receipts_say() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {r["result"]["model"] for r in RECEIPTS} == set(bundled_names())
    assert with_tables(readme, ROOT / "benchmarks" / "receipts") == readme


def test_every_receipt_is_of_the_bundle_that_comes_with_the_package() -> None:
    for receipt in RECEIPTS:
        metrics = CodedModel.load(receipt["result"]["model"]).metadata["metrics"]
        assert receipt["result"]["A_n"] == pytest.approx(metrics["A_n"], abs=0.05)


def test_the_table_of_compiled_kernels_is_what_the_receipt_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = runpy.run_path(str(ROOT / "benchmarks" / "compiled.py"))["table"]
    receipt = json.loads((ROOT / "benchmarks" / "receipts" / "compiled-sm-90.json").read_text())
    assert receipt["spilled"] == []
    assert table(receipt) in (ROOT / "docs" / "kernels.md").read_text()


def test_the_predictions_for_a_card_are_what_the_receipt_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    program = runpy.run_path(str(ROOT / "benchmarks" / "machine_code.py"))
    receipt = json.loads((ROOT / "benchmarks" / "receipts" / "machine-code-sm-90.json").read_text())
    text = (ROOT / "docs" / "kernels.md").read_text()
    for table in ("steps_table", "bars_table", "compared_table"):
        assert program[table](receipt) in text


def test_the_predicted_times_on_chip_are_what_the_receipt_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    program = runpy.run_path(str(ROOT / "benchmarks" / "predicted.py"))
    receipts = ROOT / "benchmarks" / "receipts"
    receipt = json.loads((receipts / "predicted-sm-90.json").read_text())
    code = json.loads((receipts / "machine-code-sm-90.json").read_text())
    page = (ROOT / "docs" / "on-chip.md").read_text()
    assert program["table"](receipt) in page
    assert program["bars_table"](receipt, code) in page


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
    missed = {
        bar["claim"].partition(": ")[2] for bar in receipt["result"]["bars"] if not bar["met"]
    }
    assert missed == {
        "noise 0.3x, found within 3 groups",
        *(f"exponent bit {bit} flipped, found within 3 groups" for bit in (23, 24, 30)),
    }
    assert "Bars are missed" in page


def some_result(**changes: object) -> dict[str, object]:
    ways = {
        "arrival": {"mean": 87.0, "over_light": None, "beaten_by": ["light"]},
        "arrival + fused": {"mean": 89.0, "over_light": {"mean": 1.0, "low": 0.5, "high": 1.5}},
    }
    return {
        "model": "m", "scheme": "invertible", "n": 5, "k": 4, "r": 1, "encoder_over_backbone": 0.08,
        "light_over_backbone": 0.05, "A_n": 90.0, "A_d": 89.0, "retained_gain": 0.5,
        "controls": {"light": 88.0, "head_alone": 85.0, "plain_sum": 40.0, "affine_share": 0.9,
                     "exact_fused": 91.0},
        "beaten_by": [], "A_d_by_way": ways,
        "interval95": {name: [1.0, 3.5] for name in ("A_n", "A_d")}, **changes,
    }  # fmt: skip


def test_a_table_shows_every_model_beside_its_controls_and_marks_the_beaten() -> None:
    guided = some_result(
        model="g", scheme="guided", beaten_by=["light"], A_d_by_way={"arrival": {"mean": 89.0}}
    )
    lines = accuracy_tables([{"result": some_result()}, {"result": guided}]).splitlines()
    assert lines[2] == (
        "| `m` | invertible | (5, 4) | 2.0% | +25% | 90.00 ± 1.25 | 89.00 ± 1.25 "
        "| 0.50 | 87.00 (beaten: light model) | 88.00 | 85.00 | 40.00 | 0.90 |"
    )
    assert lines[3].startswith(
        "| `g` | guided | (5, 4) | 5.0% | +25% | 90.00 ± 1.25 | 89.00 ± 1.25 (beaten: light model)"
    )
    assert lines[7:] == ["| `m` | 87.00 | - | - | 89.00 (+1.00 ± 0.50) | - | 91.00 |"], (
        "guided has one way"
    )


def test_an_encoder_at_the_workers_is_paid_there() -> None:
    result = some_result(scheme="worker-encoded", encoder_over_backbone=0.96)
    (line,) = (row for row in accuracy_tables([{"result": result}]).splitlines() if "(5, 4)" in row)
    assert line.startswith("| `m` | worker-encoded | (5, 4) | 0.0% | +49% |")


def test_a_text_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="accuracy table"):
        replace_table("no table here", "|", "accuracy")


def test_the_soak_that_the_gateways_page_tells_of_is_its_receipts() -> None:
    receipt = json.loads((ROOT / "benchmarks" / "receipts" / "gateway-soak.json").read_text())
    result = receipt["result"]
    assert result["met"]
    assert result["failed"] == {}
    page = " ".join((ROOT / "docs" / "gateway.md").read_text().split())
    assert f"of {result['answered']:,} requests none failed" in page
    assert "--minutes 30 --rate 200 --kill-every 20" in receipt["command"]


def test_the_results_of_a_fit_are_its_receipts() -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    assert with_fit_table(page, ROOT / "benchmarks" / "receipts") == page
    receipt = json.loads((ROOT / "benchmarks" / "receipts" / "fit-fashion-mnist.json").read_text())
    assert receipt["command"] in " ".join(page.replace("\\\n", " ").split())
