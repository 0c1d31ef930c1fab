"""The demo, with real processes, a real SIGKILL and a small model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from codedinv.coding import Code
from codedinv.data import write_idx
from codedinv.experiments import demo as demo_module
from codedinv.experiments.columns import Column
from codedinv.experiments.demo import Run, Traffic, prepare, run_demo
from codedinv.experiments.tally import Degraded, Tally
from codedinv.experiments.traffic import Answer
from codedinv.model import CodedModel

pytestmark = pytest.mark.timeout(300)  # of a busy machine; alone it takes some twenty seconds

LABELS = ["uncoded", "replication 2x", "hedged at p95", "guided", "Coded-InvNet"]


def demo(model: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "codedinv", "demo", "--model", str(model), "--out", str(out),
        "--queries", "160", "--rate", "80", *options,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def finished(
    lit_bundle: Path, idx_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo's folder and its process, which had no terminal."""
    out = tmp_path_factory.mktemp("demo") / "figures"
    return out, demo(lit_bundle, out, "--data", str(idx_folder))


@pytest.fixture
def summary(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    out, process = finished
    assert process.returncode == 0, process.stderr
    result: dict[str, Any] = json.loads((out / "summary.json").read_text())["result"]
    return result


def test_no_query_is_lost_to_a_sigkill_in_any_of_five_runs(
    finished: tuple[Path, subprocess.CompletedProcess[str]], summary: dict[str, Any]
) -> None:
    shown = finished[1].stdout
    for label in ("guided", "Coded-InvNet"):
        assert f"{label}: 160 of 160 answered, 0 lost" in shown
    assert list(summary["runs"]) == LABELS
    for run in summary["runs"].values():
        assert run["answered"] == run["sent"] == 160
        assert run["stats"]["deaths"] == 1
    assert summary["runs"]["Coded-InvNet"]["by_source"].get("reconstructed", 0) > 0
    assert set(summary["runs"]["uncoded"]["by_source"]) == {"exact"}


def test_every_run_has_the_same_victims(summary: dict[str, Any]) -> None:
    victims = {
        label: [(mishap["kind"], mishap["worker"]) for mishap in run["mishaps"]]
        for label, run in summary["runs"].items()
    }
    assert victims == {label: [("kill", 1), ("slow", 2)] for label in LABELS}
    for run in summary["runs"].values():
        killed = run["mishaps"][0]
        assert killed["at_work"]
        assert 40 <= killed["after"] <= killed["happened_after"]


def test_what_each_run_pays_is_what_its_server_sent(summary: dict[str, Any]) -> None:
    for run in summary["runs"].values():
        extra = dict(run["extra_calls"])
        assert extra.pop("all") == pytest.approx(sum(extra.values()))
    runs = summary["runs"]
    assert runs["uncoded"]["extra_calls"]["parity_queries"] == 0
    assert runs["Coded-InvNet"]["extra_calls"]["parity_queries"] <= 1 / 3 + 0.2  # partial groups
    assert runs["uncoded"]["degraded"]["count"] == 0


def test_without_a_terminal_it_prints_plain_lines(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, process = finished
    assert process.stdout.count("worker 1: SIGKILL") == 5
    assert process.stdout.count("worker 2: 100 ms slow") == 5
    assert "\x1b[" not in process.stdout
    assert process.stderr == ""


def test_figures_and_table_are_written(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = finished
    for name in ("latency.png", "recovery.png"):
        content = (out / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    assert (out / "comparison.md").read_text().startswith("| | " + " | ".join(LABELS) + " |")


def test_images_of_more_classes_than_the_model_has_are_a_plain_error(
    lit_bundle: Path, tmp_path: Path
) -> None:
    images = np.zeros((12, 28, 28), np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(12, dtype=np.uint8))
    process = demo(lit_bundle, tmp_path / "out", "--data", str(tmp_path))
    assert process.returncode == 2
    assert process.stderr.startswith("codedinv: --data: lit knows 10 classes, labels 0 to 9;")
    assert "labels up to 11" in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("loser", "is_well"), [("uncoded", True), ("guided", False)])
def test_only_a_loss_of_a_coded_run_fails_the_demo(
    loser: str,
    is_well: bool,
    lit_model: CodedModel,
    idx_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def served(
        model: CodedModel, traffic: Traffic, column: Column, console: Console, devices: str
    ) -> Run:
        answers = [
            Answer(i, float(at), 0.001, "exact", np.eye(10, dtype=np.float32)[0])
            for i, at in enumerate(traffic.arrivals_s)
        ]
        if column.label == loser:
            answers[7] = Answer(7, 0.1, 9.0, None, None, RuntimeError("lost"))
        tally = Tally.of(answers, traffic.labels)
        degraded = Degraded.of(answers, model, traffic.queries, traffic.labels)
        return Run(column, answers, tally, degraded, [], {}, {"all": 0.0}, None)

    monkeypatch.setattr(demo_module, "serve", served)
    monkeypatch.setattr(CodedModel, "load", lambda name: lit_model)
    text = io.StringIO()
    console = Console(file=text, width=80)
    assert run_demo("lit", tmp_path, idx_folder, 60, 50.0, 0, console) is is_well
    result = json.loads((tmp_path / "summary.json").read_text())["result"]
    assert [label for label, run in result["runs"].items() if run["lost"]] == [loser]


def test_a_rate_of_zero_is_refused_and_not_taken_for_none(
    lit_model: CodedModel, idx_folder: Path
) -> None:
    with pytest.raises(ValueError, match="rate: expected more than 0 queries per second, got 0"):
        prepare(lit_model, idx_folder, 150, 0.0, seed=3)


def test_every_run_gets_the_same_images_and_each_once_before_any_comes_again(
    lit_model: CodedModel, idx_folder: Path
) -> None:
    first, again = (prepare(lit_model, idx_folder, 150, 50.0, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.queries, again.queries)
    np.testing.assert_array_equal(first.arrivals_s, again.arrivals_s)
    distinct = {query.tobytes() for query in first.queries[:60]}
    assert distinct == {query.tobytes() for query in first.queries[60:120]}
    assert len(distinct) == 60


@pytest.mark.parametrize("light", [True, False], ids=["a light model", "nothing but a backbone"])
def test_a_model_for_no_code_is_shown_to_the_end(tmp_path: Path, light: bool) -> None:
    """On rows of numbers, of which there is no picture either."""
    random = np.random.default_rng(0)
    x, y = random.random((80, 6), np.float32), np.arange(80) % 3
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    more: dict[str, Any] = {"light": torch.nn.Linear(6, 3), "scheme": "uncoded"} if light else {}
    model = CodedModel.from_modules(
        name="rows", code=Code.uniform(2), backbone=torch.nn.Linear(6, 16),
        heads={"label": torch.nn.Linear(16, 3)}, anchors_queries=x[:4], **more,
    )  # fmt: skip
    model.save(tmp_path / "bundle")
    process = demo(tmp_path / "bundle", tmp_path, "--data", str(tmp_path / "data.npz"))
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "comparison.md").is_file()
    assert ("guided: 160 of 160 answered" in process.stdout) is light
