"""ONNX export: what is written equals torch, and what would not equal it is not written."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from codedinv.errors import BundleError
from codedinv.model.export import OPSET, relative_error, to_onnx


class Branch(nn.Module):
    """What our networks are made of: space-to-depth, convolution, ELU, add, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.pixel_unshuffle(x, 2)
        z = z + self.convolution(nn.functional.elu(z))
        return self.linear(z.mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def test_the_graph_equals_torch_at_any_batch_size(images: Tensor) -> None:
    network = Branch()
    content, error = to_onnx(network, images, "query", "embedding")
    assert error < 1e-5
    session = onnxruntime.InferenceSession(content)
    for batch in (1, 7):
        x = torch.rand(batch, 1, 8, 8)
        (got,) = session.run(["embedding"], {"query": x.numpy()})
        np.testing.assert_allclose(got, network(x).detach().numpy(), atol=1e-5)


def test_the_graph_states_its_names_shapes_and_opset(images: Tensor) -> None:
    content, _ = to_onnx(Branch(), images, "query", "label")
    model = onnx.load_from_string(content)
    assert model.opset_import[0].version == OPSET
    for value, name, sizes in (
        (model.graph.input[0], "query", ["batch", 1, 8, 8]),
        (model.graph.output[0], "label", ["batch", 3]),
    ):
        dimensions = value.type.tensor_type.shape.dim
        assert value.name == name
        assert [d.dim_param or d.dim_value for d in dimensions] == sizes


def test_onnxs_own_reference_checks_where_onnx_runtime_is_missing(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert to_onnx(Branch(), images, "query", "embedding")[1] < 1e-5


class FrozenBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(int(x.shape[0]), -1) * torch.ones(int(x.shape[0]), 1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.rand_like(x)


@pytest.mark.parametrize("network", [FrozenBatch(), Noisy()])
def test_a_graph_that_differs_from_torch_is_refused(network: nn.Module, images: Tensor) -> None:
    with pytest.raises(BundleError, match=r"differs from torch|does not run"):
        to_onnx(network, images, "query", "embedding")


def test_another_networks_graph_is_found_out(images: Tensor) -> None:
    content, _ = to_onnx(Branch(), images, "query", "embedding")
    with torch.no_grad():
        expected = Branch()(images).numpy()
    assert relative_error(content, images.numpy(), expected) > 1e-3
    assert relative_error(content, images.numpy(), expected[:, :2]) == float("inf")


def test_bytes_that_are_no_graph_are_refused(images: Tensor) -> None:
    with pytest.raises(BundleError, match="does not run"):
        relative_error(b"not ONNX", images.numpy(), images.numpy())


def test_too_small_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3, got 2"):
        to_onnx(Branch(), torch.rand(2, 1, 8, 8), "query", "embedding")
