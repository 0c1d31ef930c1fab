"""The command line, as its users meet it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codedinv.cli import main
from codedinv.model import CodedModel


def run(*arguments: str | Path) -> int:
    """Runs a command in this process and gives its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def reported(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert run(*arguments) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize(
    "command",
    ["", "calibrate", "chaos", "demo", "evaluate", "export", "info", "train", "train light"],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "--help") == 0
    assert "Usage:" in capsys.readouterr().out


def test_the_command_line_starts_without_torch() -> None:
    program = (
        "import sys\n"
        "from codedinv.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'onnxruntime') if m in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100
    )
    assert finished.stdout.split()[-1] == "[]"


def test_info_tells_cost_code_shapes_and_files(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = reported(capsys, "info", small_bundle, "--json")
    macs = info["macs"]
    assert info["code"]["coefficients"] == [[0.25] * 4]
    assert info["input_shape"] == [1, 28, 28]
    assert info["encoder_over_backbone"] == macs["encoder"] / macs["backbone"]
    assert info["encoder_over_backbone_per_query"] == macs["encoder"] / macs["backbone"] / 4
    assert 0 < info["largest_sigma"] <= 0.9
    assert info["bytes"] == sum(path.stat().st_size for path in small_bundle.iterdir())
    assert info["provenance"]["recipe"] == "random weights"


def test_info_for_people_shows_the_same(
    small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", small_bundle) == 0
    shown = capsys.readouterr().out
    assert "E_k/F" in shown
    assert "backbone.onnx" in shown


def test_info_without_a_name_lists_the_bundled_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(reported(capsys, "info", "--json")["bundled"], list)


def test_evaluate_reports_accuracies_and_writes_a_receipt(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], idx_folder: Path
) -> None:
    receipt = tmp_path / "receipts" / "small.json"
    report = reported(
        capsys, "evaluate", "--model", small_bundle, "--data", idx_folder, "--groupings", "2",
        "--json", "--receipt", receipt,
    )  # fmt: skip
    assert report["images"] == 60
    for name in ("A_n", "A_d", "agreement", "whole_group"):
        low, high = report["interval95"][name]
        assert 0 <= low <= report[name] <= high <= 100
    assert len(report["A_d_by_slot"]) == 4
    assert report["controls"]["light"] is None
    assert 0 <= report["controls"]["plain_sum"] <= 100
    assert report["retained_gain"] is None
    written = json.loads(receipt.read_text())
    assert written["result"] == report
    assert written["command"].startswith("codedinv ")
    assert {"python", "numpy"} <= set(written["versions"])


def test_evaluate_for_people_is_a_table(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], idx_folder: Path
) -> None:
    assert run("evaluate", "-m", small_bundle, "--data", idx_folder, "--groupings", "1") == 0
    assert "degraded accuracy A_d" in capsys.readouterr().out


def test_without_the_full_test_set_the_bundled_images_are_used_and_said_so(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "codedinv.data.image_sets._DEBIAN_FOLDERS", {"fashion-mnist": Path("/nowhere")}
    )
    report = reported(capsys, "evaluate", "-m", small_bundle, "--groupings", "1", "--json")
    assert report["images"] == 1000
    assert "1,000 bundled test images" in report["note"]


def test_export_writes_a_bundle_that_loads(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = reported(capsys, "export", small_bundle, tmp_path / "out", "--json")
    assert max(report["onnx"]["relative_error"].values()) < 1e-4
    x = np.random.default_rng(2).random((2, 1, 28, 28), dtype=np.float32)
    before, after = CodedModel.load(small_bundle), CodedModel.load(tmp_path / "out")
    np.testing.assert_allclose(after.embed(x), before.embed(x), atol=1e-5)


TINY_RECIPE = """
name = "tiny"
[backbone]
input_shape = [1, 28, 28]
stages = [{ blocks = 1, hidden = 4, squeeze = 4 }]
[head]
kind = "dense"
hidden = 8
[classifier]
epochs = 1
batch_size = 25
[light]
budget = 0.9
epochs = 1
batch_size = 25
[encoder]
k = 3
input_channels = 2
width = 4
blocks = 1
steps = 3
groups_per_step = 4
"""

TINY_GUIDED = """
name = "tiny-guided"
scheme = "guided"
[backbone]
kind = "resnet"
input_shape = [1, 28, 28]
stem = 4
stages = [{ blocks = 1, width = 8 }]
[head]
kind = "linear"
[classifier]
epochs = 1
batch_size = 25
[light]
budget = 0.2
epochs = 1
batch_size = 25
[encoder]
k = 3
"""


def test_calibrate_writes_one_file_and_leaves_the_networks(
    tmp_path: Path, small_bundle: Path, idx_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(small_bundle, tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = reported(capsys, "calibrate", folder, "--data", idx_folder, "--groups", 600, "--json")
    assert report["groups"] == 600
    assert report["false_alarms"] <= 10
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) - set(before) == {"consistency.safetensors"}
    assert {name for name in before if after[name] != before[name]} == {"bundle.json"}
    model = CodedModel.load(folder)
    assert model.consistency is not None
    assert model.metadata["consistency"]["groups"] == 600
    assert model.metadata["macs"] == CodedModel.load(small_bundle).metadata["macs"]


@pytest.mark.timeout(300)
def test_two_training_commands_make_a_bundle_that_says_how(
    tmp_path: Path, idx_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY_RECIPE)
    out = tmp_path / "runs"
    arguments = ["--recipe", recipe, "--data", idx_folder, "--out", out]
    assert run("train", "encoder", *arguments) == 2
    assert "codedinv train classifier" in capsys.readouterr().err
    assert run("train", "classifier", *arguments) == 0
    assert run("train", "encoder", *arguments) == 0
    assert "degraded accuracy" in capsys.readouterr().out
    model = CodedModel.load(out / "bundle")
    assert (model.name, model.code.k) == ("tiny", 3)
    assert model.metadata["metrics"]["images"] == 60
    assert model.consistency is not None
    provenance = model.metadata["provenance"]
    assert list(provenance["commands"]) == ["classifier", "encoder"]
    assert provenance["recipe"]["encoder"]["k"] == 3
    assert model.light is not None
    assert model.fusion is not None
    capsys.readouterr()
    report = reported(capsys, "evaluate", "-m", out / "bundle", "--data", idx_folder, "--json")
    assert report["A_n"] == pytest.approx(model.metadata["metrics"]["A_n"])
    assert all(value is not None for value in report["controls"].values())
    assert set(report["A_d_by_way"]) >= {"arrival", "arrival + fused", "alike + fused"}
    costs = report["macs_per_query"]
    assert costs["fused"] == pytest.approx(costs["degraded"] + costs["light"])


@pytest.mark.timeout(300)
def test_a_guided_model_is_trained_evaluated_and_shown_without_an_encoder(
    tmp_path: Path, idx_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "guided.toml"
    recipe.write_text(TINY_GUIDED)
    arguments = ["--recipe", recipe, "--data", idx_folder, "--out", tmp_path / "run"]
    assert run("train", "classifier", *arguments) == 0
    assert run("train", "encoder", *arguments) == 2
    assert "codedinv train light" in capsys.readouterr().err
    assert run("train", "light", *arguments) == 0
    bundle = tmp_path / "run" / "bundle"
    capsys.readouterr()
    assert run("info", bundle) == 0
    shown = capsys.readouterr().out
    assert "guided" in shown
    assert "light model" in shown
    report = reported(capsys, "evaluate", "-m", bundle, "--data", idx_folder, "--json")
    assert (report["scheme"], report["encoder_over_backbone"]) == ("guided", None)
    assert report["controls"]["plain_sum"] is None
    assert list(report["A_d_by_way"]) == ["arrival"]
    assert run("evaluate", "-m", bundle, "--data", idx_folder) == 0
    assert "control: light model alone" in capsys.readouterr().out
    assert run("export", bundle, tmp_path / "out") == 0
    assert CodedModel.load(tmp_path / "out").scheme == "guided"


@pytest.mark.parametrize(
    ("step", "recipe", "complaint"),
    [
        ("light", TINY_GUIDED, "expected 70 test examples or more for groups of 70 .*, got 60"),
        ("encoder", TINY_RECIPE, "expected 700 train examples or more for groups of 70"),
    ],
)
def test_groups_larger_than_the_data_are_refused_before_anything_is_trained(
    tmp_path: Path,
    idx_folder: Path,
    capsys: pytest.CaptureFixture[str],
    step: str,
    recipe: str,
    complaint: str,
) -> None:
    path, out = tmp_path / "large.toml", tmp_path / "run"
    arguments = ["--recipe", path, "--data", idx_folder, "--out", out]
    path.write_text(recipe)
    assert run("train", "classifier", *arguments) == 0
    path.write_text(recipe.replace("k = 3", "k = 70"))
    assert run("train", step, *arguments) == 2
    said = capsys.readouterr()
    assert re.search(complaint, " ".join(said.err.split()))
    assert not list(out.glob("light*")) + list(out.glob("encoder*"))


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["info", "no-such-model"], 1, "neither a folder nor a bundled name"),
        (["evaluate", "--model", "BUNDLE", "--data", "/nowhere"], 2, "no file or folder /nowhere"),
        (["evaluate", "--model", "BUNDLE", "--task", "age"], 2, "task: expected one of"),
        (["evaluate", "--groupings", "0"], 2, "groupings"),
        (["train", "classifier", "--recipe", "no-such-recipe"], 2, "recipe: expected one of"),
        (["train", "classifier", "--device", "tpu"], 2, "--device: expected 'cpu' or 'cuda'"),
        (["no-such-command"], 2, "No such command"),
    ],
)
def test_an_error_is_one_clean_line(
    arguments: list[str], code: int, complaint: str, small_bundle: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(*(str(small_bundle) if a == "BUNDLE" else a for a in arguments)) == code
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert "Traceback" not in shown.err + shown.out
    assert shown.out == ""


def test_a_traceback_is_shown_to_who_asks_for_it() -> None:
    with pytest.raises(Exception, match="neither a folder"):
        main(["--traceback", "info", "no-such-model"])
