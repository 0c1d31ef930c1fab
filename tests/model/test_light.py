"""Light model, fusion and guidance, and bundles that carry them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from codedinv.coding import Code
from codedinv.model import CodedModel
from codedinv.model.folder import file_sizes
from codedinv.model.light import Fusion, LightModel, confidence, lead, least_sure
from codedinv.nn import LinearHead, ResNet, ResNetConfig, ResNetStage, SeparableNet

SHAPE = (1, 28, 28)


def guided_model(k: int = 4, **changes: object) -> CodedModel:
    """An ordinary network without inverse and encoder, random weights, two tasks."""
    torch.manual_seed(k)
    backbone = ResNet(ResNetConfig(SHAPE, stem=2, stages=(ResNetStage(1, 4), ResNetStage(1, 6))))
    arguments: dict[str, object] = {
        "name": "guided",
        "code": Code.uniform(k),
        "backbone": backbone,
        "heads": {
            "label": LinearHead(backbone.embedding_shape, 10),
            "parity": LinearHead(backbone.embedding_shape, 2),
        },
        "encoder": None,
        "light": SeparableNet(SHAPE, 12, 3),
        "anchors_queries": torch.rand(k, *SHAPE),
        "scheme": "guided",
    }
    return CodedModel.from_modules(**{**arguments, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def guided_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guided_model().save(tmp_path_factory.mktemp("bundles") / "guided")


def queries(count: int) -> np.ndarray:
    return np.random.default_rng(count).random((count, *SHAPE), dtype=np.float32)


# ---- the light model


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_a_light_model_answers_every_task_alike_in_both_runtimes(
    guided_bundle: Path, runtime: str
) -> None:
    model = CodedModel.load(guided_bundle, runtime=runtime)  # type: ignore[arg-type]
    assert model.light is not None
    x = queries(5)
    answers = model.light(x)
    assert {task: logits.shape for task, logits in answers.items()} == {
        "label": (5, 10),
        "parity": (5, 2),
    }
    light = model.modules.light
    assert light is not None
    with torch.no_grad():
        whole = light(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(np.concatenate([*answers.values()], axis=1), whole, atol=1e-4)


def test_a_light_model_answers_tensors_with_tensors(guided_bundle: Path) -> None:
    light = CodedModel.load(guided_bundle).light
    assert light is not None
    assert isinstance(light(torch.from_numpy(queries(2)))["label"], torch.Tensor)


def test_a_light_model_names_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match="x: expected shape"):
        LightModel(lambda x: x, {"label": 10}, SHAPE)(np.zeros((2, 3), np.float32))


def test_a_bundle_of_before_loads_without_light_model(small_bundle: Path) -> None:
    model = CodedModel.load(small_bundle)
    assert (model.light, model.fusion, model.scheme) == (None, None, "invertible")
    assert "light.onnx" not in file_sizes(small_bundle)


# ---- a network without inverse and encoder


@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_an_ordinary_network_is_saved_and_loaded_without_encoder(
    guided_bundle: Path, runtime: str
) -> None:
    model = CodedModel.load(guided_bundle, runtime=runtime)  # type: ignore[arg-type]
    assert model.scheme == "guided"
    assert {"light.onnx"} <= set(file_sizes(guided_bundle))
    assert "encoder.onnx" not in file_sizes(guided_bundle)
    x = queries(3)
    with torch.no_grad():
        expected = model.modules.backbone(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.embed(x), expected, atol=1e-4)
    with pytest.raises(ValueError, match="has no encoder"):
        model.encode(queries(4)[None])


def test_a_guided_bundle_is_exported_again(guided_bundle: Path, tmp_path: Path) -> None:
    model = CodedModel.load(guided_bundle)
    again = CodedModel.load(model.save(tmp_path / "again", shared_weights=True))
    x = queries(3)
    np.testing.assert_allclose(again.head(again.embed(x)), model.head(model.embed(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"light": None}, "light: the scheme 'guided'"),
        ({"light": None, "scheme": "invertible"}, "encoder: the scheme 'invertible' needs one"),
        ({"scheme": "telepathy"}, "scheme: expected one of invertible, worker-encoded"),
        ({"light": SeparableNet(SHAPE, 10, 3)}, r"light: expected \(B, 12\)"),
    ],
)
def test_a_model_that_lacks_what_its_scheme_needs_is_refused(
    changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        guided_model(**changes)  # type: ignore[arg-type]


# ---- fusion and guidance


def test_fusion_weights_survive_a_bundle(
    make_small_model: Callable[..., CodedModel], tmp_path: Path
) -> None:
    modules = make_small_model(Code.uniform(2)).modules
    model = CodedModel.from_modules(
        name="fused",
        code=Code.uniform(2),
        backbone=modules.backbone,
        heads=modules.heads,
        encoder=modules.encoder,
        light=SeparableNet(SHAPE, 12, 2),
        anchors_queries=queries(3),
        fusion={"arrival": (0.25, 0.5), "alike": (0.75, 0.5)},
    )
    loaded = CodedModel.load(model.save(tmp_path / "fused")).fusion
    assert loaded == Fusion({"arrival": (0.25, 0.5), "alike": (0.75, 0.5)})


def test_fusion_adds_weighted_log_probabilities() -> None:
    fusion = Fusion({"arrival": (2.0, 1.0), "alike": (0.0, 1.0)})
    decoded = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    light = np.log(np.array([[0.2, 0.4, 0.4]], np.float32))
    mixed = np.exp(fusion(decoded, light))
    np.testing.assert_allclose(mixed / mixed.sum(), [[0.5, 0.25, 0.25]], rtol=1e-5)
    np.testing.assert_allclose(fusion(decoded, light, "alike"), light, rtol=1e-5)
    with pytest.raises(ValueError, match="grouping"):
        Fusion({"arrival": (1.0, 1.0)})(decoded, light, "alike")


def test_the_least_sure_queries_of_a_group_come_first() -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    logits[0, :, 0] = (3.0, 1.0, 2.0)
    logits[1, :, 2] = (0.5, 0.5, 0.0)
    assert least_sure(logits).tolist() == [[1], [2]]
    assert least_sure(logits, 2).tolist() == [[1, 2], [2, 0]], "of equally sure ones the lower"
    assert confidence(logits)[1, 2] == pytest.approx(0.25)


def test_a_near_rival_raises_more_doubt_than_many_weak_ones() -> None:
    near = np.log(np.array([0.55, 0.44, 0.01]))
    spread = np.log(np.array([0.50, 0.25, 0.25]))
    assert confidence(near) > confidence(spread)
    assert least_sure(np.stack([spread, near])).tolist() == [1]
    np.testing.assert_allclose(lead(np.stack([near, spread])), np.log([55 / 44, 2]))
    assert lead(np.zeros((3, 1))).tolist() == [np.inf] * 3, "a single class has no rival"
