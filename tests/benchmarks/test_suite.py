"""What `make bench` says is what its receipts say, and its page holds what is tracked."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a file of benchmarks/ and gives its names."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return lambda name: runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))


def bar(claim: str, measured: float, met: bool) -> dict[str, Any]:
    return {"claim": claim, "measured": measured, "bar": "<= 2.0", "met": met}


def test_the_page_of_costs_is_what_the_receipts_say(program: Any) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    assert program("performance")["page"](text) == text


def test_a_page_follows_a_receipt_that_changes(program: Any, tmp_path: Path) -> None:
    for path in (ROOT / "benchmarks" / "receipts").glob("[bdeft]*-*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    (path,) = tmp_path.glob("transport-*.json")
    receipt = json.loads(path.read_text())
    receipt["rows"][0]["pool_over_pipe_p50"] = 123.45
    path.write_text(json.dumps(receipt))
    text = (ROOT / "docs" / "performance.md").read_text()
    assert "123.45x" in program("performance")["page"](text, tmp_path)


def test_a_missing_receipt_is_named(program: Any, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "performance.md").read_text()
    with pytest.raises(ValueError, match=r"expected a receipt frontend-"):
        program("performance")["page"](text, tmp_path)


def test_the_table_at_the_end_shows_every_bar_beside_what_it_was(program: Any) -> None:
    suite = program("suite")
    now = {"frontend": [bar("CPU", 1.5, True), bar("new", 3.0, False)]}
    rows = suite["summary"](now, {"frontend": [bar("CPU", 2.5, False)]})
    assert [row["before"] for row in rows] == [2.5, None]
    lines = suite["table"](rows).splitlines()
    assert lines[1].split() == ["met", "1.5", "2.5", "<=", "2.0", "frontend:", "CPU"]
    assert lines[2].startswith("MISSED")


def test_a_missed_bar_is_the_exit_code(program: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_bars = program("receipt")["print_bars"]
    assert print_bars([bar("a", 1.0, True)]) == 0
    assert print_bars([bar("a", 1.0, True), bar("b", 3.0, False)]) == 1
    assert "MISSED b: 3.0" in capsys.readouterr().out


def test_receipts_go_where_they_are_told_and_nowhere_tracked_else(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BENCH_OUT", raising=False)
    assert program("receipt")["FOLDER"] == ROOT / "build" / "bench"
    monkeypatch.setenv("BENCH_OUT", str(tmp_path))
    path = program("receipt")["write_receipt"]("x", {"bars": []}, "Some CPU 9")
    assert path == tmp_path / "x-some-cpu-9.json"
