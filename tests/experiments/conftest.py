"""A small model that every column of the demo can serve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from codedinv.coding import Code
from codedinv.model import CodedModel
from codedinv.nn import SeparableNet

torch.set_num_threads(1)  # small models; on a busy machine threads wait for each other


@pytest.fixture(scope="session")
def lit_model(make_small_model: Callable[..., CodedModel]) -> CodedModel:
    """A (4, 3) model with a light model, weights of fusion and two tasks."""
    code = Code.uniform(3)
    bare = make_small_model(code, "lit")
    modules = bare.modules
    torch.manual_seed(0)
    return CodedModel.from_modules(
        name="lit",
        code=code,
        backbone=modules.backbone,
        heads=modules.heads,
        encoder=modules.encoder,
        anchors_queries=bare.anchors.queries,
        metadata={**bare.metadata, "provenance": {"data_set": "fashion-mnist"}},
        light=SeparableNet((1, 28, 28), 12, 2),
        fusion={"arrival": (0.5, 0.5), "alike": (0.5, 0.5)},
    )


@pytest.fixture(scope="session")
def lit_bundle(lit_model: CodedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved."""
    return lit_model.save(tmp_path_factory.mktemp("lit") / "lit")
