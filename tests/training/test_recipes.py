"""A slip in a recipe is answered in the recipe's own words, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codedinv.data import write_idx
from codedinv.training import fit_classifier, fit_light, load_recipe
from codedinv.training.classifier import build_classifier
from codedinv.training.encoder import build_recipe_encoder
from codedinv.training.recipe import Recipe

SOUND = """
name = "sound"
[backbone]
input_shape = [1, 28, 28]
mean = [0.286]
std = [0.353]
stages = [{ blocks = 1, hidden = 8, squeeze = 4 }]
[head]
kind = "dense"
hidden = 32
[classifier]
epochs = 1
[light]
[encoder]
k = 3
"""


def loaded(folder: Path, *changes: tuple[str, str]) -> Recipe:
    text = SOUND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "mine.toml").write_text(text)
    return load_recipe(folder / "mine.toml")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("mean = [0.286]", "mean = 0.286", r"backbone.mean: expected a valid tuple, got 0.286"),
        ("hidden = 8", "hiden = 8", r"backbone.stages.0.hiden: .* did you mean hidden\?"),
        ("hidden = 32", "hiden = 32", r"head.hiden: there is no such key; did you mean hidden\?"),
        ('"dense"', '"dens"', r"head.kind: expected one of pool, linear, dense, conv, got 'dens'"),
        ("hidden = 32", 'hidden = "many"', r"head.hidden: expected a valid integer, .*'many'"),
        ("epochs = 1", "epoch = 1", r"classifier.epoch: .* did you mean epochs\?"),
        ("epochs = 1", "epochs = 0", r"classifier.epochs: expected greater than 0, got 0"),
        ("k = 3", "k = 2.5", r"encoder.k: expected a valid integer.*, got 2.5"),
        ("[light]", "[ligth]", r"ligth: there is no such key; did you mean light\?"),
        ("[head]", "[heads]", r"head: it is missing"),
        ("[1, 28, 28]", "[1, 28]", r"backbone.input_shape.2: it is missing"),
        ("std = [0.353]", "std = [0.0]", r"backbone: mean, std: expected 1 values"),
        (
            'name = "sound"',
            'name = "my model"',
            r"name: expected at most .* got 'my model'$",
        ),
        ('name = "sound"', "name = sound", r"not TOML"),
        ("[backbone]", "[backbone]\ncoefficent = 0.9", r"did you mean coefficient\?"),
        ("[backbone]", '[backbone]\nkind = "vgg"', r"backbone.kind: expected one of iresnet, res"),
    ],
)
def test_a_slip_names_the_key_the_expectation_and_what_came(
    tmp_path: Path, old: str, new: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"mine.toml: .*{complaint}") as caught:
        loaded(tmp_path, (old, new))
    for jargon in ("pydantic", "validation error", "type="):
        assert jargon not in str(caught.value)


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion-mnist-full", "fashion-mnist-guided"])
def test_bundled_recipes_pass(name: str) -> None:
    assert load_recipe(name).name == name


def test_an_encoder_is_built_as_its_recipe_says(tmp_path: Path) -> None:
    said = '[encoder]\nmargin = 2\nseparable = true\nactivation = "silu"'
    recipe = loaded(tmp_path, ("[encoder]", said))
    config = build_recipe_encoder(recipe, build_classifier(recipe)[0]).config
    for name in ("input_channels", "margin", "width", "separable", "activation"):
        assert getattr(config, name) == getattr(recipe.encoder, name), name
    with pytest.raises(ValueError, match=r"encoder.activation: expected .*'elu' or 'silu'"):
        loaded(tmp_path, ("[encoder]", '[encoder]\nactivation = "relu"'))


def idx_set(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    folder.mkdir()
    for split in ("train", "t10k"):
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels.astype(np.uint8))
    return folder


def test_images_of_another_shape_are_refused_before_training(tmp_path: Path) -> None:
    recipe = loaded(
        tmp_path, ("[1, 28, 28]", "[3, 32, 32]"), ("[0.286]", "[0.5, 0.5, 0.5]"),
        ("[0.353]", "[0.2, 0.2, 0.2]"),
    )  # fmt: skip
    folder = idx_set(tmp_path / "d", np.zeros((60, 28, 28), np.uint8), np.arange(60) % 3)
    with pytest.raises(ValueError, match=r"expected queries \[3, 32, 32\], .* got \[1, 28, 28\]"):
        fit_classifier(recipe, tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()


def test_a_stray_label_is_refused_before_training(tmp_path: Path) -> None:
    labels = np.arange(60) % 10
    labels[7] = 11
    folder = idx_set(tmp_path / "d", np.zeros((60, 28, 28), np.uint8), labels)
    with pytest.raises(ValueError, match=r"labels reach 11 \(example 7\), but class 10 has no ex"):
        fit_classifier(loaded(tmp_path), tmp_path / "out", folder)


def test_a_model_of_three_classes_has_three_outputs(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    folder = idx_set(tmp_path / "d", images, np.arange(200) % 3)
    recipe = loaded(tmp_path, ("[light]", "[light]\nepochs = 1\nbudget = 0.5"))
    backbone, head = fit_classifier(recipe, tmp_path / "out", folder)
    light = fit_light(recipe, backbone, head, tmp_path / "out", folder)
    assert light.config_dict()["outputs"] == 3  # type: ignore[operator]
    assert build_classifier(recipe, 3)[1].state_dict().keys() == head.state_dict().keys()
    assert head.state_dict()["linear2.bias"].shape == (3,)
