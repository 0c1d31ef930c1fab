"""The examples of docs/embedding.md, run beside the servers that they are for."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from codedinv.model import CodedModel
from codedinv.triton_repo import write_repository
from codedinv.workers.oip import Endpoint
from tests import triton_servers
from tests.test_docs import ROOT, run_example


def test_the_encoder_alone_in_python() -> None:
    rebuilt, exact, decoded = run_example("encoder_alone.py").splitlines()
    assert float(re.findall(r"[\d.]+", rebuilt)[0]) < 1.0
    assert exact.split()[-1] == decoded.split()[-1] == "8"


def test_the_table_of_tritons_is_what_the_receipt_says() -> None:
    from benchmarks.remote_tritons import table

    receipt = json.loads((ROOT / "benchmarks" / "receipts" / "remote-tritons.json").read_text())
    assert receipt["result"]["met"]
    assert table(receipt["result"]) in (ROOT / "docs" / "embedding.md").read_text()


@pytest.mark.servers
def test_the_encoder_alone_in_cpp(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    headers = Path(os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
    if not (headers / "onnxruntime_c_api.h").exists():
        pytest.skip(f"no onnxruntime_c_api.h in {headers}: set ONNXRUNTIME_INCLUDE to its folder")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (tmp_path / "libonnxruntime.so").symlink_to(library)
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    program = tmp_path / "encoder_alone"
    source = ROOT / "examples" / "encoder_alone.cpp"
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{headers}", f"-L{tmp_path}"]
    subprocess.run(
        [compiler, *flags, str(source), "-lonnxruntime", f"-Wl,-rpath,{tmp_path}", "-o", program],
        check=True,
    )
    model = CodedModel.load("fashion-mnist")
    queries = np.random.default_rng(0).random((model.code.k, *model.input_shape), np.float32)
    numbers = map(str, queries.shape)
    command = [program, f"{model.folder}/encoder.onnx", *numbers]
    ended = subprocess.run(command, input=queries.tobytes(), capture_output=True, check=True)
    got = np.frombuffer(ended.stdout, np.float32).reshape(model.code.r, *model.input_shape)
    np.testing.assert_allclose(got, model.encode(queries[np.newaxis])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.servers
@pytest.mark.timeout(300)
def test_triton_workers(tmp_path: Path) -> None:
    if reason := triton_servers.missing():
        pytest.skip(reason)
    write_repository(CodedModel.load("fashion-mnist"), tmp_path / "repository")
    with triton_servers.running(2, tmp_path / "repository", tmp_path) as tritons:
        shown = run_example("triton_workers.py", tritons[0].grpc, tritons[1].http)
    found = re.match(r"2 workers, (\d+) of 40 right", shown)
    assert found, shown
    assert int(found[1]) >= 34


@pytest.mark.servers
@pytest.mark.timeout(300)
def test_ray_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'codedinv[ray]'")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    shown = run_example("ray_serve.py")
    assert "over HTTP: [1, 10] exact" in shown
    found = re.search(r"from Python: (\d+) of 40 right", shown)
    assert found, shown
    assert int(found[1]) >= 34


# ---- containers; that they build and run is for a machine with a container runtime


def test_the_compose_file_names_what_the_dockerfile_has() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE))
    services = compose["services"]
    for service in services.values():
        if "build" in service:
            assert service["build"]["target"] in targets
            assert (ROOT / "deploy" / service["build"]["context"] / "pyproject.toml").exists()
    settings = yaml.safe_load((ROOT / "deploy" / "compose-server.yaml").read_text())
    (model,) = settings["models"]
    hosts = {re.match(r"grpc://([\w-]+):8001$", endpoint)[1] for endpoint in model["workers"]}  # type: ignore[index]
    assert hosts == {name for name in services if name.startswith("worker")}
    assert len(hosts) == CodedModel.load(model["model"]).code.n


@pytest.mark.servers
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("hadolint", ["deploy/Dockerfile"]),
        ("kubernetes-validate", ["--strict", "deploy/kubernetes.yaml"]),
    ],
)
def test_the_linters_have_nothing_to_say(tool: str, arguments: list[str]) -> None:
    found = shutil.which(tool, path=str(ROOT / ".venv-deploy" / "bin")) or shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed: `make test-servers` does that")
    ended = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_settings_in_deploy_are_settings_of_the_gateway(tmp_path: Path) -> None:
    from codedinv.gateway import load_settings

    manifests = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    texts = [m["data"]["server.yaml"] for m in manifests if m["kind"] == "ConfigMap"]
    texts.append((ROOT / "deploy" / "compose-server.yaml").read_text())
    for text in texts:
        (tmp_path / "server.yaml").write_text(text)
        (model,) = load_settings({}, tmp_path / "server.yaml", {}).models
        assert [str(Endpoint.parse(url)) for url in model.workers] == list(model.workers)


def test_the_kubernetes_manifests_fit_together() -> None:
    manifests = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    by_kind = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    for manifest in manifests:
        assert {"apiVersion", "kind", "metadata"} <= set(manifest)
    for kind, name in (("StatefulSet", "worker"), ("Deployment", "gateway")):
        spec = by_kind[kind, name]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert by_kind["Service", name]["spec"]["selector"].items() <= labels.items()
        (container,) = spec["template"]["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe", "resources"} <= set(container)
    workers = by_kind["StatefulSet", "worker"]["spec"]
    settings = yaml.safe_load(by_kind["ConfigMap", "gateway"]["data"]["server.yaml"])
    expected = [f"grpc://worker-{i}.worker:8001" for i in range(workers["replicas"])]
    assert settings["models"][0]["workers"] == expected
