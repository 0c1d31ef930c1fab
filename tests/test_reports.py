"""What people read of a model: `codedinv evaluate` and `codedinv info` of every scheme."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codedinv.cli import main
from codedinv.cli.reports import work
from codedinv.experiments.intervals import few_examples
from codedinv.model import CodedModel

Shown = Callable[..., str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Runs a command and gives what it prints, its white space as single blanks."""
    monkeypatch.setenv("COLUMNS", "200")  # no cell of a table is broken into lines

    def run(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        assert not caught.value.code
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.fixture
def bundle_for(small_bundle: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A small bundle that is meant for a scheme."""
    modules = CodedModel.load(small_bundle, runtime="torch").modules
    anchors = CodedModel.load(small_bundle).anchors.queries

    def made(scheme: str) -> Path:
        return CodedModel.from_modules(
            name="mine",
            backbone=modules.backbone,
            heads=modules.heads,
            encoder=modules.encoder,
            anchors_queries=anchors,
            scheme=scheme,
        ).save(tmp_path / scheme)

    return made


@pytest.mark.parametrize("scheme", ["uncoded", "replication"])
def test_a_scheme_without_groups_is_not_described_by_them(
    scheme: str, bundle_for: Callable[[str], Path], idx_folder: Path, shown: Shown
) -> None:
    folder = bundle_for(scheme)
    report = shown("evaluate", "-m", folder, "--data", idx_folder)
    assert "each query lost in turn" in report
    assert "no coding groups" in report
    for word in ("of 4 lost", "whole group", "(5, 4)", "groupings"):
        assert word not in report
    assert "k = 4" not in shown("info", folder)


def test_a_scheme_with_groups_says_how_many_of_which_are_lost(
    bundle_for: Callable[[str], Path], idx_folder: Path, shown: Shown
) -> None:
    folder = bundle_for("invertible")
    report = shown("evaluate", "-m", folder, "--data", idx_folder)
    for words in ("1 of 4 lost, each in turn", "whole group", "(n, k) = (5, 4), 3 groupings"):
        assert words in report
    assert "n = 5, k = 4, r = 1" in shown("info", folder)


def test_figures_of_few_examples_say_how_little_they_are_worth(
    bundle_for: Callable[[str], Path], idx_folder: Path, shown: Shown
) -> None:
    few = shown("evaluate", "-m", bundle_for("uncoded"), "--data", idx_folder)
    assert "Only 60 test examples: an accuracy is known to ±13 points at worst" in few
    assert few_examples(400) is None


def test_the_work_of_small_networks_is_not_rounded_to_nothing(
    bundle_for: Callable[[str], Path], shown: Shown
) -> None:
    assert [work(macs) for macs in (1_234_567, 4_500, 24)] == ["1.23 M", "4.5 k", "24"]
    assert " 0.0" not in shown("info", bundle_for("uncoded")).partition("parameters")[0]


def test_a_model_without_an_encoder_is_not_calibrated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", "fashion-mnist-guided"])
    assert "is guided and has no encoder: only groups with parities" in capsys.readouterr().err
