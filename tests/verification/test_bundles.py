"""The check as part of a bundle, and the shipped bundles' own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from codedinv import data
from codedinv.bundle import CodedModel, bundled_names
from codedinv.bundle_folder import CONSISTENCY, add_files, file_sizes
from codedinv.coding import Code
from codedinv.errors import BundleError
from codedinv.verification.calibrate import calibrate, syndromes
from codedinv.verification.store import save_consistency


@pytest.fixture(scope="module")
def calibrated(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a calibration on noise; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("calibrated") / "small"
    shutil.copytree(small_bundle, folder)
    queries = np.random.default_rng(0).random((80, 1, 28, 28), dtype=np.float32)
    check, found = calibrate(CodedModel.load(folder), queries, groups=300)
    save_consistency(folder, check, found.to_dict())
    return folder


def test_a_bundle_without_calibration_loads_without(small_bundle: Path) -> None:
    assert CodedModel.load(small_bundle).consistency is None
    assert CONSISTENCY not in file_sizes(small_bundle)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_calibration_survives_loading_and_saving(
    calibrated: Path, tmp_path: Path, runtime: str
) -> None:
    model = CodedModel.load(calibrated, runtime=runtime)  # type: ignore[arg-type]
    assert model.consistency is not None
    assert model.metadata["consistency"]["rate"] == model.consistency.rate == 1e-4
    again = CodedModel.load(model.save(tmp_path / "again"))
    assert again.consistency is not None
    for name, array in model.consistency.to_arrays().items():
        np.testing.assert_array_equal(again.consistency.to_arrays()[name], array)
    assert file_sizes(again.folder or tmp_path)[CONSISTENCY] > 0


def test_a_damaged_calibration_is_found_and_named(calibrated: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(calibrated, tmp_path / "copied")
    path = folder / CONSISTENCY
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)
    with pytest.raises(BundleError, match=CONSISTENCY):
        CodedModel.load(folder)
    path.unlink()
    with pytest.raises(BundleError, match=f"{CONSISTENCY} is missing"):
        CodedModel.load(folder)


def test_a_calibration_of_another_model_is_refused(
    calibrated: Path, tmp_path: Path, make_small_model: Callable[..., CodedModel]
) -> None:
    other = make_small_model(Code.mds(4, 2)).save(tmp_path / "other")
    add_files(other, {CONSISTENCY: (calibrated / CONSISTENCY).read_bytes()}, {})
    with pytest.raises(BundleError, match="does not hold a calibration: mean: expected shape"):
        CodedModel.load(other)
    add_files(other, {CONSISTENCY: b"nonsense"}, {})
    with pytest.raises(BundleError, match=f"{CONSISTENCY} does not hold a calibration"):
        CodedModel.load(other)


def test_too_few_queries_are_refused(small_bundle: Path) -> None:
    with pytest.raises(ValueError, match="queries: expected 40 or more for k=4, got 39"):
        calibrate(CodedModel.load(small_bundle), np.zeros((39, 1, 28, 28), np.float32))


CODED = [name for name in bundled_names() if CodedModel.load(name).scheme == "invertible"]


@pytest.mark.parametrize("name", CODED)
def test_a_shipped_bundle_tells_clean_groups_from_wrong_ones(name: str) -> None:
    model = CodedModel.load(name)
    check, k = model.consistency, model.code.k
    assert check is not None
    random = np.random.default_rng(0)
    images, _ = data.load_test_images()
    queries = data.to_queries(images)[random.permutation(len(images))]
    groups = queries.reshape(-1, k, *model.input_shape)
    results = model.embed(queries).reshape(len(groups), k, *model.embedding_shape)
    parities = model.embed(model.encode(groups)[:, 0])[:, None]
    assert not (check.scores(syndromes(model.code, results, parities)) > 4).any()

    # 0.3 times the spread is less than an honest encoder's own error: docs/verification.md.
    noise = results.std(axis=(2, 3, 4), keepdims=True)[:, 0]
    noise = noise * random.standard_normal(results[:, 0].shape)
    old = np.roll(results[:, 0], 1, axis=0)
    flipped = results[:, 0].reshape(len(groups), -1).copy()
    largest = np.abs(flipped).argmax(axis=1)
    # Its exponent's lowest bit; at k = 10 the next one, for a doubled element is found in 91 % of
    # the cases only: docs/verification.md.
    flipped[np.arange(len(groups)), largest] *= 2 if k < 10 else 4
    for wrong in (results[:, 0] + noise, old, flipped.reshape(old.shape)):
        data_slot = np.concatenate([wrong[:, None], results[:, 1:]], axis=1).astype(np.float32)
        scores = check.scores(syndromes(model.code, data_slot, parities))
        in_three_groups = 1 - (scores <= 4).mean() ** 3
        assert in_three_groups > 0.95
