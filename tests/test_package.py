"""The package as it is installed and shipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import codedinv

ROOT = Path(__file__).resolve().parents[1]


def run(program: str) -> str:
    """Standard output of `program` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_codedinv_imports_nothing_heavy() -> None:
    program = (
        "import json, sys, codedinv; print(json.dumps(sorted(m for m in sys.modules if "
        "m.partition('.')[0] in ('torch', 'numpy', 'onnx', 'onnxruntime', 'rich', 'pydantic'))))"
    )
    assert json.loads(run(program)) == []


def test_a_decoder_needs_no_torch() -> None:
    program = (
        "import sys, numpy as np; from codedinv import Code, StreamingDecoder\n"
        "decoder = StreamingDecoder(Code.uniform(2), 3, 'bfloat16'); print('torch' in sys.modules)"
    )
    assert run(program).strip() == "False"


def test_every_public_name_is_there() -> None:
    for name in codedinv.__all__:
        assert getattr(codedinv, name).__name__ == name
    assert set(codedinv.__all__) <= set(dir(codedinv))
    with pytest.raises(AttributeError, match="module 'codedinv' has no attribute 'Decoder'"):
        _ = codedinv.Decoder


def test_the_module_runs_as_the_command() -> None:
    for command in (["-m", "codedinv"], ["-c", "from codedinv.cli import main; main()"]):
        done = subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True
        )
        assert "demo" in done.stdout


def test_constraints_pin_every_package_that_the_environment_was_made_of() -> None:
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all("==" in line and "+" not in line for line in pins)
    names = [line.partition("==")[0].lower().replace("_", "-") for line in pins]
    assert len(set(names)) == len(names)
    assert "torch==2.13.0" in pins


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_source_distribution_builds_a_wheel_that_holds_everything(tmp_path: Path) -> None:
    build = "from setuptools import build_meta; print(build_meta.{}({!r}))"
    # A copy of what git knows, as a newcomer has it: nothing left over from other builds.
    archive = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    tree = tmp_path / "tree"
    for name in filter(None, archive.split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())

    def backend(hook: str, cwd: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", build.format(hook, str(tmp_path))],
            cwd=cwd,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    sdist = tmp_path / backend("build_sdist", tree)
    with tarfile.open(sdist) as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    for path in ("csrc/tests/decoder_test.cpp", "tests/conftest.py", "benchmarks/suite.py"):
        assert (unpacked / path).exists(), path

    with zipfile.ZipFile(tmp_path / backend("build_wheel", unpacked)) as wheel:
        shipped = set(wheel.namelist())
    assert any(n.startswith("codedinv/coding/_decoder.") and n.endswith(".so") for n in shipped)
    wanted = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("codedinv/**/*.py", "codedinv/**/*.toml", "codedinv/bundles/**/*")
        for path in ROOT.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted |= {f"codedinv/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("kernels/**/*.py")}
    wanted |= {"codedinv/py.typed", "codedinv/coding/_decoder.pyi"}
    assert sorted(wanted - shipped) == []


_WITHOUT = """
import importlib.util, sys
find_spec = importlib.util.find_spec

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
importlib.util.find_spec = lambda name, package=None: (
    None if name in ("torch", "onnx", "triton") else find_spec(name, package)
)
"""


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    """An environment whose interpreters, workers too, find no torch, onnx or triton."""
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}


def test_a_server_of_processes_answers_where_torch_is_not_installed(
    without_torch: dict[str, str],
) -> None:
    program = (
        "from codedinv import CodedServer\n"
        "from codedinv.data import load_test_images, to_queries\n"
        "with CodedServer('fashion-mnist') as server:\n"
        "    answers = server.predict(to_queries(load_test_images()[0][:20]))\n"
        "print(len(answers), {answer.source for answer in answers} <= {'exact', 'reconstructed'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, env=without_torch, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["20", "True"], done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["export", "fashion-mnist", "out"], ["train", "light", "--recipe", "x", "--out", "y"]],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_torch_says_in_one_line_what_to_install(
    without_torch: dict[str, str], arguments: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codedinv", *arguments],
        capture_output=True, text=True, env=without_torch, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "codedinv: this needs torch, which is not installed: pip install 'codedinv[train]'\n"
    )


@pytest.mark.servers  # installs from the network
@pytest.mark.timeout(900)
def test_the_demo_runs_in_a_clean_environment_under_400_mb(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, cwd=tmp_path,
            env={name: v for name, v in os.environ.items() if name != "PYTHONPATH"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    run(sys.executable, "-m", "venv", "clean")
    python = tmp_path / "clean" / "bin" / "python"
    run(python, "-m", "pip", "install", "-c", ROOT / "constraints.txt", ROOT)
    size = sum(p.lstat().st_size for p in (tmp_path / "clean").rglob("*"))
    assert size < 400e6, f"{size / 1e6:.0f} MB"
    found = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'onnx')])"
    assert run(python, "-c", found).strip() == "[None, None]"
    run(python, "-m", "codedinv", "demo", "--queries", "200", "--rate", "40")
    assert (tmp_path / "demo" / "latency.png").exists()
