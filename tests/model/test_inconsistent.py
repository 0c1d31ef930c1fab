"""A bundle whose `bundle.json` contradicts itself or its files is refused when it is loaded.

Whoever writes one by hand writes hashes and checksum that fit, so these find nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from codedinv.coding import Code
from codedinv.errors import BundleError
from codedinv.model import CodedModel
from tests.model.tampering import replace_file, rewrite

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A (5, 4) bundle with an encoder and two tasks, of 10 and 2 outputs."""
    return Path(shutil.copytree(small_bundle, tmp_path / "copied"))


def _code(k: int, r: int, rows: int, columns: int) -> Change:
    coefficients = [[1.0 / columns] * columns for _ in range(rows)]
    entry = {"k": k, "r": r, "coefficients": coefficients}
    return lambda manifest: manifest.update(code=entry)


def _entry(**entries: Any) -> Change:
    return lambda manifest: manifest.update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_entry(scheme="magic"), r"scheme: expected one of invertible, .*, got 'magic'"),
        (_entry(scheme="guided"), r"light: the scheme 'guided'.* needs? a light model, got None"),
        (_entry(fusion={"sorted": [1.0, 1.0]}), r"light: .* fusion need a light model, got None"),
        (_entry(input_range=[1.0, 0.0]), r"input_range: expected two .*, got \(1\.0, 0\.0\)"),
        (_entry(input_range=[0.5, 0.5]), r"input_range: expected two .*, got \(0\.5, 0\.5\)"),
        (_entry(input_range=[0.0, float("nan")]), r"input_range: expected two finite numbers"),
        (_entry(input_shape=[1, 0, 28]), r"input_shape: expected .*, got \(1, 0, 28\)"),
        (_entry(embedding_shape=[]), r"embedding_shape: expected .*, got \(\)"),
        (_entry(tasks={"label": 0, "parity": 2}), r"tasks: 'label': expected 1 output .*, got 0"),
        (_code(1, 1, 1, 1), r"code: expected k of 2 or more, .*'invertible'.*, got k = 1"),
        (_code(0, 1, 1, 4), r"code: expected k and r of 1 or more, got k = 0, r = 1"),
        (_code(5, 1, 1, 4), r"code: expected 1 x 5 coefficients .*, got 1 rows of 4"),
        (_code(4, 2, 1, 4), r"code: expected 2 x 4 coefficients .*, got 1 rows of 4"),
        (lambda manifest: manifest["code"].update(n=6), r"code\.n"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    bundle: Path, change: Change, message: str
) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=rf"(?s)bundle\.json.*{message}"):
        CodedModel.load(bundle)


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest["tasks"].update(label=11),
            r"head_label\.onnx.* 'label' has 11 outputs: expected \(1, 11\), got \(1, 10\)",
        ),
        (_code(3, 1, 1, 3), r"encoder\.onnx.*k = 3, r = 1"),
    ],
)
def test_networks_that_do_not_fit_the_manifest_are_refused(
    bundle: Path, change: Change, message: str, runtime: Any
) -> None:
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=message):
        CodedModel.load(bundle, runtime=runtime)


def _copied(name: str, to: Path) -> Path:
    folder = CodedModel.load(name).folder
    assert folder is not None
    return Path(shutil.copytree(folder, to / name))


@pytest.mark.parametrize(
    ("fusion", "got"),
    [
        ({"sorted": [1.0, 1.0]}, r"\(1\.0, 1\.0\) for 'sorted'"),
        ({"alike": [1.0, float("inf")]}, r"\(1\.0, inf\) for 'alike'"),
    ],
)
def test_weights_of_fusion_are_two_finite_numbers_for_a_known_grouping(
    tmp_path: Path, fusion: dict[str, list[float]], got: str
) -> None:
    folder = _copied("fashion-mnist", tmp_path)
    rewrite(folder, _entry(fusion=fusion))
    with pytest.raises(BundleError, match=rf"fusion: expected two finite weights .* got {got}"):
        CodedModel.load(folder)


def test_a_light_model_that_lacks_a_task_is_refused(tmp_path: Path) -> None:
    folder = _copied("fashion-mnist-guided", tmp_path)

    def add_task(manifest: dict[str, Any]) -> None:
        manifest["tasks"]["another"] = 10
        heads = manifest["architecture"]["heads"]
        heads["another"] = heads["label"]

    rewrite(folder, add_task)
    replace_file(folder, "head_another.onnx", (folder / "head_label.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"light\.onnx.*expected \(1, 20\), got \(1, 10\)"):
        CodedModel.load(folder, runtime="onnx")


def test_too_few_anchors_and_such_that_are_not_finite_are_refused(bundle: Path) -> None:
    anchors = load((bundle / "anchors.safetensors").read_bytes())
    few = {name: array[:2].copy() for name, array in anchors.items()}
    replace_file(bundle, "anchors.safetensors", save(few))
    with pytest.raises(BundleError, match=r"expected 3 anchors or more, got \(2, 2\)"):
        CodedModel.load(bundle)
    anchors["embeddings"][0] = np.nan
    replace_file(bundle, "anchors.safetensors", save(anchors))
    with pytest.raises(BundleError, match=r"embeddings: expected finite float32"):
        CodedModel.load(bundle)


def test_a_code_for_single_queries_is_only_for_schemes_without_groups(
    make_small_model: Callable[..., CodedModel],
) -> None:
    with pytest.raises(ValueError, match="'replication' copies single ones"):
        make_small_model(Code.uniform(1))
