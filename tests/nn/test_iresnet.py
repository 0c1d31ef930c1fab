"""The invertible backbone: round trips, certificates and refusals."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from codedinv.errors import NotConverged
from codedinv.nn import IResNet, IResNetConfig, StageConfig, build_backbone, macs
from codedinv.nn.lipschitz import operator_norm


def _baked() -> IResNet:
    """A fresh copy of one baked network; certifying it anew for every test would take seconds."""
    return copy.deepcopy(_baked_once())


@functools.cache
def _baked_once() -> IResNet:
    return _network().bake()[0]


def _network(
    shape: tuple[int, int, int] = (1, 28, 28),
    stages: tuple[StageConfig, ...] = (StageConfig(2, 8), StageConfig(2, 16)),
    padding: int = 0,
) -> IResNet:
    torch.manual_seed(5)
    channels = shape[0]
    config = IResNetConfig(
        shape, stages, mean=(0.3,) * channels, std=(0.35,) * channels, padding=padding
    )
    network = IResNet(config)
    with torch.no_grad():
        for block in network.blocks:
            for convolution in (block.conv1, block.conv2, block.conv3):
                convolution.parametrizations.weight.original.mul_(4)
    network(torch.rand(2, *shape))
    return network


@pytest.mark.parametrize(
    ("shape", "stages", "padding", "embedding"),
    [
        ((1, 28, 28), (StageConfig(2, 8), StageConfig(2, 16)), 0, (16, 7, 7)),
        ((1, 28, 28), (StageConfig(1, 8), StageConfig(1, 8), StageConfig(1, 8, 7)), 0, (784, 1, 1)),
        ((1, 28, 28), (StageConfig(1, 8), StageConfig(1, 8), StageConfig(1, 8)), 2, (64, 4, 4)),
        ((3, 32, 32), (StageConfig(1, 8, 1), StageConfig(1, 8), StageConfig(1, 8)), 0, (48, 8, 8)),
    ],
)
def test_the_inverse_of_the_baked_network_returns_every_query(
    shape: tuple[int, int, int],
    stages: tuple[StageConfig, ...],
    padding: int,
    embedding: tuple[int, int, int],
) -> None:
    plain, _ = _network(shape, stages, padding).bake()
    queries = torch.rand(7, *shape)
    with torch.no_grad():
        z = plain(queries)
    assert tuple(z.shape[1:]) == plain.embedding_shape == embedding
    back, stat = plain.inverse(z)
    assert (back - queries).abs().max() < 1e-4
    assert bool(stat.converged.all())
    assert stat.iterations.shape == (7,)
    assert bool((stat.residual <= 1e-6).all())


def test_baked_weights_are_plain_certified_and_give_the_same_embedding() -> None:
    network = _network().eval()
    plain, certificates = network.bake()
    assert not any("parametrizations" in name for name in plain.state_dict())
    for block, proofs in zip(plain.blocks, certificates, strict=True):
        for name, proof in proofs.items():
            sigma = operator_norm(getattr(block, name).weight, block.spatial).sigma
            assert sigma <= 0.9
            assert sigma == pytest.approx(proof.sigma, rel=1e-5)
    queries = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        # The running power iteration may stop a little below the true norm; baking corrects it.
        error = (plain(queries) - network(queries)).norm() / network(queries).norm()
    assert error < 0.05


def test_a_branch_that_is_no_contraction_raises_instead_of_looping() -> None:
    plain = _baked()
    with torch.no_grad():
        plain.blocks[1].conv1.weight.mul_(40)
        z = plain(torch.rand(4, 1, 28, 28))
    with pytest.raises(NotConverged, match="of 4 samples"):
        plain.inverse(z, max_iter=60)


def test_a_nan_embedding_raises_and_does_not_pass_for_converged() -> None:
    plain = _baked()
    z = torch.rand(2, 16, 7, 7)
    z[1, 0, 0, 0] = float("nan")
    with pytest.raises(NotConverged, match="1 of 2 samples"):
        plain.inverse(z, max_iter=60)


def test_samples_stop_iterating_one_by_one() -> None:
    plain = _baked()
    queries = torch.stack([torch.full((1, 28, 28), 0.3), torch.rand(1, 28, 28)])
    with torch.no_grad():
        z = plain(queries)
    _, together = plain.inverse(z)
    alone = [plain.inverse(z[i : i + 1])[1].iterations.item() for i in range(2)]
    assert together.iterations.tolist() == alone


def test_the_tolerance_is_clamped_to_what_the_dtype_reaches() -> None:
    plain = _baked()
    with torch.no_grad():
        z = plain(torch.rand(3, 1, 28, 28))
    _, stat = plain.inverse(z, tol=0.0)
    assert bool(stat.converged.all())
    back, _ = plain.double().inverse(plain(torch.rand(3, 1, 28, 28).double()).detach(), tol=0.0)
    assert back.dtype == torch.float64


def test_a_config_survives_json() -> None:
    network = _network()
    again = build_backbone(network.config_dict())
    assert again.config == network.config


def test_wrong_shapes_and_settings_are_named() -> None:
    plain = _baked()
    with pytest.raises(ValueError, match=r"z: expected \(B, \*\(16, 7, 7\)\)"):
        plain.inverse(torch.rand(2, 16, 8, 8))
    with pytest.raises(ValueError, match="coefficient"):
        IResNetConfig((1, 28, 28), (StageConfig(1, 8),), coefficient=1.0)
    with pytest.raises(ValueError, match="divisible"):
        IResNetConfig((1, 28, 28), (StageConfig(1, 8, 8),))
    with pytest.raises(ValueError, match="mean, std"):
        IResNetConfig((3, 32, 32), (StageConfig(1, 8),))
    with pytest.raises(ValueError, match="kind"):
        build_backbone({"kind": "transformer"})


def test_macs_are_counted_by_hand_for_one_block() -> None:
    network = IResNet(IResNetConfig((1, 4, 4), (StageConfig(1, 8),)), bounded=False)
    assert macs(network, torch.zeros(1, 1, 4, 4)) == 4 * (4 * 8 * 9 + 8 * 8 + 8 * 4 * 9)
