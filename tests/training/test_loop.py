"""The loop that every training shares: resume, checkpoints, Ctrl-C, and what a run is of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from codedinv.training import loop
from codedinv.training.checkpoint import CheckpointError
from codedinv.training.descent import Descent
from codedinv.training.identity import differences, module_print, tensor_print
from codedinv.training.loop import Training, train
from codedinv.training.threads import use_threads

QUIET = Console(quiet=True)


def line_fit(steps: int = 12, **identity: Any) -> tuple[Training, nn.Linear]:
    """A training of two numbers, each step on a random draw: resumed or not, it ends the same."""
    torch.manual_seed(0)
    line = nn.Linear(1, 1)
    descent = Descent.one_cycle(line.parameters(), steps, 0.1)

    def step(number: int) -> Mapping[str, Tensor]:
        x = torch.rand(8, 1)
        loss = (line(x) - 3 * x - 1).square().mean()
        descent.step(loss)
        return {"loss": loss}

    return Training(
        name="line",
        title="a line",
        steps=steps,
        step=step,
        evaluate=lambda: {"slope": float(line.weight.detach())},
        evaluate_every=5,
        modules={"line": line},
        optimizers=[descent.optimizer],
        schedulers=[descent.schedule],
        identity={"steps": steps, **identity},
    ), line


def stop_after(training: Training, steps: int) -> Training:
    """The same training, which raises once that many steps are done, as a crash would."""

    def step(number: int) -> Mapping[str, Tensor]:
        if number == steps:
            raise RuntimeError("power cut")
        return training.step(number)

    return Training(**{**vars(training), "step": step})


def test_a_run_leaves_its_history_and_evaluates_at_the_end_too(tmp_path: Path) -> None:
    state = train(line_fit()[0], tmp_path, console=QUIET)
    assert [row["step"] for row in state.history] == [5, 10, 12]
    assert all({"loss", "slope"} <= set(row) for row in state.history)
    assert (tmp_path / "line.curves.png").stat().st_size > 1000


def test_short_steps_print_no_line_each_but_all_are_in_the_history(tmp_path: Path) -> None:
    often = Training(**{**vars(line_fit(40)[0]), "evaluate_every": 1})
    said = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    state = train(often, tmp_path, console=said)
    assert len(state.history) == 40
    lines = said.export_text().splitlines()
    assert len(lines) <= 3
    assert lines[-1].startswith("a line 40/40")


@pytest.mark.parametrize("crash_at", [1, 5, 7, 11])
def test_a_run_that_crashed_anywhere_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    whole, line = line_fit()
    train(whole, tmp_path / "whole", console=QUIET)
    with pytest.raises(RuntimeError, match="power cut"):
        train(stop_after(line_fit()[0], crash_at), tmp_path / "broken", console=QUIET)
    resumed, again = line_fit()
    state = train(resumed, tmp_path / "broken", console=QUIET)
    torch.testing.assert_close(again.weight, line.weight)
    assert [row["step"] for row in state.history] == [5, 10, 12], "no evaluation is lost or twice"


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    train(line_fit()[0], tmp_path, console=QUIET)
    state = train(stop_after(line_fit()[0], 0), tmp_path, console=QUIET)
    assert state.step == 12


def test_a_changed_recipe_or_data_set_is_refused_with_what_changed(tmp_path: Path) -> None:
    train(line_fit(data="3 floats", encoder={"k": 2})[0], tmp_path, console=QUIET)
    changed = line_fit(data="4 floats", encoder={"k": 4})[0]
    with pytest.raises(
        ValueError, match=r'data was "3 floats", is "4 floats"; encoder.k was 2, is 4; .*--fresh'
    ):
        train(changed, tmp_path, console=QUIET)
    train(changed, tmp_path, resume=False, console=QUIET)


def test_a_truncated_checkpoint_gives_way_to_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(RuntimeError, match="power cut"):
        train(stop_after(line_fit()[0], 8), tmp_path, console=QUIET)
    path = tmp_path / "line.checkpoint"
    path.write_bytes(path.read_bytes()[:-100])
    said = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    assert train(line_fit()[0], tmp_path, console=said).step == 12
    text = said.export_text()
    assert "line.checkpoint is damaged" in text
    assert "resumed at step 7 of 12" in text


def test_a_damaged_checkpoint_without_another_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "line.checkpoint").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"line.checkpoint is damaged .*start anew: --fresh"):
        train(line_fit()[0], tmp_path, console=QUIET)
    assert train(line_fit()[0], tmp_path, resume=False, console=QUIET).step == 12


def test_a_kill_between_the_renames_of_a_save_loses_one_save_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    with pytest.raises(RuntimeError, match="power cut"):
        train(stop_after(line_fit()[0], 8), tmp_path, console=QUIET)
    path = tmp_path / "line.checkpoint"
    path.rename(tmp_path / "line.checkpoint.previous")
    said = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    train(line_fit()[0], tmp_path, console=said)
    assert "resumed at step 8 of 12" in said.export_text()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a shell's foreground: what runs in its background is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_finishes_the_step_saves_and_stops(tmp_path: Path) -> None:
    training, _ = line_fit(steps=50)

    def step(number: int) -> Mapping[str, Tensor]:
        if number == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return training.step(number)

    with pytest.raises(KeyboardInterrupt):
        train(Training(**{**vars(training), "step": step}), tmp_path, console=QUIET)
    said = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    train(line_fit(steps=50)[0], tmp_path, console=said)
    assert "resumed at step 21 of 50" in said.export_text()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_long_evaluation_is_saved_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_BEFORE_EVALUATION_S", 0.0)
    training, _ = line_fit()

    def evaluate() -> Mapping[str, float]:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(Training(**{**vars(training), "evaluate": evaluate}), tmp_path, console=QUIET)
    said = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    train(line_fit()[0], tmp_path, console=said)
    assert "resumed at step 5 of 12" in said.export_text()


def test_differences_name_the_key_and_both_values() -> None:
    old = {"a": {"b": 1, "c": (1, 2)}, "gone": True}
    new = {"a": {"b": 2, "c": [1, 2]}, "come": "x" * 100}
    assert differences(old, new) == [
        "a.b was 1, is 2",
        f'come was absent, is "{"x" * 56}...',
        "gone was true, is absent",
    ]
    assert differences(old, old) == []


def test_prints_tell_tensors_and_weights_apart() -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert tensor_print(x).startswith("2x3 float32 ")
    assert tensor_print(x) == tensor_print(x.clone())
    assert tensor_print(x) != tensor_print(x + 1e-6)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert module_print(one) != module_print(other)
    other.load_state_dict(one.state_dict())
    assert module_print(one) == module_print(other)


def test_threads_are_the_idle_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        monkeypatch.setattr(os, "getloadavg", lambda: (5.2, 0.0, 0.0))
        monkeypatch.setattr("codedinv.training.threads._QUOTA", Path("/no/such/file"))
        assert use_threads(None) == 3 == torch.get_num_threads()
        monkeypatch.setattr(os, "getloadavg", lambda: (50.0, 0.0, 0.0))
        assert use_threads(None) == 1, "a busy machine has one to spare, never none"
        assert use_threads(2) == 2
        with pytest.raises(ValueError, match="--threads: expected at least 1, got 0"):
            use_threads(0)
    finally:
        torch.set_num_threads(before)


def test_threads_respect_omp_and_a_containers_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
        monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
        (tmp_path / "cpu.max").write_text("200000 100000\n")
        monkeypatch.setattr("codedinv.training.threads._QUOTA", tmp_path / "cpu.max")
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert use_threads(None) == 2
        torch.set_num_threads(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert use_threads(None) == 1
    finally:
        torch.set_num_threads(before)


def test_ctrl_c_at_the_command_line_says_how_to_go_on(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path; import time\n"
        "from tests.training.test_loop import line_fit\n"
        "from codedinv.training.loop import Training, train\n"
        "t, _ = line_fit(steps=100000)\n"
        "def slow(n):\n    time.sleep(0.01); print('step', n, flush=True); return t.step(n)\n"
        "train(Training(**{**vars(t), 'step': slow}), Path(sys.argv[1]))\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.stdout is not None
    while "step 3" not in run.stdout.readline():
        assert run.poll() is None
    time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert "saved; the same command goes on" in run.stdout.read()
    assert run.wait(60) != 0
    assert (tmp_path / "line.checkpoint").is_file()
