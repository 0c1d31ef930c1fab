"""Devices and their runtimes: what is not there is named before any worker starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codedinv.model.onnx_install import why_no_cuda
from codedinv.serving import CodedServer
from codedinv.workers import BackboneSpec, Died, ProcessPool
from codedinv.workers.devices import choose_devices, choose_runtime_on
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import listen

ROOT = Path(__file__).resolve().parents[2]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")

Driver = Callable[..., None]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Puts a CUDA driver with so many devices in place of this machine's."""
    compiler = shutil.which("cc") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C compiler")

    def install(devices: int, init: int = 0) -> None:
        source = tmp_path / "cuda.c"
        source.write_text(
            f"int cuInit(unsigned flags) {{ return {init}; }}\n"
            f"int cuDeviceGetCount(int *n) {{ *n = {devices}; return 0; }}\n"
        )
        library = str(tmp_path / "libcuda.so.1")
        subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", "-o", library, source], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ("cpu", ("cpu",)),
        (["cpu", "cpu"], ("cpu",)),
        ("cuda", ("cuda:0", "cuda:1")),
        ("cuda:1", ("cuda:1",)),
        (["cuda:1", "cuda:1", "cuda:0"], ("cuda:1", "cuda:1", "cuda:0")),
        (["cuda"], ("cuda:0", "cuda:1")),
    ],
)
def test_devices_by_name(driver: Driver, given: Any, chosen: tuple[str, ...]) -> None:
    driver(2)
    assert choose_devices(given) == chosen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cuda:7", "devices: cuda:7 is not there; there is cuda:0, cuda:1"),
        (["cuda:0", "cuda:2"], "devices: cuda:2 is not there"),
        ("gpu", "devices: expected 'cpu', 'cuda' or 'cuda:0' and so on, got 'gpu'"),
        ("cuda:", "devices: expected 'cpu'"),
        (["cpu", "cuda:0"], "devices: expected the CPU or CUDA devices, got both"),
        ([], "devices: expected at least one"),
        ([0], "devices: expected 'cpu'"),
    ],
)
def test_a_device_that_is_none_or_not_there_is_named(
    driver: Driver, given: Any, message: str
) -> None:
    driver(2)
    with pytest.raises(ValueError, match=message):
        choose_devices(given)


@pytest.mark.parametrize(("devices", "init", "why"), [(0, 100, ""), (1, 999, "error 999")])
def test_a_machine_whose_driver_has_no_device_says_so(
    driver: Driver, devices: int, init: int, why: str
) -> None:
    driver(devices, init)
    with pytest.raises(ValueError, match=f"there are none.*{why}"):
        choose_devices("cuda")


@without_gpu
@pytest.mark.parametrize("devices", ["cuda", "cuda:7", ["cuda:0", "cuda:1"]])
def test_a_server_without_a_card_starts_no_worker(linear: LinearModel, devices: Any) -> None:
    with pytest.raises(ValueError, match=r"devices: expected CUDA devices, got .*there are none"):
        CodedServer(linear, devices=devices)


@without_gpu
def test_runtimes_without_cuda_say_what_to_install(driver: Driver, linear: LinearModel) -> None:
    driver(1)
    with pytest.raises(ValueError, match=r"built without CUDA; .*codedinv\[onnx-gpu\]"):
        CodedServer(linear, devices="cuda")
    with pytest.raises(ValueError, match=r"'onnx' does not run on CUDA devices here; onnxruntime"):
        choose_runtime_on(("cuda:0",), "onnx")
    with pytest.raises(ValueError, match=r"'torch' does not run on CUDA devices here; torch 2"):
        choose_runtime_on(("cuda:0",), "torch")
    with pytest.raises(ValueError, match="runtime: expected 'auto', 'onnx' or 'torch'"):
        choose_runtime_on(("cuda:0",), "tensorrt")  # type: ignore[arg-type]
    assert choose_runtime_on(("cpu",), "auto") == "onnx"


@without_gpu
def test_each_worker_has_its_device_in_turn_and_never_falls_back_to_the_cpu(
    spec: BackboneSpec,
) -> None:
    """ONNX Runtime itself would go on without CUDA, and warn."""
    pool = ProcessPool(spec, 3, devices=["cuda:0", "cuda:1"])
    for worker in range(3):
        pool.start(worker, 1)
    reasons = {m.worker: m.reason for m in listen(pool, 3) if isinstance(m, Died)}
    pool.close(5.0)
    for worker, device in enumerate(["cuda:0", "cuda:1", "cuda:0"]):
        assert f"ONNX Runtime found no way to {device}" in reasons[worker]


@without_gpu
def test_the_demo_on_a_card_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codedinv", "demo", "--devices", "cuda", "--queries", "50"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("codedinv: devices: expected CUDA devices, got ['cuda']")
    assert len(done.stderr.splitlines()) == 1


# ---- two packages with the same files


def pretend_installed(folder: Path, name: str, version: str) -> None:
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@without_gpu
def test_files_of_the_cpus_package_over_the_gpus_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_installed(tmp_path, "onnxruntime-gpu", "1.31.1")
    monkeypatch.syspath_prepend(tmp_path)
    why = why_no_cuda()
    assert "the files of onnxruntime (CPU) lie over those of onnxruntime-gpu" in why
    assert "pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1" in why


def test_mixed_files_that_cannot_be_imported_are_named(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("from onnxruntime.capi import nothing\n")
    for name in ("onnxruntime", "onnxruntime-gpu"):
        pretend_installed(tmp_path, name, "1.31.1")
    done = subprocess.run(
        [sys.executable, "-m", "codedinv", "evaluate", "-m", "fashion-mnist"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "its files are of two packages: pip install --force-reinstall" in done.stderr
