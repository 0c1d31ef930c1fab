"""A model or data that cannot be coded gets an error or advice that says why, before training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import codedinv


def refused(tabular: Any, quick: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**tabular._asdict(), "k": 2, **quick, **changes}


class DependsOnTheBatch(nn.Module):
    """Answers each query relative to the others, as a batch norm in training mode does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x)
        return z - z.mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "my model"}, "name: expected"),
        ({"k": 1}, "k: expected group sizes of 2 or more, got 1"),
        ({"k": ()}, "k: expected group sizes of 2 or more"),
        ({"budget": 10}, r"budget: expected a share .* \(10% is 0.1\), got 10"),
        ({"unavailable": 5}, "unavailable: expected a share between 0 and 1, got 5"),
        ({"k": 2.5}, "k: expected group sizes of 2 or more, got 2.5"),
        ({"budget": "10%"}, r"budget: expected a share .* got '10%'"),
        ({"unavailable": "5%"}, "unavailable: expected a share .* got '5%'"),
        ({"seed": -1}, "seed: expected an integer of 0 or more, got -1"),
        ({"epochs": -1}, "epochs: expected an integer of 0 or more, got -1"),
        ({"light_epochs": 0.5}, "light_epochs: expected an integer of 1 or more, got 0.5"),
        ({"scheme": "magic"}, "scheme: expected one of invertible, .*, got 'magic'"),
        ({"device": "gpu"}, "--device: expected 'cpu' or 'cuda', got 'gpu'"),
        ({"threads": 0}, "--threads: expected at least 1"),
        ({"backbone": Path("no.onnx"), "heads": None}, "no file no.onnx"),
    ],
)
def test_a_senseless_argument_is_named(
    tabular: Any, quick: dict[str, Any], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        codedinv.fit(**refused(tabular, quick, **changes))


def test_data_that_do_not_fit_the_model_are_refused(tabular: Any, quick: dict[str, Any]) -> None:
    x, y = tabular.train
    wrong = y.copy()
    wrong[5] = 11
    cases = [
        ({"train": (x, wrong)}, r"train: labels reach 11 \(example 5\), but class 10 has no ex"),
        ({"train": (x, y % 3), "test": (tabular.test[0], tabular.test[1] % 2 + 10)},
         r"test: the model tells 10 classes apart, labels 0 to 9; label 11 came"),
        ({"train": (x[:, :20], y), "test": (tabular.test[0][:, :20], tabular.test[1])},
         r"float32 \(\d+, 20\)"),
        ({"train": (x[:, :20], y)}, r"test: expected queries \[20\], .* got \[49\]"),
        ({"train": (x[:40], y[:40])}, "train: expected at least 50 examples .* got 40"),
        ({"test": (x, y.astype(float))}, "test: expected labels that are classes"),
    ]  # fmt: skip
    for changes, complaint in cases:
        with pytest.raises(ValueError, match=complaint):
            codedinv.fit(**refused(tabular, quick, **changes))


def test_models_that_cannot_be_coded_are_refused_with_the_reason(
    tabular: Any, quick: dict[str, Any]
) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"backbone": DependsOnTheBatch(tabular.backbone)}, "differently beside others than alone"),
        ({"heads": {"size": nn.Linear(32, 1)}}, "heads: 'size' has one output; fit compares"),
        ({"backbone": nn.Flatten(), "heads": nn.Linear(49, 10)}, "backbone: it multiplies nothing"),
    ]
    for changes, complaint in cases:
        with pytest.raises(ValueError, match=complaint):
            codedinv.fit(**refused(tabular, quick, **changes))
    with pytest.raises(TypeError, match="backbone: expected a torch module or the path"):
        codedinv.fit(**refused(tabular, quick, backbone=lambda x: x))
    with pytest.raises(TypeError, match="heads: expected torch modules by task"):
        codedinv.fit(**refused(tabular, quick, heads={"label": len}))


def test_a_backbone_too_light_for_anything_lighter_is_advised_not_to_be_coded(
    tabular: Any, quick: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"budget: .* too light .* Do not code: send twice"):
        codedinv.fit(**refused(tabular, quick, backbone=nn.Linear(49, 10), heads=nn.Identity()))


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_budget_for_nothing_names_the_least_before_anything_is_trained(
    tabular: Any, quick: dict[str, Any], epochs: int, tmp_path: Path
) -> None:
    about = refused(tabular, quick, epochs=epochs, out=tmp_path)
    with pytest.raises(ValueError, match=r"budget: expected \d") as caught:
        codedinv.fit(**about, budget=1e-4)
    least = re.search(r"expected ([\d.]+)% or more, got 0\.01%: 50% of it", str(caught.value))
    assert least is not None
    assert not list(tmp_path.rglob("*.checkpoint"))
    enough = float(least[1]) / 100
    with pytest.raises(ValueError, match=r"budget: expected .* or more"):
        codedinv.fit(**about, budget=enough - 2e-4)
    assert codedinv.fit(**about, budget=enough).report.candidates


def test_an_untrained_model_is_refused_with_its_accuracy_beside_chance(
    tabular: Any, quick: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    untrained = nn.Sequential(nn.Linear(49, 256), nn.ReLU(), nn.Linear(256, 32))
    about = refused(
        tabular, quick, backbone=untrained, heads={"label": nn.Linear(32, 10)}, out=tmp_path
    )
    with pytest.raises(ValueError, match=r"the same class for all would answer .* trained weights"):
        codedinv.fit(**about)
    assert not list(tmp_path.rglob("*.checkpoint")), "before anything is trained"


def test_an_untrained_model_is_trained_where_that_is_asked_for(
    tabular: Any, quick: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    untrained = nn.Sequential(nn.Linear(49, 256), nn.ReLU(), nn.Linear(256, 32))
    before = untrained[0].weight.clone()
    heads = {"label": nn.Linear(32, 10)}
    about = refused(tabular, quick, backbone=untrained, heads=heads, scheme="guided", epochs=8)
    model = codedinv.fit(**about)
    assert model.report.best.normal.mean > 50
    assert torch.equal(untrained[0].weight, before), "a copy is trained"
    x, y = tabular.train
    short = {"train": (x[:, :20], y), "test": (x[:, :20], y)}
    with pytest.raises(ValueError, match=r"backbone: .* does not take float32 \(\d+, 20\)"):
        codedinv.fit(**{**about, **short})
    with pytest.raises(ValueError, match="epochs: labels are of one task"):
        codedinv.fit(**{**about, "heads": {"a": heads["label"], "b": nn.Linear(32, 2)}})


def test_where_the_light_model_is_as_good_the_advice_is_not_to_code(
    tabular: Any, quick: dict[str, Any]
) -> None:
    """Classes that lie far apart: the light model knows them all, so workers add nothing to it."""
    y = np.arange(900) % 3
    noise = np.random.default_rng(0).standard_normal((900, 8))
    x = (5 * np.eye(8)[y] + 0.1 * noise).astype(np.float32)
    backbone = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    about = refused(
        tabular, quick, backbone=backbone, heads=nn.Linear(64, 3), epochs=2, light_epochs=12,
        train=(x[:600], y[:600]), test=(x[600:], y[600:]),
    )  # fmt: skip
    model = codedinv.fit(**about)
    assert (model.report.light.mean, model.scheme) == (100, "uncoded")
    assert "Do not code: fall back to the light model, which answers as well" in model.report.why
