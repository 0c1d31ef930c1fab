"""The demo's table, on a terminal and in Markdown."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from codedinv.experiments.comparison import caption, markdown, rows, table


def some_run(**changes: Any) -> dict[str, Any]:
    return {
        "lost": 0, "late": 1,
        "latency_ms": {"p50": 1.5, "p99": 9.96, "p99.9": 102.34, "max": 103.0},
        "extra_calls": {"all": 0.184}, "front_end": 0.0, "others_cores": 0.1,
        "accuracy": {"all": 90.04},
        "degraded": {"count": 0, "right": 0, "exact_right": 0, "light_right": None}, **changes,
    }  # fmt: skip


def some_summary() -> dict[str, Any]:
    degraded = {"count": 57, "right": 50, "exact_right": 52, "light_right": 49}
    runs = {
        "uncoded": some_run(late=41),
        "replication 2x": some_run(lost=2, latency_ms={}, accuracy={}),
        "hedged at p95": some_run(),
        "Coded-InvNet": some_run(degraded=degraded, front_end=0.022),
    }
    return {
        "n": 5, "k": 4, "workers": 5, "queries": 1200, "cores": 2, "runs": runs,
        "omitted": {"guided": "x has no light model"},
    }  # fmt: skip


def test_every_row_has_a_cell_for_each_run() -> None:
    found = dict(rows(some_summary()))
    assert found["lost"] == ["0", "2", "0", "0"]
    assert found["late (over 50 ms)"] == ["41", "1", "1", "1"]
    assert found["latency p99.9, ms"] == ["102.3", "-", "102.3", "102.3"]
    assert found["extra worker calls"] == ["18%"] * 4
    assert found["extra front-end work"] == ["-", "-", "-", "2.2%"]
    assert found["right, of all answers"] == ["90.0 %", "-", "90.0 %", "90.0 %"]
    assert found["degraded answers"] == ["0", "0", "0", "57"]
    assert found["of these right"] == ["-", "-", "-", "50"]
    assert found["right, had they been exact"][-1] == "52"
    assert found["right by the light model"][-1] == "49"


def test_the_table_fits_80_columns_and_keeps_every_heading() -> None:
    summary = some_summary()
    summary["runs"]["guided"] = some_run()
    text = io.StringIO()
    Console(file=text, width=80).print(table(summary))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text.getvalue()
    assert len(lines) <= len(rows(summary)) + 5, "no cell is folded"


def test_the_caption_explains_what_would_puzzle_and_what_is_missing() -> None:
    lines = " ".join(caption(some_summary()))
    assert "same 5 workers" in lines
    assert "1 took longer than the p99.9" in lines
    assert "25%" in lines
    assert "No column 'guided': x has no light model." in lines


def test_a_short_run_claims_nothing_beyond_its_p999() -> None:
    lines = caption(some_summary() | {"queries": 200})
    assert lines[0].endswith("Latency counts from the scheduled arrival.")


def test_a_model_without_a_light_one_has_no_row_for_it() -> None:
    summary = some_summary()
    summary["runs"]["Coded-InvNet"]["degraded"]["light_right"] = None
    found = dict(rows(summary))
    assert "right by the light model" not in found
    assert "right, had they been exact" in found


def test_a_busy_machine_is_told() -> None:
    summary = some_summary()
    assert "Other processes" not in " ".join(caption(summary))
    summary["runs"]["hedged at p95"]["others_cores"] = 1.24
    assert "kept 0.1, 0.1, 1.2, 0.1 of 2 cores busy" in " ".join(caption(summary))


def test_the_markdown_has_the_same_cells() -> None:
    lines = markdown(some_summary()).splitlines()
    assert lines[0] == "| | uncoded | replication 2x | hedged at p95 | Coded-InvNet |"
    assert lines[1] == "|---|---:|---:|---:|---:|"
    assert "| late (over 50 ms) | 41 | 1 | 1 | 1 |" in lines
    assert lines[len(rows(some_summary())) + 2] == ""
