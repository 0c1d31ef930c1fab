"""What the demo shows, on a terminal and off it."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from codedinv.experiments.tally import Tally
from codedinv.experiments.traffic import Answer, Record
from codedinv.experiments.view import LiveView, comparison, finite


def record_of(*sources: str | None) -> Record:
    """Answers that all say class 1, after 1, 2, 3, ... ms."""
    record = Record(len(sources))
    for number, source in enumerate(sources):
        outputs = None if source is None else np.array([0.0, 1.0], np.float32)
        record.add(Answer(number, 0.0, 1e-3 * (number + 1), source, outputs))
    record.sent = len(sources)
    return record


def shown_by_a_view(terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    record = record_of("exact", "exact", "reconstructed", None)
    stats = SimpleNamespace(workers=("ready", "starting", "busy"))
    with LiveView("coded", record, np.array([1, 0, 1, 1]), lambda: stats, console) as view:
        view.event(1, "SIGKILL")
        time.sleep(0.05)
    return text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_counts_accuracy_quantiles_and_workers_are_shown(terminal: bool) -> None:
    shown = shown_by_a_view(terminal)
    assert ("\x1b[" in shown) == terminal
    for piece in ("SIGKILL", "starting", "50.0 %", "100.0 %", "3.0 ms"):
        assert piece in shown


def test_a_lost_query_is_shown_as_lost() -> None:
    assert "lost 1" in shown_by_a_view(terminal=False)


def test_the_comparison_has_a_column_for_each_run() -> None:
    tallies = {
        "coded": Tally.of(record_of("exact", "reconstructed").answers(), np.array([1, 1])),
        "uncoded": Tally.of(record_of("exact", None).answers(), np.array([1, 1])),
    }
    stats = {"retries": 2, "parity_queries": 1, "accepted": 4}
    text = io.StringIO()
    Console(file=text, width=100).print(comparison(tallies, dict.fromkeys(tallies, stats)))
    rows = {
        line.split("│")[1].strip(): line for line in text.getvalue().splitlines() if "│" in line
    }
    assert "2 of 2" in rows["queries answered"]
    assert "1 of 2" in rows["queries answered"]
    assert rows["accuracy, reconstructed"].count("-") == 1
    assert rows["redundant work"].count("25%") == 2


def test_what_json_cannot_say_becomes_none() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": (2,)}) == {"a": [None, 1.0], "b": [2]}
