"""The dispatch between torch and the kernels: each branch gives the same answer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from codedinv.kernels import reference
from codedinv.kernels.testing import cast, draw_blocks, draw_images, relative_error
from codedinv.kernels.tuning import Stage
from codedinv.nn import functional

SMALL = Stage(4, 4, 4, 16)
CPU = torch.device("cpu")


def draw(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, list[functional.Block]]:
    return draw_images(SMALL, 3).to(dtype), cast(draw_blocks(SMALL, 2), dtype, CPU)


def test_auto_on_the_cpu_is_torch() -> None:
    x, blocks = draw()
    assert functional.chosen_backend("forward", x, blocks, "auto") == "torch"
    assert functional.chosen_backend("inversion", x, blocks, "auto") == "torch"


def test_the_torch_backend_is_the_reference() -> None:
    x, blocks = draw()
    y = functional.residual_block(x, *blocks[0], backend="torch")
    assert relative_error(y, reference.residual_blocks(x, blocks[:1])) < 1e-6
    y = functional.residual_blocks(x, blocks, "torch")
    assert relative_error(y, reference.residual_blocks(x, blocks)) < 1e-6


def test_an_inverse_in_torch_finds_what_was_sent() -> None:
    x, blocks = draw()
    y = reference.residual_blocks(x, blocks)
    found, iterations, residual, converged = functional.invert(y, blocks, 1e-6, 100, "torch")
    assert relative_error(found, x) < 1e-5
    assert converged.all()
    assert (residual <= 1e-6).all()
    assert iterations.dtype == torch.int64
    assert (iterations >= 2 * len(blocks)).all()


def test_an_image_that_does_not_converge_is_flagged() -> None:
    x, blocks = draw()
    x[1] = float("nan")
    _, _, residual, converged = functional.invert(x, blocks, 1e-6, 20, "torch")
    assert converged.tolist() == [True, False, True]
    assert residual[1] == float("inf")


def test_an_unknown_backend_is_refused() -> None:
    x, blocks = draw()
    with pytest.raises(ValueError, match='backend: expected "auto", "torch" or "triton", got'):
        functional.residual_blocks(x, blocks, backend="cuda")  # type: ignore[arg-type]


def test_triton_on_cpu_tensors_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    # Tests of the kernels in this process may have set it; the interpreter does take CPU tensors.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, blocks = draw()
    with pytest.raises(ValueError, match=r"triton cannot run this: device cpu \(kernels run on"):
        functional.residual_blocks(x, blocks, backend="triton")


INTERPRETED = """
import copy
import sys
import torch
from codedinv.kernels import reference, testing
from codedinv.kernels.tuning import Stage
from codedinv.nn import IResNet, IResNetConfig, StageConfig, functional

# Kernels are imported by the first launch, so their presence proves one.
forward = "codedinv.kernels.residual"
network, _ = IResNet(IResNetConfig((1, 8, 8), (StageConfig(1, 16), StageConfig(2, 16)))).bake()
queries = torch.rand(2, 1, 8, 8)
with torch.no_grad():
    expected = network(queries)
    assert forward not in sys.modules
    network.backend = "triton"
    z = network(queries)
    assert forward in sys.modules
    assert testing.relative_error(z, expected) < 1e-5

    import codedinv.kernels.inversion as inversion
    launched, launch = [], inversion.launch_inversion
    inversion.launch_inversion = lambda *arguments: launched.append(1) or launch(*arguments)
    back, stat = network.inverse(z, tol=1e-5)
    assert len(launched) == 2 and bool(stat.converged.all())
    assert testing.relative_error(back, queries) < 1e-4

    # Stages are packed once, and anew when a weight has changed, in place or by another.
    def handle_now():
        pairs = [(block.weights, block.leading_elu) for block in network.blocks[1:]]
        return network.handles.get(4, pairs, z)

    handle = handle_now()
    network(queries)
    assert handle_now() is handle
    for change in (
        lambda weight: weight.mul_(0.5),
        lambda weight: setattr(weight, "data", 3 * weight.data),
        lambda _: setattr(network.blocks[2], "conv2", torch.nn.Conv2d(16, 16, 1)),
        lambda _: network.load_state_dict({k: -v for k, v in network.state_dict().items()}),
    ):
        change(network.blocks[2].conv2.weight)
        changed = network(queries)
        network.backend = "torch"
        assert testing.relative_error(changed, network(queries)) < 1e-5
        network.backend = "triton"
    assert handle_now() is not handle
    assert not copy.deepcopy(network).handles._kept

# With gradients on, the operator that has them runs instead.
network(queries).square().sum().backward()
assert all(parameter.grad.any() for parameter in network.parameters())

blocks = testing.cast(testing.draw_blocks(Stage(4, 4, 4, 16), 2), torch.float32)
x = testing.draw_images(Stage(4, 4, 4, 16), 3).float().to(testing.DEVICE)
assert functional.chosen_backend("forward", x, blocks, "triton") == "triton"
y = functional.residual_blocks(x, blocks, backend="triton")
exact = testing.cast(blocks, torch.float64)
assert testing.relative_error(y, reference.residual_blocks(x.double(), exact)) < 1e-5
found, iterations, residual, converged = functional.invert(y, blocks, 1e-5, 100, "triton")
assert testing.relative_error(found, x) < 1e-4
_, steps, _, _ = functional.invert(y, blocks, 1e-5, 100, "torch")
assert (iterations - steps).abs().max() <= len(blocks)
assert converged.all()
print("ran on triton")
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_triton_backend_runs_the_kernels_also_for_a_whole_network() -> None:
    """Interpreted, in a process of its own, whatever this one has decided."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ran on triton\n"


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import logging
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
import torch
from codedinv import kernels
from codedinv.kernels import testing
from codedinv.kernels.tuning import Stage
from codedinv.nn import functional

stage = Stage(4, 4, 4, 16)
blocks = testing.cast(testing.draw_blocks(stage), torch.float32)
x = testing.draw_images(stage, 2).float().to(testing.DEVICE)
kernels.residual_block(x, *blocks[0])
functional.residual_blocks(x, blocks)
try:
    functional.residual_blocks(x, blocks, backend="triton")
except ValueError as error:
    print(error)
"""


@pytest.mark.timeout(400)
def test_without_triton_everything_runs_in_torch_and_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "INFO codedinv.kernels falls back to torch: triton is not installed",
        "backend: triton cannot run this: triton is not installed",
    ]


def test_auto_leaves_gradients_and_autocast_to_torch() -> None:
    x, blocks = draw()
    weights = blocks[0][0]
    assert not functional._needs_torch(x, weights)
    assert functional._needs_torch(x.requires_grad_(), weights)
    with torch.no_grad():
        assert not functional._needs_torch(x, weights)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional._needs_torch(x, weights)


def test_importing_the_dispatch_compiles_no_kernel() -> None:
    code = "import sys, codedinv.nn.functional; print('codedinv.kernels.residual' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
