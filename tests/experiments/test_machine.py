"""What other processes do is told from what this one does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from codedinv.experiments import machine
from codedinv.experiments.machine import OthersLoad


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc/stat of two processors, of which this process may use the first."""
    monkeypatch.setattr(machine, "_STAT", tmp_path / "stat")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    return tmp_path / "stat"


def test_others_are_all_that_is_busy_on_ones_own_processors(
    stat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 50.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    stat.write_text("cpu 9 9\ncpu0 100 0 50 900 10 0 0 5 7 0\ncpu1 1 1 1 1 1 1 1 1 1 1\n")
    load = OthersLoad()
    now = 52.0
    stat.write_text("cpu 9 9\ncpu0 180 0 70 990 99 0 0 15 90 0\ncpu1 9 9 9 9 9 9 9 9 9 9\n")
    assert load.cores() == pytest.approx((0.8 + 0.2 + 0.1) / 2, abs=0.05)


def test_ones_own_work_is_not_the_others(stat: Path) -> None:
    stat.write_text("cpu0 100 0 0 0 0 0 0 0\n")
    load = OthersLoad()
    burn(0.3)
    stat.write_text("cpu0 130 0 0 0 0 0 0 0\n")
    found = load.cores()
    assert found is not None
    assert found < 0.1


def test_a_system_that_does_not_tell_is_no_error(stat: Path) -> None:
    assert OthersLoad().cores() is None
