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
    assert (unpacked / "csrc" / "tests" / "decoder_test.cpp").exists()

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
