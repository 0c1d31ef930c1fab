"""CodedModel: in memory, on disk, in both runtimes; and what a damaged bundle gives."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codedinv import data
from codedinv.coding import Code
from codedinv.errors import BundleError
from codedinv.experiments.accuracy import evaluate
from codedinv.model import CodedModel, bundled_names
from codedinv.model.folder import file_sizes
from codedinv.model.manifest import SCHEMA_VERSION
from codedinv.model.runtimes import choose_runtime
from tests.model.tampering import replace_file, rewrite

FILES = [
    "bundle.json",
    "weights.safetensors",
    "anchors.safetensors",
    "backbone.onnx",
    "encoder.onnx",
    "head_label.onnx",
    "head_parity.onnx",
]


@pytest.fixture
def copied_bundle(small_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle, tmp_path / "copied"))


@pytest.fixture(params=["onnx", "torch"])
def model(request: pytest.FixtureRequest, small_bundle: Path) -> CodedModel:
    return CodedModel.load(small_bundle, runtime=request.param)


@pytest.fixture(scope="module")
def random_model(make_small_model: Callable[..., CodedModel]) -> CodedModel:
    """A model as it comes from modules, never saved; not to be changed."""
    return make_small_model(Code.uniform(4))


@pytest.fixture
def groups() -> np.ndarray:
    return np.random.default_rng(5).random((3, 4, 1, 28, 28), dtype=np.float32)


# ---- calls


def test_arrays_give_arrays_and_tensors_give_tensors(model: CodedModel, groups: np.ndarray) -> None:
    parity = model.encode(groups)
    embeddings = model.embed(groups[:, 0])
    outputs = model.head(embeddings)
    assert isinstance(parity, np.ndarray)
    assert parity.shape == (3, 1, 1, 28, 28)
    assert isinstance(embeddings, np.ndarray)
    assert embeddings.shape == (3, *model.embedding_shape)
    assert isinstance(outputs, np.ndarray)
    assert outputs.shape == (3, 10)
    tensor = model.head(model.embed(torch.from_numpy(groups[:, 0])))
    assert isinstance(tensor, torch.Tensor)
    assert not tensor.requires_grad
    np.testing.assert_allclose(tensor.numpy(), outputs, rtol=1e-5, atol=1e-6)


def test_both_runtimes_agree_with_the_networks_that_were_saved(
    small_bundle: Path, groups: np.ndarray, random_model: CodedModel
) -> None:
    original = random_model
    for runtime in ("onnx", "torch"):
        loaded = CodedModel.load(small_bundle, runtime=runtime)
        assert loaded.runtime == runtime
        for got, expected in (
            (loaded.encode(groups), original.encode(groups)),
            (loaded.embed(groups[:, 0]), original.embed(groups[:, 0])),
            (loaded.head(loaded.embed(groups[0]), "parity"),
             original.head(original.embed(groups[0]), "parity")),
        ):  # fmt: skip
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_anchors_carry_the_backbones_own_embeddings(model: CodedModel) -> None:
    assert len(model.anchors.queries) >= model.code.k - 1
    np.testing.assert_allclose(
        model.embed(model.anchors.queries), model.anchors.embeddings, rtol=1e-4, atol=1e-5
    )


def test_the_loaded_backbone_inverts_its_embeddings(small_bundle: Path, groups: np.ndarray) -> None:
    model = CodedModel.load(small_bundle)
    embeddings = torch.from_numpy(model.embed(groups[:, 0]))
    queries, _ = model.modules.backbone.inverse(embeddings)
    assert np.abs(queries.numpy() - groups[:, 0]).max() < 1e-4


@pytest.mark.parametrize(
    ("method", "argument", "complaint"),
    [
        ("encode", np.zeros((2, 3, 1, 28, 28), np.float32), r"queries: .*\(B, 4, 1, 28, 28\), got"),
        ("embed", np.zeros((1, 28, 28), np.float32), r"x: expected shape \(B, 1, 28, 28\), got"),
        ("embed", np.zeros((2, 1, 28, 28)), "x: expected dtype float32, got float64"),
        ("embed", torch.zeros(2, 1, 28, 28).half(), "x: expected dtype float32, got float16"),
        ("embed", np.zeros((0, 1, 28, 28), np.float32), "x: expected a batch of at least one"),
        ("head", np.zeros((2, 16, 7, 6), np.float32), r"z: expected shape \(B, 16, 7, 7\), got"),
    ],
)
def test_a_wrong_shape_or_dtype_is_named(
    model: CodedModel, method: str, argument: Any, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        getattr(model, method)(argument)


def test_what_is_no_array_is_a_type_error(model: CodedModel) -> None:
    with pytest.raises(TypeError, match="x: expected a numpy array or a torch tensor, got list"):
        model.embed([[0.0]])  # type: ignore[type-var]


def test_an_unknown_task_is_named_with_the_known(model: CodedModel) -> None:
    with pytest.raises(ValueError, match=r"task: expected one of \['label', 'parity'\], got 'age'"):
        model.head(np.zeros((1, 16, 7, 7), np.float32), "age")


# ---- reconstruction


def test_any_k_results_give_the_least_squares_solution(
    make_small_model: Callable[..., CodedModel],
) -> None:
    model = make_small_model(Code.mds(k=4, r=2))
    generator = np.random.default_rng(1)
    embeddings = generator.standard_normal((6, *model.embedding_shape)).astype(np.float32)
    for slots in combinations(range(6), 4):
        recovered = model.reconstruct({slot: embeddings[slot] for slot in slots})
        expected = np.linalg.solve(
            model.code.generator[list(slots)], embeddings[list(slots)].reshape(4, -1)
        )
        assert sorted(recovered) == [slot for slot in range(4) if slot not in slots]
        for slot, embedding in recovered.items():
            np.testing.assert_allclose(embedding.ravel(), expected[slot], rtol=1e-3, atol=1e-3)


def test_reconstruction_answers_in_kind(model: CodedModel, groups: np.ndarray) -> None:
    embeddings = model.embed(groups[0])
    parity = model.embed(model.encode(groups[:1])[0])[0]
    results = {0: embeddings[0], 1: embeddings[1], 3: embeddings[3], 4: parity}
    (array,) = model.reconstruct(results).values()
    tensors = {slot: torch.from_numpy(embedding) for slot, embedding in results.items()}
    recovered = model.reconstruct(tensors, queries=torch.from_numpy(groups[0]))
    assert list(recovered) == [2]
    assert isinstance(recovered[2], torch.Tensor)
    np.testing.assert_array_equal(recovered[2].numpy(), array)


def test_bfloat16_tensors_come_back_as_bfloat16(model: CodedModel) -> None:
    ones = torch.ones(model.embedding_shape, dtype=torch.bfloat16)
    recovered = model.reconstruct(dict.fromkeys((1, 2, 3, 4), ones))
    assert recovered[0].dtype == torch.bfloat16
    assert torch.equal(recovered[0], ones)


def test_nothing_missing_gives_nothing(model: CodedModel) -> None:
    zeros = np.zeros(model.embedding_shape, np.float32)
    assert model.reconstruct(dict.fromkeys(range(4), zeros)) == {}


def test_too_few_results_and_wrong_queries_are_refused(model: CodedModel) -> None:
    zeros = np.zeros(model.embedding_shape, np.float32)
    with pytest.raises(ValueError, match="results: expected at least 4 slots, got 3"):
        model.reconstruct(dict.fromkeys(range(3), zeros))
    with pytest.raises(ValueError, match="queries"):
        model.reconstruct(
            dict.fromkeys(range(1, 5), zeros), queries=np.zeros((3, 1, 28, 28), np.float32)
        )


# ---- from modules


def test_training_on_does_not_change_a_model_made_before(
    random_model: CodedModel, groups: np.ndarray
) -> None:
    source = random_model.modules
    encoder = copy.deepcopy(source.encoder)
    model = CodedModel.from_modules(
        name="copy", code=Code.uniform(4), backbone=source.backbone, heads=source.heads,
        encoder=encoder, anchors_queries=groups[0],
    )  # fmt: skip
    before = model.encode(groups)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(model.encode(groups), before)


def test_baking_leaves_certificates_below_the_coefficient(random_model: CodedModel) -> None:
    certificates = random_model.metadata["certificates"]
    assert len(certificates) == 3
    assert all(0 < proof["sigma"] <= 0.9 for block in certificates for proof in block.values())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"anchors_queries": np.zeros((2, 1, 28, 28), np.float32)}, "A >= 3"),
        ({"name": "../up"}, "name"),
        ({"code": Code.uniform(3)}, "encoder"),
        ({"heads": {}}, "heads"),
        ({"heads": {"a/b": torch.nn.Flatten()}}, "a/b"),
        ({"heads": {"label": torch.nn.Identity()}}, "label"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    random_model: CodedModel, change: dict[str, Any], complaint: str
) -> None:
    source = random_model.modules
    parts: dict[str, Any] = {
        "name": "fits",
        "code": Code.uniform(4),
        "backbone": source.backbone,
        "heads": source.heads,
        "encoder": source.encoder,
        "anchors_queries": np.zeros((4, 1, 28, 28), np.float32),
    }
    with pytest.raises(ValueError, match=complaint):
        CodedModel.from_modules(**{**parts, **change})


# ---- on disk


def test_a_bundle_says_what_it_holds(small_bundle: Path) -> None:
    manifest = json.loads((small_bundle / "bundle.json").read_text())
    assert manifest["schema_version"] == SCHEMA_VERSION
    assert manifest["code"] == {"k": 4, "r": 1, "coefficients": [[0.25] * 4]}
    assert manifest["tasks"] == {"label": 10, "parity": 2}
    assert manifest["metadata"]["macs"]["encoder"] > 0
    assert sorted(manifest["files"]) == sorted(FILES[1:])
    assert sorted(path.name for path in small_bundle.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_one_changed_byte_is_found_and_its_file_named(
    copied_bundle: Path, name: str, runtime: Any
) -> None:
    path = copied_bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)
    with pytest.raises(BundleError, match=name):
        CodedModel.load(copied_bundle, runtime=runtime)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_truncated_file_is_named(copied_bundle: Path, name: str) -> None:
    path = copied_bundle / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BundleError, match=name):
        CodedModel.load(copied_bundle)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        CodedModel.load(copied_bundle)


def test_a_changed_coefficient_in_the_json_is_found(copied_bundle: Path) -> None:
    path = copied_bundle / "bundle.json"
    path.write_text(path.read_text().replace("0.25", "0.26", 1))
    with pytest.raises(BundleError, match=r"bundle\.json is damaged: its checksum"):
        CodedModel.load(copied_bundle)


def test_another_schema_version_names_both(copied_bundle: Path) -> None:
    rewrite(copied_bundle, lambda manifest: manifest.update(schema_version=99))
    with pytest.raises(BundleError, match=rf"version 99.*reads version {SCHEMA_VERSION}"):
        CodedModel.load(copied_bundle)


def test_a_foreign_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no codedinv bundle"):
        CodedModel.load(tmp_path)
    (tmp_path / "bundle.json").write_text('{"name": "of another program"}')
    with pytest.raises(BundleError, match="no codedinv bundle"):
        CodedModel.load(tmp_path)


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="neither a folder nor a bundled name"):
        CodedModel.load("no-such-model")


def test_a_json_that_breaks_the_schema_is_named(copied_bundle: Path) -> None:
    rewrite(copied_bundle, lambda manifest: manifest.pop("embedding_shape"))
    with pytest.raises(BundleError, match="embedding_shape"):
        CodedModel.load(copied_bundle)


def test_a_task_without_its_file_is_found(copied_bundle: Path) -> None:
    rewrite(copied_bundle, lambda manifest: manifest["files"].pop("head_label.onnx"))
    with pytest.raises(BundleError, match=r"no entry for head_label\.onnx"):
        CodedModel.load(copied_bundle)


def _called_outside(manifest: dict[str, Any]) -> None:
    manifest["name"] = "../outside"


def _task_outside(manifest: dict[str, Any]) -> None:
    for tasks in (manifest["tasks"], manifest["architecture"]["heads"]):
        tasks["/../../outside"] = tasks.pop("label")
    files = manifest["files"]
    files["head_/../../outside.onnx"] = files.pop("head_label.onnx")


def _file_outside(manifest: dict[str, Any]) -> None:
    manifest["files"]["../outside.onnx"] = manifest["files"]["head_label.onnx"]


def _no_task(manifest: dict[str, Any]) -> None:
    manifest["tasks"], manifest["architecture"]["heads"] = {}, {}


def _task_without_head(manifest: dict[str, Any]) -> None:
    manifest["architecture"]["heads"]["another"] = manifest["architecture"]["heads"].pop("label")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_called_outside, "name: expected"),
        (_task_outside, "heads: task names"),
        (_file_outside, "files: expected names"),
        (_no_task, "heads: expected one or more"),
        (_task_without_head, "heads: expected one or more"),
    ],
)
def test_names_that_lead_out_of_the_folder_and_missing_heads_are_refused(
    copied_bundle: Path, change: Callable[[dict[str, Any]], None], word: str
) -> None:
    shutil.copy(copied_bundle / "head_label.onnx", copied_bundle.parent / "outside.onnx")
    (copied_bundle / "head_").mkdir()
    rewrite(copied_bundle, change)
    with pytest.raises(BundleError, match=word):
        CodedModel.load(copied_bundle)


def test_weights_of_another_architecture_are_refused(copied_bundle: Path) -> None:
    def widen(manifest: dict[str, Any]) -> None:
        manifest["architecture"]["encoder"]["width"] = 6

    rewrite(copied_bundle, widen)
    with pytest.raises(BundleError, match=r"weights\.safetensors does not fit"):
        CodedModel.load(copied_bundle, runtime="torch")


def test_a_code_that_could_not_recover_is_refused(copied_bundle: Path) -> None:
    def lose_a_slot(manifest: dict[str, Any]) -> None:
        manifest["code"]["coefficients"][0][2] = 0.0

    rewrite(copied_bundle, lose_a_slot)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        CodedModel.load(copied_bundle)


def test_an_onnx_file_that_is_none_is_named(copied_bundle: Path) -> None:
    replace_file(copied_bundle, "encoder.onnx", b"no network")
    with pytest.raises(BundleError, match=r"encoder\.onnx cannot be run"):
        CodedModel.load(copied_bundle)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("name", ["weights.safetensors", "anchors.safetensors"])
def test_a_pickle_in_a_weights_place_is_never_unpickled(
    copied_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    replace_file(copied_bundle, name, pickle.dumps(_Trap()))
    with pytest.raises(BundleError, match=name):
        CodedModel.load(copied_bundle, runtime="torch")
    assert not (tmp_path / "unpickled").exists()


def test_a_model_that_was_loaded_can_be_saved_again(
    model: CodedModel, tmp_path: Path, groups: np.ndarray
) -> None:
    model.metadata["metrics"] = {"A_n": 12.5}
    expected = model.encode(groups)
    assert model.save(tmp_path / "again") == tmp_path / "again" == model.folder
    again = CodedModel.load(tmp_path / "again")
    assert again.metadata["metrics"] == {"A_n": 12.5}
    np.testing.assert_allclose(again.encode(groups), expected, rtol=1e-4, atol=1e-5)


def test_shared_weights_halve_a_bundle_and_change_no_answer(
    small_bundle: Path, tmp_path: Path, groups: np.ndarray
) -> None:
    before = CodedModel.load(small_bundle)
    CodedModel.load(small_bundle).save(tmp_path / "shared", shared_weights=True)
    own, shared = file_sizes(small_bundle), file_sizes(tmp_path / "shared")
    networks = [name for name in own if name.endswith(".onnx")]
    assert sum(shared[name] for name in networks) < 0.5 * sum(own[name] for name in networks)
    for runtime in ("onnx", "torch"):
        after = CodedModel.load(tmp_path / "shared", runtime=runtime)
        embeddings = after.embed(groups[:, 0])
        np.testing.assert_allclose(embeddings, before.embed(groups[:, 0]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            after.head(embeddings), before.head(embeddings), rtol=1e-4, atol=1e-5
        )


def test_saving_replaces_a_bundle_and_leaves_nothing_beside_it(copied_bundle: Path) -> None:
    model = CodedModel.load(copied_bundle, runtime="torch")
    model.metadata["metrics"] = {"A_n": 1.0}
    model.save(copied_bundle)
    assert CodedModel.load(copied_bundle).metadata["metrics"] == {"A_n": 1.0}
    assert [path.name for path in copied_bundle.parent.iterdir()] == [copied_bundle.name]


def test_a_save_that_fails_leaves_the_old_bundle(copied_bundle: Path) -> None:
    model = CodedModel.load(copied_bundle, runtime="torch")
    before = dict(model.metadata["metrics"])
    model.metadata["metrics"] = {"A_n": float("nan")}
    with pytest.raises(ValueError, match="metadata"):
        model.save(copied_bundle)
    assert CodedModel.load(copied_bundle).metadata["metrics"] == before
    assert [path.name for path in copied_bundle.parent.iterdir()] == [copied_bundle.name]


def test_a_folder_with_something_else_is_left_alone(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is no bundle"):
        CodedModel.load(small_bundle).save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# ---- runtimes


def test_serving_on_onnx_runtime_imports_no_torch(small_bundle: Path) -> None:
    program = f"""
import sys
import numpy as np
from codedinv import CodedModel
model = CodedModel.load({str(small_bundle)!r}, runtime="onnx")
queries = np.zeros((1, 4, 1, 28, 28), np.float32)
z = model.embed(queries[0])
parity = model.embed(model.encode(queries)[0])[0]
model.head(z)
model.reconstruct({{0: z[0], 1: z[1], 2: z[2], 4: parity}})
print([name for name in ("torch", "matplotlib", "onnx") if name in sys.modules])
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100
    )
    assert finished.stdout.strip() == "[]"


def test_without_onnx_runtime_torch_serves(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert CodedModel.load(small_bundle).runtime == "torch"
    with pytest.raises(ValueError, match="needs onnxruntime"):
        choose_runtime("onnx")


def test_a_wrong_runtime_or_thread_count_is_refused(small_bundle: Path) -> None:
    with pytest.raises(ValueError, match="'tensorrt'"):
        CodedModel.load(small_bundle, runtime="tensorrt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads"):
        CodedModel.load(small_bundle, threads=0)


# ---- the bundled models


def test_the_bundled_models_together_stay_under_30_mb() -> None:
    folders = [CodedModel.load(name).folder for name in bundled_names()]
    assert sum(sum(file_sizes(folder).values()) for folder in folders if folder) < 30e6


@pytest.mark.parametrize("name", ["fashion-mnist-k2", "fashion-mnist", "fashion-mnist-k10"])
def test_a_bundled_model_is_cheap_to_encode_and_inverts(name: str) -> None:
    model = CodedModel.load(name)
    macs = model.metadata["macs"]
    assert macs["encoder"] <= 0.1 * macs["backbone"]
    images, _ = data.load_test_images()
    queries = data.to_queries(images[:50])
    back, _ = model.modules.backbone.inverse(torch.from_numpy(model.embed(queries)))
    assert np.abs(back.numpy() - queries).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("fashion-mnist-guided-k2", 0.9),
        ("fashion-mnist-guided", 0.75),
        ("fashion-mnist-guided-k10", 0.5),
    ],
)
def test_a_bundled_guided_model_keeps_most_of_what_its_workers_add(name: str, share: float) -> None:
    model = CodedModel.load(name)
    assert model.scheme == "guided"
    assert "encoder" not in model.metadata["macs"]
    assert model.metadata["macs"]["light"] <= 0.02 * model.metadata["macs"]["backbone"]
    assert model.metadata["metrics"]["retained_gain"] >= share
    images, labels = data.load_test_images()
    accuracy = evaluate(model, data.to_queries(images), labels)
    assert accuracy.worth is not None
    kept = accuracy.over_light["arrival"].mean / accuracy.worth.mean
    assert kept > share - 0.15, "1,000 of the 10,000 images"


def test_a_model_knows_the_hashes_of_the_files_that_it_was_loaded_from(
    copied_bundle: Path, make_small_model: Callable[..., CodedModel]
) -> None:
    def on_disk(folder: Path) -> dict[str, str]:
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    before = on_disk(copied_bundle)
    for runtime in ("onnx", "torch"):
        assert CodedModel.load(copied_bundle, runtime=runtime).hashes == before
    model = CodedModel.load(copied_bundle)
    shutil.rmtree(copied_bundle)
    make_small_model(Code.uniform(2)).save(copied_bundle)
    assert model.hashes == before != on_disk(copied_bundle)


def test_a_model_of_modules_has_no_hashes_until_it_is_saved(
    make_small_model: Callable[..., CodedModel], tmp_path: Path
) -> None:
    model = make_small_model(Code.uniform(2))
    assert model.hashes is None
    saved = model.save(tmp_path / "saved")
    assert model.hashes == CodedModel.load(saved).hashes
