"""Real Tritons as workers, each serving what `codedinv export triton-repo` wrote."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from codedinv.model import CodedModel
from codedinv.serving import CodedServer
from codedinv.triton_repo import write_repository
from codedinv.workers import BackboneSpec, Died, Dropped, Ready, Result
from codedinv.workers.oip import OipPool
from tests import triton_servers
from tests.serving.helpers import wait_until
from tests.triton_servers import Triton
from tests.workers.conftest import listen

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(triton_servers.missing()), reason=triton_servers.missing()),
]

# Put before the exported model.py: this Python has no ONNX Runtime, as a stock Triton's has none.
_WITHOUT_ONNX_RUNTIME = 'import sys\n\nsys.modules["onnxruntime"] = None\n'


@pytest.fixture(scope="module")
def model(small_bundle: Path) -> CodedModel:
    return CodedModel.load(small_bundle)


@pytest.fixture
def spec(model: CodedModel) -> BackboneSpec:
    shapes = model.input_shape, model.embedding_shape
    return BackboneSpec.of(model.folder or "", *shapes, hashes=model.hashes, name="small")


@pytest.fixture(scope="module", params=["onnxruntime", "numpy"])
def triton(
    request: pytest.FixtureRequest, model: CodedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Triton]:
    """One Triton whose Python has ONNX Runtime, and one whose Python has NumPy only."""
    folder = tmp_path_factory.mktemp("triton")
    written = write_repository(model, folder / "repository")
    if request.param == "numpy":
        program = written / "1" / "model.py"
        first = "import hashlib\n"
        program.write_text(program.read_text().replace(first, _WITHOUT_ONNX_RUNTIME + first))
    with triton_servers.running(1, folder / "repository", folder) as (started,):
        runtime = "ONNX Runtime" if request.param == "onnxruntime" else "NumPy"
        assert f"small: backbone on {runtime}" in started.log.read_text()
        yield started


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_triton_gives_the_embedding(
    triton: Triton, model: CodedModel, spec: BackboneSpec, protocol: str
) -> None:
    pool = OipPool(spec, [getattr(triton, protocol)])
    pool.start(0, 1)
    assert listen(pool, 1) == [Ready(0, 1)]
    queries = np.random.default_rng(0).random((4, *model.input_shape), np.float32)
    for task, query in enumerate(queries):
        pool.send(0, 1, task, "backbone", query)
    results = listen(pool, 4)
    for task, result in enumerate(results):
        assert isinstance(result, Result)
        assert result.task == task
        expected = model.embed(queries[task : task + 1])[0]
        np.testing.assert_allclose(result.embedding, expected, rtol=1e-3, atol=1e-5)
    pool.close(5.0)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_hash_in_the_configuration_is_compared(
    triton: Triton, spec: BackboneSpec, protocol: str
) -> None:
    hashes = {**spec.hashes, "backbone.onnx": "0" * 64}
    folder, shapes = spec.folder, (spec.query_shape, spec.embedding_shape)
    other = BackboneSpec.of(folder, *shapes, hashes=hashes, name="small")
    pool = OipPool(other, [getattr(triton, protocol)])
    pool.start(0, 1)
    (died,) = listen(pool, 1)
    pool.close(5.0)
    assert isinstance(died, Died)
    assert f"codedinv_sha256: expected {'0' * 64}, the server has" in died.reason


def test_triton_does_not_begin_what_was_called_off(triton: Triton, spec: BackboneSpec) -> None:
    pool = OipPool(spec, [triton.grpc], in_flight=8)
    pool.start(0, 1)
    assert listen(pool, 1) == [Ready(0, 1)]
    query = np.zeros(spec.query_shape, np.float32)
    for task in range(8):
        pool.send(0, 1, task, "backbone", query)
    for task in range(1, 8):
        pool.cancel(0, 1, task)
    ends = {m.task: type(m) for m in listen(pool, 8)}
    pool.close(5.0)
    assert ends[0] is Result
    assert set(ends.values()) <= {Result, Dropped}
    assert len(ends) == 8


def test_a_damaged_folder_is_not_served(model: CodedModel, tmp_path: Path) -> None:
    written = write_repository(model, tmp_path / "repository")
    with (written / "1" / "backbone.onnx").open("ab") as file:
        file.write(b"more")
    triton = triton_servers.start(tmp_path / "repository", tmp_path)
    try:
        wait_until(lambda: "backbone.onnx: expected sha256" in triton.log.read_text(), 60)
    finally:
        triton.kill()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_triton_that_is_killed_and_started_again_costs_no_answer(
    model: CodedModel, tmp_path: Path, protocol: str
) -> None:
    write_repository(model, tmp_path / "repository")
    queries = np.random.default_rng(1).random((300, *model.input_shape), np.float32)
    with triton_servers.running(3, tmp_path / "repository", tmp_path) as tritons:
        endpoints = [getattr(t, protocol) for t in tritons]
        with CodedServer(model, workers=endpoints) as server:
            futures = []
            for i, query in enumerate(queries):
                futures.append(server.submit(query, deadline=60.0))
                if i == 100:
                    tritons[0].kill()
                if i == 150:
                    ports = tritons[0].http_port, tritons[0].grpc_port
                    repository = tmp_path / "repository"
                    tritons[0] = triton_servers.start(repository, tmp_path, ports)
                time.sleep(0.01)
            sources = [future.result().source for future in futures]
            assert set(sources) <= {"exact", "reconstructed"}
            assert server.stats().deaths >= 1
            wait_until(lambda: server.stats().workers.count("ready") == 3, 60)


def test_coded_in_front_of_five_tritons_halves_the_p99() -> None:
    """A second of slowness, so that it holds on a busy machine; the benchmark takes 0.1 s."""
    from benchmarks.remote_tritons import compare

    model = CodedModel.load("fashion-mnist")
    result = compare(model, queries=300, rate=20.0, rounds=2, seed=0, slow_s=1.0)
    assert result["coded"]["failed"] == 0
    assert result["p99_ratio"] < 0.5, result


def test_a_reload_brings_out_a_model_that_tritons_have_beside_the_old_one(
    model: CodedModel, tmp_path: Path
) -> None:
    new = CodedModel.load(shutil.copytree(model.folder or "", tmp_path / "bundle"))
    new.name = "newer"
    write_repository(model, tmp_path / "repository")
    write_repository(new, tmp_path / "repository")
    query = np.zeros(model.input_shape, np.float32)
    with (
        triton_servers.running(2, tmp_path / "repository", tmp_path) as tritons,
        CodedServer(model, workers=[t.grpc for t in tritons]) as server,
    ):
        server.predict(query)
        server.reload(new, timeout=60.0)
        assert server.predict(query).source in ("exact", "reconstructed")
        assert server.stats().reloads == 1
