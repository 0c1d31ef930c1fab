"""Both trainings, end to end on a few hundred real images and a very small network."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from codedinv.data import load_test_images, to_queries
from codedinv.model import CodedModel
from codedinv.nn import ResNet, macs
from codedinv.training import (
    Recipe,
    fit_classifier,
    fit_encoder,
    fit_head_alone,
    fit_light,
    load_classifier,
    load_light,
    load_recipe,
    recipe_code,
)
from codedinv.training.classifier import build_classifier
from codedinv.training.encoder import build_recipe_encoder
from codedinv.training.learnt import LabelledQueries, load_training_queries
from codedinv.training.lessons import teacher_answers
from codedinv.training.light import build_recipe_light

TINY = """
name = "tiny"
seed = 3
[backbone]
input_shape = [1, 28, 28]
mean = [0.286]
std = [0.353]
stages = [{ blocks = 1, hidden = 8, squeeze = 4 }]
[head]
kind = "dense"
hidden = 32
[classifier]
epochs = 6
batch_size = 50
mixup_share = 0.5
autocast = false
[light]
budget = 0.9
epochs = 8
batch_size = 50
[encoder]
k = 3
input_channels = 4
width = 8
blocks = 1
steps = 40
groups_per_step = 8
autocast = false
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled images as a data set of 800 training and 200 test images in IDX files."""
    folder = tmp_path_factory.mktemp("idx")
    images, labels = load_test_images()
    order = np.random.default_rng(0).permutation(len(images))
    for prefix, part in (("train", order[:800]), ("t10k", order[800:])):
        _write_idx(folder / f"{prefix}-images-idx3-ubyte", images[part])
        _write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels[part].astype(np.uint8))
    return folder


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(header + array.tobytes())


def _recipe(folder: Path, *changes: tuple[str, str]) -> Recipe:
    text = TINY
    for old, new in changes:
        if old not in text:
            raise ValueError(f"no {old!r} in the recipe")
        text = text.replace(old, new)
    path = folder / "tiny.toml"
    path.write_text(text)
    return load_recipe(path)


@pytest.fixture(scope="module")
def classifier(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier")
    fit_classifier(_recipe(out), out, data)
    return out / "classifier.pt"


def test_a_classifier_learns_and_leaves_its_curves(classifier: Path) -> None:
    saved = torch.load(classifier, weights_only=True)
    assert saved["normal_accuracy"] > 50, "six passes over 800 images should beat chance fivefold"
    assert (classifier.parent / "classifier.curves.png").stat().st_size > 1000


def test_an_encoder_brings_degraded_accuracy_above_the_plain_mean(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, ("steps = 40", "steps = 150"))
    backbone, head = load_classifier(recipe, classifier)
    fit_encoder(recipe, backbone, head, tmp_path, data)
    history = torch.load(tmp_path / "encoder.pt", weights_only=True)["metrics"]
    assert history["degraded_accuracy"] > history["normal_accuracy"] - 8
    assert history["latent"] < 0.05


def test_a_frozen_backbone_and_head_stay_as_they_are(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path)
    backbone, head = load_classifier(recipe, classifier)
    before = [p.detach().clone() for p in (*backbone.parameters(), *head.parameters())]
    statistics = head.norm.running_mean.clone()
    fit_encoder(recipe, backbone, head, tmp_path, data)
    after = [*backbone.parameters(), *head.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(statistics, head.norm.running_mean)


def test_the_papers_adversarial_loss_on_inverted_targets_trains(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, ("steps = 40", "steps = 8\nl1 = 100.0\ngan = 1.0\nlatent = 0.0"))
    backbone, head = load_classifier(recipe, classifier)
    fit_encoder(recipe, backbone, head, tmp_path, data)
    metrics = torch.load(tmp_path / "encoder.pt", weights_only=True)["metrics"]
    assert np.isfinite([metrics["l1"], metrics["gan"]]).all()


def test_training_an_encoder_changes_no_exact_answer(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, ("steps = 40", "steps = 2"))
    backbone, head = load_classifier(recipe, classifier)
    x = torch.from_numpy(to_queries(load_test_images()[0][:5]))
    before = head.eval()(backbone.eval()(x))
    fit_encoder(recipe, backbone, head, tmp_path, data)
    assert torch.equal(before, head(backbone(x)))
    assert all(p.requires_grad for p in backbone.parameters())


def test_a_light_model_learns_from_the_classifier_within_its_budget(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path)
    backbone, head = load_classifier(recipe, classifier)
    light = fit_light(recipe, backbone, head, tmp_path, data)
    x = torch.from_numpy(to_queries(load_test_images()[0][:5]))
    assert macs(light, x[:1]) <= 0.9 * macs(backbone, x[:1])
    saved = torch.load(tmp_path / "light.pt", weights_only=True)
    assert saved["light_accuracy"] > 40, "eight passes over 760 images should beat chance"
    assert float(light.temperature) != 1, "it was calibrated on the held-out images"
    learnt, _ = load_training_queries(recipe, data)
    again = load_light(recipe, backbone, tmp_path / "light.pt", learnt)
    torch.testing.assert_close(again(x), light(x))
    with pytest.raises(ValueError, match="was trained on other data"):
        load_light(recipe, backbone, tmp_path / "light.pt", learnt.mirrored())


@pytest.fixture(scope="module")
def mislabelled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images, the training images' labels without regard to what they show."""
    folder = tmp_path_factory.mktemp("mislabelled")
    for file in data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    _write_idx(folder / "train-labels-idx1-ubyte", (np.arange(800) % 10).astype(np.uint8))
    return folder


def test_classifier_and_light_model_learn_from_a_bundles_answers_what_no_label_tells(
    mislabelled: Path, tmp_path: Path
) -> None:
    taught = 'teacher = "fashion-mnist"\ndistillation = 1.0'
    recipe = _recipe(
        tmp_path,
        ("[classifier]", f"[classifier]\n{taught}"),
        ("[light]", f"[light]\n{taught}"),
    )
    backbone, head = fit_classifier(recipe, tmp_path, mislabelled)
    saved = torch.load(tmp_path / "classifier.pt", weights_only=True)
    assert saved["normal_accuracy"] > 50
    fit_light(recipe, backbone, head, tmp_path, mislabelled)
    saved = torch.load(tmp_path / "light.pt", weights_only=True)
    assert saved["light_accuracy"] > 40


def test_a_teacher_of_other_classes_is_refused(classifier: Path, data: Path) -> None:
    learnt, _ = load_training_queries(_recipe(classifier.parent), data)
    few = LabelledQueries(learnt.inputs[:2], learnt.labels[:2])
    with pytest.raises(ValueError, match=r"expected a model of 3 classes, got 'fashion-mnist'"):
        teacher_answers("fashion-mnist", few, 3)


def test_an_encoder_groups_by_the_light_models_classes(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, ("steps = 40", "steps = 2\nalike = 1.0"))
    backbone, head = load_classifier(recipe, classifier)

    class OneClass(torch.nn.Module):
        called = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            OneClass.called += len(x)
            return torch.eye(10)[torch.full((len(x),), 4)]

    fit_encoder(recipe, backbone, head, tmp_path, data, light=OneClass())
    assert OneClass.called == 760, "every image that is learnt from"


def test_the_head_alone_is_trained_without_a_block_of_the_backbone(
    data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path)
    reached, work = fit_head_alone(recipe, tmp_path / "alone", data)
    assert reached > 40
    assert work == 784 * 32 + 32 * 10
    saved = torch.load(tmp_path / "alone" / "classifier.pt", weights_only=True)
    assert not any("conv" in name for name in saved["backbone"])


def test_an_encoder_for_two_parities_becomes_a_bundle(
    classifier: Path, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, ("k = 3", "k = 3\nr = 2"))
    backbone, head = load_classifier(recipe, classifier)
    encoder = fit_encoder(recipe, backbone, head, tmp_path, data)
    queries = to_queries(load_test_images()[0][:12])
    model = CodedModel.from_modules(
        name=recipe.name,
        code=recipe_code(recipe),
        backbone=backbone,
        heads={"label": head},
        encoder=encoder,
        anchors_queries=queries[:4],
    )
    groups = queries.reshape(4, 3, 1, 28, 28)
    assert model.encode(groups).shape == (4, 2, 1, 28, 28)


def test_a_killed_run_resumes_and_ends_as_an_unbroken_one(data: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "import codedinv.training.loop as loop; loop.CHECKPOINT_EVERY_S = 0.2\n"
        "from codedinv.training import fit_classifier, load_recipe\n"
        "fit_classifier(load_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))\n"
    )
    _recipe(tmp_path, ("epochs = 6", "epochs = 10"))
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", program, str(tmp_path / "tiny.toml"), out, data]
        return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL)

    first = start(killed)
    limit = time.monotonic() + 60
    while not (killed / "classifier.checkpoint").exists():
        if time.monotonic() > limit or first.poll() is not None:
            pytest.fail("no checkpoint was written while the run went on")
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(killed).wait(120) == 0
    assert start(unbroken).wait(120) == 0
    parts = [torch.load(f / "classifier.pt", weights_only=True) for f in (killed, unbroken)]
    for name, weight in parts[0]["head"].items():
        torch.testing.assert_close(weight, parts[1]["head"][name], rtol=1e-4, atol=1e-5)


def test_a_run_does_not_go_on_from_another_networks_checkpoint(data: Path, tmp_path: Path) -> None:
    short = ("epochs = 6", "epochs = 1")
    fit_classifier(_recipe(tmp_path, short), tmp_path, data)
    other = _recipe(tmp_path, short, ("hidden = 8", "hidden = 16"))
    with pytest.raises(ValueError, match=r"backbone.stages was .* to start anew: --fresh"):
        fit_classifier(other, tmp_path, data)
    fit_classifier(other, tmp_path, data, resume=False)


def test_a_recipe_with_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mixup_shares"):
        _recipe(tmp_path, ("mixup_share", "mixup_shares"))


def test_an_unknown_recipe_names_the_bundled_ones() -> None:
    with pytest.raises(ValueError, match="fashion-mnist"):
        load_recipe("no-such-recipe")


RESNET = """
[backbone]
kind = "resnet"
input_shape = [1, 28, 28]
mean = [0.286]
std = [0.353]
stem = 4
stages = [{ blocks = 1, width = 8 }, { blocks = 1, width = 16 }]
[head]
kind = "linear"
"""


def test_a_classifier_of_another_kind_trains_by_the_same_recipe(data: Path, tmp_path: Path) -> None:
    start, end = TINY.index("[backbone]"), TINY.index("[classifier]")
    (tmp_path / "resnet.toml").write_text(TINY[:start] + RESNET + TINY[end:])
    recipe = load_recipe(tmp_path / "resnet.toml")
    fit_classifier(recipe, tmp_path, data)
    backbone, head = load_classifier(recipe, tmp_path / "classifier.pt")
    assert isinstance(backbone, ResNet)
    assert torch.load(tmp_path / "classifier.pt", weights_only=True)["normal_accuracy"] > 40
    assert tuple(head.eval()(backbone.eval()(torch.zeros(2, 1, 28, 28))).shape) == (2, 10)
    by_inversion = recipe.encoder.model_copy(update={"l1": 1.0, "steps": 1})
    recipe = recipe.model_copy(update={"encoder": by_inversion})
    with pytest.raises(ValueError, match="no inverse"):
        fit_encoder(recipe, backbone, head, tmp_path, data)


CODED = ["fashion-mnist-k2", "fashion-mnist", "fashion-mnist-k10"]
FULL = ["fashion-mnist-full", "fashion-mnist-full-k10"]
GUIDED = [
    "fashion-mnist-guided-k2",
    "fashion-mnist-guided",
    "fashion-mnist-guided-k10",
]


@pytest.mark.parametrize("name", CODED + FULL)
def test_every_coded_recipe_builds_and_its_encoder_costs_a_tenth_at_most(name: str) -> None:
    recipe = load_recipe(name)
    backbone, head = build_classifier(recipe)
    encoder = build_recipe_encoder(recipe, backbone)
    query = torch.zeros(1, *backbone.config.input_shape)
    assert head.eval()(backbone.eval()(query)).shape == (1, 10)
    group = torch.zeros(1, recipe.encoder.k, *backbone.config.input_shape)
    assert macs(encoder, group) <= 0.10 * macs(backbone, query)


@pytest.mark.parametrize("names", [CODED, FULL, GUIDED])
def test_recipes_that_share_a_classifier_train_it_alike(names: list[str]) -> None:
    recipes = [load_recipe(name) for name in names]
    shared = ("data", "seed", "held_out", "backbone", "head", "classifier", "light")
    for name in shared:
        assert all(getattr(r, name) == getattr(recipes[0], name) for r in recipes), name


@pytest.mark.parametrize(("name", "most"), [(GUIDED[0], 0.02), (CODED[0], 0.05)])
def test_a_recipes_light_model_stays_within_its_budget(name: str, most: float) -> None:
    recipe = load_recipe(name)
    backbone, _ = build_classifier(recipe)
    query = torch.zeros(1, *backbone.config.input_shape)
    assert (
        0.9 * most
        < macs(build_recipe_light(recipe, backbone), query) / macs(backbone, query)
        <= most
    )
