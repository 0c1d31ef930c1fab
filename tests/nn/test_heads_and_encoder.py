"""Heads and the encoder: shapes, symmetry, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from codedinv.coding import Code
from codedinv.nn import Encoder, EncoderConfig, build_encoder, build_head, macs
from codedinv.nn.encoder import PatchConv2d


@pytest.mark.parametrize(
    ("channels", "patch", "sides"), [(1, 4, (28, 28)), (3, 2, (8, 12)), (2, 1, (5, 6))]
)
def test_a_convolution_of_patches_is_one_of_pixels(
    channels: int, patch: int, sides: tuple[int, int]
) -> None:
    """The layer that reads the queries never makes patches, and gives what it would of them."""
    layer = PatchConv2d(channels, 7, patch)
    x = torch.randn(5, channels, *sides)
    patches = torch.nn.functional.pixel_unshuffle(x, patch)
    expected = torch.nn.functional.conv2d(patches, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert macs(layer, x[:1]) == expected[0].numel() * layer.weight[0].numel()


def _encoder(code: Code, **changes: Any) -> Encoder:
    torch.manual_seed(2)
    rows = tuple(tuple(row) for row in code.coefficients.tolist())
    encoder = Encoder(EncoderConfig((1, 28, 28), rows, **changes))
    torch.nn.init.normal_(encoder.out.weight, std=0.1)
    return encoder.eval()


@pytest.mark.parametrize("kind", ["pool", "linear", "dense", "conv"])
def test_every_head_maps_embeddings_to_outputs_and_survives_json(kind: str) -> None:
    head = build_head({"kind": kind, "embedding_shape": [16, 7, 7], "outputs": 5}).eval()
    assert head(torch.rand(3, 16, 7, 7)).shape == (3, 5)
    again = build_head(head.config_dict())
    again.load_state_dict(head.state_dict())


def test_equal_coefficients_make_the_order_of_queries_irrelevant() -> None:
    encoder = _encoder(Code.uniform(5))
    queries = torch.rand(2, 5, 1, 28, 28)
    shuffled = queries[:, torch.randperm(5)]
    torch.testing.assert_close(encoder(queries), encoder(shuffled), rtol=1e-4, atol=1e-5)


def test_each_parity_query_follows_its_own_row() -> None:
    code = Code.mds(3, 2)
    queries = torch.rand(4, 3, 1, 28, 28)
    both = _encoder(code)(queries)
    assert both.shape == (4, 2, 1, 28, 28)
    for i in range(2):
        single = _encoder(Code(code.coefficients[i : i + 1]))(queries)
        torch.testing.assert_close(both[:, i : i + 1], single, rtol=1e-4, atol=1e-5)


def test_the_trunks_cost_does_not_depend_on_k() -> None:
    cost = {k: macs(_encoder(Code.uniform(k)), torch.zeros(1, k, 1, 28, 28)) for k in (2, 4, 10)}
    assert (cost[10] - cost[2]) == 4 * (cost[4] - cost[2])


def test_an_untrained_encoder_gives_the_weighted_sum() -> None:
    encoder = build_encoder(_encoder(Code.uniform(4)).config_dict())
    queries = torch.rand(2, 4, 1, 28, 28)
    torch.testing.assert_close(encoder(queries)[:, 0], queries.mean(1))


# As the bundles of k = 4 and 10 have it: every layer is one that ONNX Runtime does at once.
QUICK: dict[str, Any] = {"margin": 2, "separable": True, "activation": "silu"}


def test_a_quick_encoder_is_still_an_encoder() -> None:
    code = Code.uniform(5)
    encoder = _encoder(code, input_channels=6, width=12, **QUICK)
    queries = torch.rand(2, 5, 1, 28, 28)
    shuffled = queries[:, torch.randperm(5)]
    torch.testing.assert_close(encoder(queries), encoder(shuffled), rtol=1e-4, atol=1e-5)
    again = build_encoder(encoder.config_dict())
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again(queries), encoder(queries))
    assert not torch.allclose(encoder(queries)[:, 0], queries.mean(1)), "what it learns counts"


@pytest.mark.parametrize("margin", [0, 1, 2])
def test_a_feature_sees_its_patch_and_the_margin(margin: int) -> None:
    layer = _encoder(Code.uniform(2), margin=margin).per_query
    x = torch.zeros(1, 1, 28, 28, requires_grad=True)
    layer(x)[0, 0, 3, 4].backward()  # the patch of rows 12 to 15, columns 16 to 19
    assert x.grad is not None
    rows, columns = (x.grad[0, 0] != 0).nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max())) == (12 - margin, 15 + margin)
    assert (int(columns.min()), int(columns.max())) == (16 - margin, 19 + margin)


def test_separable_convolutions_are_the_cheaper_ones() -> None:
    group = torch.zeros(1, 4, 1, 28, 28)
    dense, separable = (
        macs(_encoder(Code.uniform(4), width=48, separable=is_separable), group)
        for is_separable in (False, True)
    )
    assert dense - separable == 4 * 7 * 7 * 48 * (9 * 48 - 9 - 48)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="margin: expected None or, for images, 0 or more, got -1"):
        EncoderConfig((1, 28, 28), ((0.5, 0.5),), margin=-1)
    with pytest.raises(ValueError, match="margin: expected None"):
        EncoderConfig((6, 100), ((0.5, 0.5),), margin=2)
    with pytest.raises(ValueError, match=r"activation: expected one of .*, got 'relu'"):
        EncoderConfig((1, 28, 28), ((0.5, 0.5),), activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patch"):
        EncoderConfig((1, 28, 28), ((0.5, 0.5),), patch=3)
    with pytest.raises(ValueError, match="coefficients"):
        EncoderConfig((1, 28, 28), ((0.5, 0.5), (1.0,)))
    with pytest.raises(ValueError, match="kind"):
        build_head({"kind": "wide"})
