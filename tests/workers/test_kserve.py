"""A real KServe model server as a worker: examples/kserve_worker.py, in its own environment."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from codedinv.model import CodedModel
from codedinv.workers import BackboneSpec, Died, Ready, Result
from codedinv.workers.oip import OipPool
from tests.workers.conftest import listen

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("KSERVE_VENV", ROOT / ".venv-kserve")) / "bin" / "python"

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(200),
    pytest.mark.skipif(
        not PYTHON.exists(),
        reason=f"KServe is not installed ({PYTHON} is missing): `make test-servers` does that",
    ),
]


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> CodedModel:
    return CodedModel.load(small_bundle)


@pytest.fixture(scope="module")
def ports(model: CodedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Of a KServe server with the small model."""
    found = {"http": free_port(), "grpc": free_port()}
    command = [
        str(PYTHON), str(ROOT / "examples" / "kserve_worker.py"), "--model_name", "small",
        "--backbone", f"{model.folder}/backbone.onnx",
        "--http_port", str(found["http"]), "--grpc_port", str(found["grpc"]),
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("kserve") / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        until = time.monotonic() + 90
        while not is_ready(found["http"]):
            is_lost = server.poll() is not None or time.monotonic() > until
            assert not is_lost, log.read_text()[-3000:]
            time.sleep(0.2)
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_kserve_model_is_a_worker(ports: dict[str, int], model: CodedModel, scheme: str) -> None:
    pool = pool_of(model, f"{scheme}://127.0.0.1:{ports[scheme]}")
    assert listen(pool, 1) == [Ready(0, 1)]
    queries = np.random.default_rng(0).random((3, *model.input_shape), np.float32)
    for task, query in enumerate(queries):
        pool.send(0, 1, task, "backbone", query)
    for result in listen(pool, 3):
        assert isinstance(result, Result)
        expected = model.embed(queries[result.task : result.task + 1])[0]
        np.testing.assert_allclose(result.embedding, expected, rtol=1e-3, atol=1e-5)
    pool.close(5.0)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_model_that_kserve_does_not_have(
    ports: dict[str, int], model: CodedModel, scheme: str
) -> None:
    pool = pool_of(model, f"{scheme}://127.0.0.1:{ports[scheme]}/nobody")
    (died,) = listen(pool, 1)
    pool.close(5.0)
    assert isinstance(died, Died)
    assert "nobody" in died.reason


def pool_of(model: CodedModel, endpoint: str) -> OipPool:
    shapes = model.input_shape, model.embedding_shape
    spec = BackboneSpec.of(model.folder or "", *shapes, hashes=model.hashes, name="small")
    pool = OipPool(spec, [endpoint])
    pool.start(0, 1)
    return pool


def is_ready(port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{port}/v2/models/small/ready"
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
