"""A worker runs the files that its spec was made of, or does not run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codedinv.coding import Code
from codedinv.errors import BundleError
from codedinv.model import CodedModel
from codedinv.workers import BackboneSpec, Died, Message, ProcessPool, Ready
from codedinv.workers.integrity import files_read, sha256, verified
from tests.conftest import build_small_model
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import spec_of

Listen = Callable[..., list[Message]]


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A (5, 4) bundle that may be changed."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def shared_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ONNX files refer to weights.safetensors."""
    folder = tmp_path_factory.mktemp("shared") / "bundle"
    return build_small_model(Code.uniform(4)).save(folder, shared_weights=True)


def spec_for(folder: Path, runtime: str = "onnx") -> BackboneSpec:
    model = CodedModel.load(folder)
    shapes = model.input_shape, model.embedding_shape
    return BackboneSpec.of(folder, *shapes, runtime=runtime)  # type: ignore[arg-type]


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_worker_of_a_replaced_bundle_does_not_start(
    linear: LinearModel, other: LinearModel, tmp_path: Path, listen: Listen
) -> None:
    assert linear.folder is not None
    assert other.folder is not None
    folder = shutil.copytree(linear.folder, tmp_path / "bundle")
    spec = BackboneSpec.of(folder, linear.input_shape, linear.embedding_shape)
    pool = ProcessPool(spec, 2)
    pool.start(0, 1)
    assert listen(pool, 1) == [Ready(0, 1)]
    shutil.rmtree(folder)
    shutil.copytree(other.folder, folder)
    pool.start(1, 1)
    (died,) = listen(pool, 1)
    pool.close(5.0)
    assert isinstance(died, Died)
    old, new = (sha256(model.folder / "backbone.onnx") for model in (linear, other))  # type: ignore[operator]
    assert f"backbone.onnx: expected sha256 {old}, got {new}" in died.reason
    assert "the bundle was replaced while it was served" in died.reason


def test_onnx_reads_the_graph_alone_or_also_the_weights_that_it_refers_to(
    small_bundle: Path, shared_bundle: Path
) -> None:
    assert list(files_read(small_bundle, "onnx")) == ["backbone.onnx"]
    assert list(files_read(shared_bundle, "onnx")) == ["backbone.onnx", "weights.safetensors"]


def test_torch_reads_every_file_of_a_bundle(small_bundle: Path) -> None:
    names = list(files_read(small_bundle, "torch"))
    assert names[0] == "bundle.json"
    assert sorted(names) == sorted(path.name for path in small_bundle.iterdir())


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_change_of_any_file_that_is_read_is_found_and_named(bundle: Path, runtime: str) -> None:
    spec = spec_for(bundle, runtime)
    spec.load()
    for name in list(files_read(bundle, spec.runtime)):  # type: ignore[arg-type]
        original = (bundle / name).read_bytes()
        change_one_byte(bundle / name)
        with pytest.raises(BundleError, match=f"{name}: expected sha256 [0-9a-f]{{64}}, got "):
            spec.load()
        (bundle / name).unlink()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            spec.load()
        (bundle / name).write_bytes(original)
    spec.load()


def test_a_change_of_shared_weights_is_found_and_named(shared_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shared_bundle, tmp_path / "bundle"))
    spec = spec_for(folder)
    x = np.random.default_rng(0).random((2, *spec.query_shape), np.float32)
    expected = CodedModel.load(shared_bundle).embed(x)
    np.testing.assert_allclose(spec.load()(x), expected, atol=1e-5)
    change_one_byte(folder / "weights.safetensors")
    with pytest.raises(BundleError, match=r"weights.safetensors: expected sha256"):
        spec.load()


def test_a_file_without_a_hash_is_not_read(shared_bundle: Path) -> None:
    spec = spec_for(shared_bundle)
    hashes = {"backbone.onnx": spec.hashes["backbone.onnx"]}
    with pytest.raises(BundleError, match=r"weights.safetensors: expected sha256 none"):
        replace(spec, hashes=hashes).load()


def test_a_bundle_replaced_before_its_first_worker_starts_is_found(bundle: Path) -> None:
    model = CodedModel.load(bundle)
    assert model.hashes is not None
    shutil.rmtree(bundle)
    build_small_model(Code.uniform(2)).save(bundle)
    for runtime in ("onnx", "torch"):
        spec = BackboneSpec.of(
            bundle,
            model.input_shape,
            model.embedding_shape,
            runtime=runtime,  # type: ignore[arg-type]
            hashes=model.hashes,
        )
        with pytest.raises(BundleError, match="the bundle was replaced while it was served"):
            spec.load()


def test_a_replacement_in_the_middle_of_loading_is_found(bundle: Path, tmp_path: Path) -> None:
    hashes = spec_for(bundle).hashes
    copy = Path(shutil.copytree(bundle, tmp_path / "new"))
    for replacement in (copy / "backbone.onnx", None):
        with (  # noqa: PT012
            pytest.raises(BundleError, match=r"backbone.onnx: replaced while it was loaded"),
            verified(bundle, "onnx", hashes),
        ):
            if replacement is not None:
                replacement.rename(bundle / "backbone.onnx")
            else:
                (bundle / "backbone.onnx").unlink()


def test_a_missing_bundle_has_no_spec(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"backbone.onnx is missing"):
        BackboneSpec.of(tmp_path, (1,), (1,), runtime="onnx")
    with pytest.raises(BundleError, match=r"bundle.json is missing"):
        BackboneSpec.of(tmp_path, (1,), (1,), runtime="torch")


def test_a_spec_travels_as_text(linear: LinearModel) -> None:
    spec = spec_of(linear)
    assert BackboneSpec.from_json(spec.to_json()) == spec
    assert linear.folder is not None
    content = (linear.folder / "backbone.onnx").read_bytes()
    assert spec.hashes == {"backbone.onnx": hashlib.sha256(content).hexdigest()}
