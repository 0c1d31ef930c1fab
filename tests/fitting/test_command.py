"""`codedinv fit` as a newcomer types it, killed and begun again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from codedinv.cli import main
from codedinv.cli.fit import build, load_weights
from codedinv.model import CodedModel

MODEL = """
from torch import nn

def build():
    backbone = nn.Sequential(
        nn.Linear(49, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32)
    )
    return backbone, {"label": nn.Sequential(nn.ReLU(), nn.Linear(32, 10))}

def whole():
    backbone, heads = build()
    return nn.Sequential(backbone, heads["label"])

def wrong():
    return 3
"""


@pytest.fixture
def project(tmp_path: Path, tabular: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: models.py, data.npz and trained weights."""
    (tmp_path / "mine_models.py").write_text(MODEL)
    np.savez(
        tmp_path / "data.npz", x_train=tabular.train[0], y_train=tabular.train[1],
        x_test=tabular.test[0], y_test=tabular.test[1],
    )  # fmt: skip
    state = {f"backbone.{k}": v for k, v in tabular.backbone.state_dict().items()}
    state |= {f"heads.label.{k}": v for k, v in tabular.heads["label"].state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("mine_models", None)
    return tmp_path


def run(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


FIT = (
    "fit", "mine_models:build", "--data", "data.npz", "--weights", "weights.safetensors",
    "--out", "runs/mine", "--threads", "1", "--light-epochs", "4",
)  # fmt: skip


@pytest.mark.timeout(300)
def test_one_command_from_a_model_to_a_bundle(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*FIT, "--k", "2,4", "--budget", "10%", "--encoder-steps", "20") == 0
    said = capsys.readouterr().out
    assert "no redundancy, fall back" in said
    assert "Do not code" in said or "Serve " in said
    assert (project / "runs" / "mine" / "bundle" / "bundle.json").is_file()
    assert run(*FIT, "--k", "2,4", "--encoder-steps", "20", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "mine"
    assert {one["k"] for one in report["candidates"]} == {1, 2, 4}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["uncoded", "replication", "guided", "invertible"])
def test_what_a_fit_leaves_is_evaluated_on_its_data_from_any_folder(
    project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scheme: str,
) -> None:
    assert run(*FIT, "--k", "2", "--encoder-steps", "2", "--scheme", scheme) == 0
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    said = capsys.readouterr().out
    served = CodedModel.load(project / "runs/mine/bundle").default_scheme
    assert ("a server takes it for guided" in said) is (served != scheme)
    bundle = str(project / "runs/mine/bundle")
    assert run("evaluate", "-m", bundle, "--json") == 0, capsys.readouterr().err
    report = json.loads(capsys.readouterr().out)
    stated = json.loads((project / "runs/mine/report.json").read_text())
    best = next(one for one in stated["candidates"] if one["title"] == stated["best"])
    assert report["A_n"] == pytest.approx(best["A_n"]["mean"])
    if scheme != "invertible":  # of which another grouping may be the best
        assert report["A_d"] == pytest.approx(best["A_d"]["mean"])
    assert run("evaluate", "-m", bundle) == 0
    assert "normal accuracy A_n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({1: "mine_models"}, "MODEL: expected package.module:callable or an ONNX file"),
        ({1: "no_such_module:build"}, "MODEL: there is no module 'no_such_module' here"),
        ({1: "mine_models:biuld"}, "has no callable 'biuld'; it has build, whole, wrong"),
        ({1: "mine_models:wrong"}, "returned int; expected (backbone, heads)"),
        ({1: "no.onnx"}, "--weights: an ONNX file has its weights with it"),
        ({3: "nowhere"}, "--data: no file or folder nowhere"),
        ({5: "data.npz"}, "--weights: data.npz holds no state_dict"),
        ({5: "missing.pt"}, "--weights: no file missing.pt"),
        ({7: "runs/my model"}, "name: expected"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line_that_names_it(
    project: Path, capsys: pytest.CaptureFixture[str], changes: dict[int, str], complaint: str
) -> None:
    arguments = [changes.get(i, argument) for i, argument in enumerate(FIT)]
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("option", "value"), [("--k", "2,x"), ("--budget", "ten")])
def test_numbers_that_are_none_are_named(
    project: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert run(*FIT, option, value) == 2
    assert f"{option}: expected" in capsys.readouterr().err


def test_weights_fill_the_model_from_either_format(project: Path, tabular: Any) -> None:
    for file in ("weights.safetensors", "weights.pt"):
        backbone, heads = build("mine_models:build")
        load_weights(backbone, heads, Path(file))
        torch.testing.assert_close(dict(backbone.state_dict()), dict(tabular.backbone.state_dict()))
    whole, heads = build("mine_models:whole")
    with pytest.raises(ValueError, match=r"does not fit the model: .*Missing key"):
        load_weights(whole, heads, Path("weights.pt"))
    torch.save(whole.state_dict(), "whole.pt")
    load_weights(whole, heads, Path("whole.pt"))
    assert list(heads) == ["label"], "its outputs are the classes"


@pytest.mark.timeout(300)
def test_a_fit_killed_at_a_random_moment_goes_on_from_its_checkpoint(project: Path) -> None:
    program = (
        "import sys; import codedinv.training.loop as loop; loop.CHECKPOINT_EVERY_S = 0.2\n"
        "from codedinv.cli import main; main(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", program, *FIT, "--k", "2", "--encoder-steps", "1200"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    checkpoint = project / "runs/mine/work/encoder-k2/encoder.checkpoint"
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not checkpoint.exists():
        assert first.poll() is None
        assert time.monotonic() < limit, "no checkpoint was written while the fit went on"
        time.sleep(0.01)
    time.sleep(float(np.random.default_rng().random()) * 0.3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    again = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "encoder, k = 2 (2 of 2): resumed at step" in again.stdout
    assert (project / "runs/mine/bundle/bundle.json").is_file()
    refused = subprocess.run(
        [*command, "--budget", "20%"], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "budget was 0.1, is 0.2" in refused.stderr


@pytest.mark.timeout(300)
def test_a_model_that_is_trained_here_goes_on_when_the_command_is_given_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`build` draws its first weights anew in each process."""
    untrained = [one for one in FIT if one not in ("--weights", "weights.safetensors")]
    command = (*untrained, "--epochs", "6", "--k", "2", "--encoder-steps", "2")
    torch.manual_seed(1)
    assert run(*command) == 0
    first = capsys.readouterr().out
    torch.manual_seed(2)
    assert run(*command) == 0, capsys.readouterr().err
    assert "the model itself" in first
    assert "loss" not in capsys.readouterr().out, "all of it is taken from the checkpoints"
