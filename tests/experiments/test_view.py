"""What the demo shows, on a terminal and off it."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from codedinv.experiments import view as view_module
from codedinv.experiments.tally import Tally
from codedinv.experiments.traffic import Answer, Record
from codedinv.experiments.view import LiveView, Tile, finite


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
    labels = np.array([1, 0, 1, 1])

    def tally() -> Tally:
        return Tally.of(record.answers(), labels)

    with LiveView("coded", record.count, tally, lambda: stats, console) as view:
        view.event(1, "SIGKILL")
        time.sleep(0.05)
    return text.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_counts_and_mishaps_are_shown(terminal: bool) -> None:
    shown = shown_by_a_view(terminal)
    assert ("\x1b[" in shown) == terminal
    assert "SIGKILL" in shown
    if terminal:
        for piece in ("3 answered", "2 exact", "1 reconstructed", "1 lost", "p99.9 3.0 ms"):
            assert piece in shown


def test_without_a_terminal_there_is_a_line_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_module, "_LINE_EVERY_S", 0.02)
    lines = shown_by_a_view(terminal=False).splitlines()
    assert any("worker 1: SIGKILL" in line for line in lines)
    assert any(line.endswith("workers ready starting busy") for line in lines)


def tile_text(tile: Tile, state: str, now: float) -> tuple[str, str]:
    """What is on a worker's tile, and whether it is red, yellow or else."""
    panel = tile.panel(state, now)
    text = io.StringIO()
    Console(file=text, width=40).print(panel)
    return text.getvalue(), str(panel.style)


def test_a_killed_workers_tile_is_red_until_it_is_back() -> None:
    tile = Tile(3)
    shown, style = tile_text(tile, "busy", 0.0)
    assert "worker 3" in shown
    assert "red" not in style
    tile.struck("SIGKILL", 10.0)
    for state, now in (("busy", 10.01), ("dead", 10.1), ("starting", 12.0)):
        shown, style = tile_text(tile, state, now)
        assert "SIGKILL" in shown
        assert "red" in style
    shown, style = tile_text(tile, "ready", 12.5)
    assert "ready again" in shown
    assert "after 2.5 s" in shown
    assert "red" not in style


def test_a_quick_restart_does_not_hide_the_kill() -> None:
    tile = Tile(0)
    tile.struck("SIGKILL", 10.0)
    tile.panel("dead", 10.1)
    assert "red" in tile_text(tile, "ready", 10.3)[1]
    shown, style = tile_text(tile, "ready", 12.0)
    assert "after 0.3 s" in shown
    assert "red" not in style


def test_a_slow_workers_tile_says_so() -> None:
    tile = Tile(0)
    tile.struck("100 ms slow", 0.0)
    shown, style = tile_text(tile, "busy", 5.0)
    assert "100 ms slow" in shown
    assert "yellow" in style


def test_what_json_cannot_say_becomes_none() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": (2,)}) == {"a": [None, 1.0], "b": [2]}
