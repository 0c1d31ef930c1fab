"""Small models that are quickly made: random weights, real shapes, real files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from codedinv.coding import Code
from codedinv.data import load_test_images, write_idx
from codedinv.model import CodedModel
from codedinv.nn import DenseHead, Encoder, EncoderConfig, IResNet, IResNetConfig, StageConfig

INPUT_SHAPE = (1, 28, 28)


def build_small_model(code: Code, name: str = "small", linear: bool = False) -> CodedModel:
    """A model for 28x28 grey images with random weights and 0.2 M MACs.

    Args:
        code: its code.
        name: its name.
        linear: the backbone's branches are zero, so that the weighted sum of queries, which an
            untrained encoder makes, is the perfect parity query.
    """
    torch.manual_seed(code.k)
    config = IResNetConfig(
        INPUT_SHAPE, (StageConfig(3, 4, squeeze=4),), mean=(0.286,), std=(0.353,)
    )
    backbone = IResNet(config)
    if linear:
        for block in backbone.blocks:
            torch.nn.init.zeros_(block.conv3.parametrizations.weight.original)
            torch.nn.init.zeros_(block.conv3.bias)
    rows = tuple(tuple(row) for row in code.coefficients.tolist())
    encoder = Encoder(EncoderConfig(INPUT_SHAPE, rows, input_channels=2, width=4, blocks=1))
    if not linear:
        torch.nn.init.normal_(encoder.out.weight, std=0.05)
    heads = {
        "label": DenseHead(backbone.embedding_shape, 10, hidden=8),
        "parity": DenseHead(backbone.embedding_shape, 2, hidden=4),
    }
    return CodedModel.from_modules(
        name=name,
        code=code,
        backbone=backbone,
        heads=heads,
        encoder=encoder,
        anchors_queries=torch.rand(code.k + 2, *INPUT_SHAPE),
        metadata={
            "provenance": {"data_set": "fashion-mnist", "recipe": "random weights"},
            "metrics": {"A_d": 50.0, "floor": 10.0},  # else a server would not reconstruct
        },
    )


@pytest.fixture(scope="session")
def make_small_model() -> Callable[..., CodedModel]:
    """`build_small_model`, for tests that want a code of their own."""
    return build_small_model


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved (5, 4) bundle; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return build_small_model(Code.uniform(4)).save(folder)


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of IDX files: 60 of the bundled test images as test set, 100 as training set."""
    folder = tmp_path_factory.mktemp("idx")
    images, labels = load_test_images()
    for split, part in (("t10k", slice(0, 60)), ("train", slice(60, 160))):
        for name, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            write_idx(folder / f"{split}-{name}-ubyte", array.astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def triton_repository(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Path:
    """A Triton model repository with the small bundle, named "small"."""
    from codedinv.triton_repo import write_repository

    repository = tmp_path_factory.mktemp("repository")
    write_repository(CodedModel.load(small_bundle), repository)
    return repository


@pytest.fixture(scope="session")
def triton_endpoint(
    tmp_path_factory: pytest.TempPathFactory, triton_repository: Path, small_bundle: Path
) -> Iterator[object]:
    """A real Triton with that model, as tests/gateway/test_client_api.py wants it."""
    from tests import triton_servers
    from tests.gateway.servers import Endpoint

    if reason := triton_servers.missing():
        pytest.skip(reason)
    model = CodedModel.load(small_bundle)
    with triton_servers.running(1, triton_repository, tmp_path_factory.mktemp("log")) as (triton,):
        yield Endpoint(
            http=f"127.0.0.1:{triton.http_port}",
            grpc=f"127.0.0.1:{triton.grpc_port}",
            model="small",
            input_name="query",
            input_shape=model.input_shape,
            output_name="embedding",
            expected=model.embed,
        )
