"""The operators as torch sees them: schema, fake kernels, gradients, packing, one node."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from codedinv import kernels
from codedinv.kernels import reference, streams
from codedinv.kernels.packing import PackCache, pack
from codedinv.kernels.testing import DEVICE, cast, draw_blocks, draw_images, relative_error
from codedinv.kernels.tuning import Stage

SMALL = Stage(4, 4, 4, 16)


def draw(dtype: torch.dtype, blocks: int = 2) -> tuple[Tensor, list[Tensor], list[bool]]:
    drawn = cast(draw_blocks(SMALL, blocks), dtype)
    flat = [tensor for weights, _ in drawn for tensor in weights]
    return draw_images(SMALL, 2).to(DEVICE, dtype), flat, [flag for _, flag in drawn]


def as_blocks(flat: list[Tensor], leading: list[bool]) -> list[reference.Block]:
    return [(tuple(flat[6 * i : 6 * i + 6]), flag) for i, flag in enumerate(leading)]  # type: ignore[misc]


def test_the_forward_operator_keeps_torchs_contracts() -> None:
    x, flat, leading = draw(torch.float32, blocks=1)
    inputs = [x.requires_grad_(), [tensor.requires_grad_() for tensor in flat], leading]
    torch.library.opcheck(torch.ops.codedinv.residual_blocks, inputs)


def test_the_inversion_operator_keeps_torchs_contracts() -> None:
    y, flat, leading = draw(torch.float32, blocks=1)
    arguments = (y.requires_grad_(), [t.requires_grad_() for t in flat], leading, 1e-3, 50, False)
    torch.library.opcheck(torch.ops.codedinv.invert, arguments)


def test_gradients_of_the_forward_are_the_oracles() -> None:
    x, flat, leading = draw(torch.float32)
    tensors = [x, *flat]
    for tensor in tensors:
        tensor.requires_grad_()
    kernels.residual_blocks(x, as_blocks(flat, leading)).square().sum().backward()
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    reference.residual_blocks(exact[0], as_blocks(exact[1:], leading)).square().sum().backward()
    for tensor, expected in zip(tensors, exact, strict=True):
        assert relative_error(tensor.grad, expected.grad) < 1e-4


def test_gradients_of_the_inverse_are_those_of_the_implicit_function() -> None:
    """Against automatic differentiation through 120 unrolled iterations in float64."""
    y, flat, leading = draw(torch.float64)
    tensors = [y, *flat]
    for tensor in tensors:
        tensor.requires_grad_()
    x, _, _ = kernels.invert(y, as_blocks(flat, leading), tol=1e-13, max_iter=300)
    x.pow(3).sum().backward()
    exact = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    state = exact[0]
    for weights, flag in reversed(as_blocks(exact[1:], leading)):
        goal = state
        for _ in range(120):
            state = goal - reference.residual_branch(state, weights, flag)
    state.pow(3).sum().backward()
    for tensor, expected in zip(tensors, exact, strict=True):
        assert relative_error(tensor.grad, expected.grad) < 1e-9


def test_torch_export_sees_one_node() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            _, flat, self.leading = draw(torch.float32)
            self.parts = torch.nn.ParameterList(flat)

        def forward(self, x: Tensor) -> Tensor:
            return kernels.residual_blocks(x, as_blocks(list(self.parts), self.leading))

    x, _, _ = draw(torch.float32)
    program = torch.export.export(Network(), (x,))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [str(target) for target in called] == ["codedinv.residual_blocks.default"]


def second_derivative(run: Callable[[Tensor, list[reference.Block]], Tensor]) -> None:
    """Of a gradient penalty."""
    x, flat, leading = draw(torch.float32, blocks=1)
    y = run(x.requires_grad_(), as_blocks(flat, leading))
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    grad.square().sum().backward()


def test_a_second_derivative_is_refused_and_never_silently_wrong() -> None:
    second_derivative(reference.residual_blocks)
    for run in (kernels.residual_blocks, lambda y, blocks: kernels.invert(y, blocks)[0]):
        with pytest.raises(NotImplementedError, match="second derivatives are not implemented"):
            second_derivative(run)


def test_weights_are_packed_once_until_they_change() -> None:
    cache = PackCache()
    _, flat, leading = draw(torch.float32)
    blocks = as_blocks(flat, leading)
    first = cache.get(blocks, torch.float32)
    assert cache.get(as_blocks([t.detach() for t in flat], leading), torch.float32) is first
    assert cache.get(blocks, torch.bfloat16) is not first
    flat[0].mul_(2)
    changed = cache.get(blocks, torch.float32)
    assert torch.equal(changed.w1[0], 2 * first.w1[0])


def test_weights_at_one_address_are_told_apart_by_their_strides() -> None:
    cache = PackCache()
    _, flat, leading = draw(torch.float32, blocks=1)
    first = cache.get(as_blocks(flat, leading), torch.float32)
    turned = [*flat[:2], flat[2].transpose(0, 1), *flat[3:]]
    assert torch.equal(cache.get(as_blocks(turned, leading), torch.float32).w2, first.w2.mT)


def test_the_cache_forgets_the_oldest_and_what_changed() -> None:
    cache = PackCache(size=1)
    _, flat, leading = draw(torch.float32)
    first = cache.get(as_blocks(flat, leading), torch.float32)
    cache.get(as_blocks(flat, leading), torch.float16)
    assert cache.get(as_blocks(flat, leading), torch.float32) is not first
    cache = PackCache()
    for _ in range(3):
        cache.get(as_blocks(flat, leading), torch.float32)
        flat[0].mul_(2)
    assert len(cache) == 1


def test_weights_that_a_graph_replays_are_kept_though_they_change_and_others_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = PackCache(size=1)
    _, flat, leading = draw(torch.float32)
    blocks = as_blocks(flat, leading)
    replayed = weakref.ref(cache.get(blocks, torch.float32))
    monkeypatch.setattr(streams, "capturing", lambda _: True)
    cache.get(blocks, torch.float32)
    # Packed within the capture: the graph's own, and nothing before it is replayed.
    within = weakref.ref(cache.get(blocks, torch.float16))
    monkeypatch.undo()
    flat[0].mul_(2)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cache.get(blocks, dtype)
    gc.collect()
    assert replayed() is not None
    assert within() is None


class Stream:
    """A CUDA stream as far as packed weights care."""

    def __init__(self) -> None:
        self.waited: list[str] = []

    def wait_event(self, event: str) -> None:
        self.waited.append(event)


def test_another_stream_waits_for_weights_and_is_recorded_as_their_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home, other = Stream(), Stream()
    recorded = []
    tensor = SimpleNamespace(device=DEVICE, record_stream=recorded.append)
    ready = streams.Ready(home, "packed")  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for stream in (home, other):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _, stream=stream: stream)
        streams.use([tensor], ready)  # type: ignore[list-item]
    assert (home.waited, other.waited, recorded) == ([], ["packed"], [other])


def test_threads_may_share_the_cache() -> None:
    cache = PackCache(size=1)
    _, flat, leading = draw(torch.float32, blocks=1)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)

    def work(turn: int) -> None:
        for i in range(40):
            cache.get(as_blocks(flat, leading), dtypes[(i + turn) % 3])

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, turn) for turn in range(3)]:
            done.result()
    assert len(cache) == 1


def test_packing_pads_with_zeros_and_keeps_every_weight() -> None:
    drawn = draw_blocks(Stage(3, 4, 4, 96))
    packed = pack(drawn, torch.float64)
    assert packed.w1.shape == (1, 1, 64, 128)
    assert packed.w2.shape == (1, 1, 128, 128)
    assert packed.w3.shape == (1, 1, 128, 64)
    w1, _, w2, _, w3, _ = drawn[0][0]
    for original, stored in ((w1, packed.w1), (w2, packed.w2), (w3, packed.w3)):
        assert stored.square().sum().item() == pytest.approx(original.square().sum().item())
    # Tap (0, 2), channel 1 of the input: row 2 * 4 + 1. Of the output: column 2 * 3 + 1.
    assert torch.equal(packed.w1[0, 0, 9, :96], w1[:, 1, 0, 2])
    assert torch.equal(packed.w3[0, 0, :96, 7], w3[1, :, 0, 2])


def test_float32_weights_are_packed_as_three_parts_that_add_up() -> None:
    drawn = draw_blocks(Stage(3, 4, 4, 32))
    packed = pack(drawn, torch.float32)
    assert packed.parts == 3
    assert packed.w1.dtype == torch.bfloat16
    total = packed.w1.double().sum(dim=1)
    assert relative_error(total, pack(drawn, torch.float64).w1[:, 0]) < 2**-24


def test_blocks_of_different_shapes_are_not_packed_together() -> None:
    blocks = [*draw_blocks(SMALL), *draw_blocks(Stage(4, 4, 4, 32))]
    with pytest.raises(ValueError, match=r"blocks\[1\]: expected shapes"):
        pack(blocks, torch.float32)
