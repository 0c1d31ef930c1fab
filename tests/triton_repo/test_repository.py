"""Folders for Triton: what is in them, and that NumPy computes what ONNX Runtime does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from codedinv.cli.app import main
from codedinv.errors import BundleError
from codedinv.model import CodedModel, bundled_names
from codedinv.triton_repo import write_repository
from codedinv.triton_repo.numpy_graph import NumpyGraph
from codedinv.triton_repo.repository import to_numpy
from codedinv.workers.integrity import content_hash
from tests.serving.linear_model import LinearModel


@pytest.fixture
def small(small_bundle: Path) -> CodedModel:
    return CodedModel.load(small_bundle)


def parameters_of(config: str) -> dict[str, str]:
    return dict(re.findall(r'key: "(\w+)" value { string_value: "([^"]*)" }', config))


def test_numpy_computes_what_onnx_runtime_does(small: CodedModel, tmp_path: Path) -> None:
    folder = write_repository(small, tmp_path)
    queries = np.random.default_rng(0).random((3, *small.input_shape), np.float32)
    graph = NumpyGraph(str(folder / "1" / "backbone.npz"))
    np.testing.assert_allclose(graph(queries), small.embed(queries), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", bundled_names())
def test_numpy_runs_every_bundled_backbone(name: str, tmp_path: Path) -> None:
    model = CodedModel.load(name)
    graph = NumpyGraph(str(write_repository(model, tmp_path) / "1" / "backbone.npz"))
    queries = model.anchors.queries[:2]
    expected = model.embed(queries)
    assert np.abs(graph(queries) - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_configuration_says_what_is_served(small: CodedModel, tmp_path: Path) -> None:
    folder = write_repository(small, tmp_path, name="other", version=3, threads=2)
    config = (folder / "config.pbtxt").read_text()
    assert folder == tmp_path / "other"
    assert 'name: "other"' in config
    assert "dims: [1, 28, 28]" in config
    assert f"dims: {list(small.embedding_shape)}" in config
    assert small.hashes is not None
    parameters = parameters_of(config)
    assert parameters["codedinv_sha256"] == small.hashes["backbone.onnx"]
    assert parameters["threads"] == "2"
    assert {p.name for p in (folder / "3").iterdir()} == {
        "backbone.npz", "backbone.onnx", "model.py", "numpy_graph.py",
    }  # fmt: skip


def test_tritons_own_onnx_backend_needs_the_network_alone(
    small: CodedModel, tmp_path: Path
) -> None:
    folder = write_repository(small, tmp_path, backend="onnxruntime", threads=2)
    config = (folder / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert 'default_model_filename: "backbone.onnx"' in config
    assert parameters_of(config)["intra_op_thread_count"] == "2"
    assert [p.name for p in (folder / "1").iterdir()] == ["backbone.onnx"]


def test_a_version_is_replaced_and_others_stay(small: CodedModel, tmp_path: Path) -> None:
    folder = write_repository(small, tmp_path)
    write_repository(small, tmp_path, version=2)
    (folder / "1" / "old").touch()
    write_repository(small, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "config.pbtxt"]
    assert not (folder / "1" / "old").exists()


def test_an_operator_that_numpy_does_not_know_is_named() -> None:
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])
        for name in ("query", "embedding")
    ]
    node = helper.make_node("Sinh", ["query"], ["embedding"])
    graph = helper.make_graph([node], "backbone", tensors[:1], tensors[1:])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(BundleError, match="operator Sinh is none of"):
        to_numpy(content.SerializeToString())


def test_a_network_of_matrix_products(linear_file: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.npz").write_bytes(to_numpy(linear_file))
    model = LinearModel()
    queries = model.queries(3)
    got = NumpyGraph(str(tmp_path / "f.npz"))(queries)
    np.testing.assert_allclose(got, model.embed(queries), atol=1e-5)


@pytest.fixture
def linear_file(tmp_path: Path) -> bytes:
    folder = tmp_path / "linear"
    LinearModel().save(folder)
    return onnx.load(str(folder / "backbone.onnx")).SerializeToString()


def test_weights_in_another_file_are_taken_in(small: CodedModel, tmp_path: Path) -> None:
    """The hash that a front end asks the server for is that of both files."""
    full = CodedModel.load(small.folder or "", runtime="torch")
    shared = CodedModel.load(full.save(tmp_path / "shared", True))
    folder = write_repository(shared, tmp_path / "repository", backend="onnxruntime")
    (name,) = (path.name for path in (folder / "1").iterdir())
    session = onnxruntime.InferenceSession((folder / "1" / name).read_bytes())
    queries = small.anchors.queries[:2]
    (got,) = session.run(None, {"query": queries})
    np.testing.assert_allclose(got, small.embed(queries), rtol=1e-3, atol=1e-5)
    assert shared.folder is not None
    assert shared.hashes is not None
    stated = parameters_of((folder / "config.pbtxt").read_text())["codedinv_sha256"]
    assert stated == content_hash(shared.folder, shared.hashes)
    assert stated != shared.hashes["backbone.onnx"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "a/b"}, "name: expected letters"),
        ({"version": 0}, "version: expected 1 or more"),
        ({"threads": 0}, "threads: expected 1 or more"),
        ({"backend": "tensorrt"}, "expected 'python' or 'onnxruntime', got 'tensorrt'"),
    ],
)
def test_what_triton_does_not_take_is_refused(
    small: CodedModel, tmp_path: Path, options: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        write_repository(small, tmp_path, **options)  # type: ignore[arg-type]


def test_the_command_line(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", "triton-repo", str(small_bundle), str(tmp_path), "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["folder"] == str(tmp_path / "small")
    assert "1/model.py" in said["files"]
