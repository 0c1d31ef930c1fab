"""What the decoder accepts, and that what it refuses leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codedinv import Code, StreamingDecoder

SHAPE = (2, 3)
NUMPY = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
VALUES = np.array([[1.0, -2.0, 0.5], [4.0, 0.25, -8.0]])  # exact in every dtype


class OldDlpack:
    """A producer of the plain protocol only, like most array libraries."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **_: Any) -> Any:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


class NewDlpack(OldDlpack):
    """A producer of versioned capsules."""

    def __dlpack__(self, **_: Any) -> Any:
        return self.tensor.__dlpack__(max_version=(1, 0))


def pushed(embedding: Any, dtype: Any) -> NDArray[np.float64]:
    """What the decoder took from `embedding`: for k = 1 the negative of its estimate."""
    decoder = StreamingDecoder(Code([[1.0], [1.0]]), SHAPE, dtype)
    decoder.push(1, embedding)
    return decoder.recover()[0].astype(np.float64)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize(
    "form",
    [
        lambda a: a,
        lambda a: np.asfortranarray(a),
        lambda a: np.stack([a, a], axis=-1)[..., 0],
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.broadcast_to(a, (4, *SHAPE))[2],
        lambda a: read_only(a),
        lambda a: unaligned(a),
    ],
    ids=["plain", "fortran", "strided", "reversed", "broadcast", "read-only", "unaligned"],
)
def test_numpy_arrays_of_any_layout_are_taken(dtype: str, form: Callable[[Any], Any]) -> None:
    np.testing.assert_array_equal(pushed(form(VALUES.astype(NUMPY[dtype])), dtype), VALUES)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("wrap", [lambda t: t, OldDlpack, NewDlpack])
@pytest.mark.parametrize(
    "form",
    [
        lambda t: t,
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], dim=-1)[..., 1],
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(SHAPE),
        lambda t: t.expand(4, *SHAPE)[3],
    ],
    ids=["plain", "transposed", "strided", "offset", "expanded"],
)
def test_torch_and_dlpack_of_any_layout_are_taken(
    dtype: str, wrap: Callable[[Any], Any], form: Callable[[Any], Any]
) -> None:
    tensor = form(torch.tensor(VALUES, dtype=getattr(torch, dtype)))
    np.testing.assert_array_equal(pushed(wrap(tensor), dtype), VALUES)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16), torch.bfloat16]
)
def test_a_dtype_may_be_named_in_any_library(dtype: Any) -> None:
    assert StreamingDecoder(Code.uniform(2), 4, dtype).dtype == ml_dtypes.bfloat16


def test_slots_may_be_any_integer() -> None:
    decoder = StreamingDecoder(Code.uniform(2), 1)
    decoder.push(np.int64(1), np.ones(1, np.float32))
    decoder.push(torch.tensor(0), np.ones(1, np.float32))
    assert decoder.missing == []


def test_tensors_of_autograd_and_inference_mode_are_read_as_they_are() -> None:
    with torch.inference_mode():
        inference = torch.tensor(VALUES, dtype=torch.float32)
    parameter = torch.nn.Parameter(torch.tensor(VALUES, dtype=torch.float32))
    for tensor in (inference, parameter):
        np.testing.assert_array_equal(pushed(tensor, "float32"), VALUES)


def test_tensors_of_any_number_of_types_are_taken_and_negated_ones_refused() -> None:
    """Only the types met first are remembered."""
    for index in range(20):
        kind = type(f"Tensor{index}", (torch.Tensor,), {})
        tensor = torch.tensor(VALUES, dtype=torch.float32).as_subclass(kind)
        for _ in range(2):
            np.testing.assert_array_equal(pushed(tensor, "float32"), VALUES)
            with pytest.raises(ValueError, match=r"call resolve_neg\(\)"):
                pushed(torch._neg_view(tensor), "float32")


GOOD = VALUES.astype(np.float32)
NEGATED = torch.ones(SHAPE, dtype=torch.complex64).conj().imag  # its memory has the other sign
REFUSED: list[tuple[str, Any, Any, type[Exception], str]] = [
    ("slot too large", 4, GOOD, ValueError, "slot: expected 0 to 3, got 4"),
    ("slot below zero", -1, GOOD, ValueError, "slot: expected 0 to 3, got -1"),
    ("slot of many digits", 10**30, GOOD, ValueError, "slot: expected 0 to 3, got 1000"),
    ("slot twice", 0, GOOD, ValueError, "slot: 0 already has a result"),
    ("parity twice", 3, GOOD, ValueError, "slot: 3 already has a result"),
    ("slot of text", "1", GOOD, TypeError, "integer"),
    ("slot of a fraction", 1.0, GOOD, TypeError, "integer"),
    ("shape", 1, GOOD.T, ValueError, r"expected shape \(2, 3\), got \(3, 2\)"),
    ("rank", 1, GOOD[None], ValueError, r"expected shape \(2, 3\), got \(1, 2, 3\)"),
    ("flat", 1, GOOD.ravel(), ValueError, r"expected shape \(2, 3\), got \(6,\)"),
    ("dtype", 1, VALUES, ValueError, "expected dtype float32, got float64"),
    ("int dtype", 1, VALUES.astype(np.int32), ValueError, "expected dtype float32, got int32"),
    ("byte order", 1, GOOD.astype(">f4"), ValueError, "expected dtype float32, got >f4"),
    ("bf16", 1, GOOD.astype(ml_dtypes.bfloat16), ValueError, "float32, got bfloat16"),
    ("torch dtype", 1, torch.ones(SHAPE).double(), ValueError, "float32, got float64"),
    ("torch bf16", 1, torch.ones(SHAPE).bfloat16(), ValueError, "float32, got bfloat16"),
    ("torch int", 1, torch.ones(SHAPE).int(), ValueError, "expected dtype float32, got int32"),
    ("torch bool", 1, torch.ones(SHAPE) > 0, ValueError, "expected dtype float32, got bool"),
    ("torch complex", 1, torch.ones(SHAPE) * 1j, ValueError, "float32, got complex64"),
    ("torch shape", 1, torch.ones(6), ValueError, r"expected shape \(2, 3\), got \(6,\)"),
    ("torch meta", 1, torch.ones(SHAPE, device="meta"), ValueError, "embedding: "),
    ("torch sparse", 1, torch.ones(SHAPE).to_sparse(), ValueError, "embedding: "),
    ("torch negated", 1, NEGATED, ValueError, r"call resolve_neg\(\)"),
    ("list", 1, VALUES.tolist(), TypeError, "expected a numpy array, a torch .* got list"),
    ("none", 1, None, TypeError, "got NoneType"),
]


@pytest.mark.parametrize(
    ("slot", "embedding", "error", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_a_refused_push_says_why_and_leaves_no_trace(
    slot: Any, embedding: Any, error: type[Exception], message: str
) -> None:
    decoder, untouched = [StreamingDecoder(Code.uniform(3), SHAPE) for _ in range(2)]
    for each in (decoder, untouched):
        each.push(0, GOOD)
        each.push(3, 2 * GOOD)
    with pytest.raises(error, match=message):
        decoder.push(slot, embedding)
    assert same_state(decoder, untouched)


def freed(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` when its storage was given back, as sharding libraries do between uses."""
    tensor.untyped_storage().resize_(0)
    return tensor


def fake() -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(SHAPE)


WITHOUT_MEMORY: dict[str, Callable[[], Any]] = {
    "freed": lambda: freed(torch.ones(SHAPE)),
    "view into a freed storage": lambda: freed(torch.ones(4, *SHAPE)[3]),
    "far view into a freed storage": lambda: freed(torch.ones(9000)[4096:4102].view(SHAPE)),
    "freed, transposed": lambda: freed(torch.ones(3, 2).t()),
    "far view, by capsule": lambda: OldDlpack(freed(torch.ones(4, *SHAPE)[3])),
    "freed, by capsule": lambda: OldDlpack(freed(torch.ones(SHAPE))),
    "fake": fake,
    "functional": lambda: torch._to_functional_tensor(torch.ones(SHAPE)),
    "zero": lambda: torch._efficientzerotensor(SHAPE),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", WITHOUT_MEMORY.values(), ids=WITHOUT_MEMORY)
def test_a_tensor_without_memory_is_refused(make: Callable[[], Any]) -> None:
    decoder, untouched = [StreamingDecoder(Code.uniform(3), SHAPE) for _ in range(2)]
    with pytest.raises(ValueError, match="embedding: "):
        decoder.push(0, make())
    assert same_state(decoder, untouched)


@pytest.mark.parametrize("shape", [(2**62,), (2**62 + 1, 4), (2**61,), (2**32, 2**32), (2**60,)])
@pytest.mark.parametrize("dtype", NUMPY)
def test_a_shape_that_no_address_space_holds_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    with pytest.raises(ValueError, match=r"address space|2\*\*64 elements"):
        StreamingDecoder(Code.mds(4, 2), shape, dtype)


def test_a_masked_array_is_refused() -> None:
    masked = np.ma.masked_array(GOOD, mask=GOOD > 0)
    with pytest.raises(ValueError, match="expected an array without mask"):
        StreamingDecoder(Code.uniform(2), SHAPE).push(0, masked)


def test_a_decoder_is_made_once_and_used_after() -> None:
    unmade = StreamingDecoder.__new__(StreamingDecoder)
    for use in (
        lambda: unmade.ready,
        lambda: unmade.missing,
        lambda: unmade.shape,
        lambda: unmade.push(0, GOOD),
        lambda: unmade.reset(),
        lambda: unmade.residual(),
        lambda: unmade.recover(),
    ):
        with pytest.raises(TypeError, match="__init__ was not called"):
            use()
    decoder = StreamingDecoder(Code.uniform(2), SHAPE)
    with pytest.raises(TypeError, match="a second time"):
        decoder.__init__(Code.uniform(3), SHAPE)  # type: ignore[misc]
    assert decoder.code == Code.uniform(2)


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((), {}, "missing argument 'slot'"),
        ((0,), {}, "missing argument 'embedding'"),
        ((0, GOOD, False), {}, "got 3 positional arguments"),
        ((0, GOOD), {"slot": 1}, "unexpected or repeated argument 'slot'"),
        ((0, GOOD), {"chek": False}, "unexpected or repeated argument 'chek'"),
    ],
)
def test_a_push_of_wrong_arguments_is_refused(
    arguments: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        StreamingDecoder(Code.uniform(2), SHAPE).push(*arguments, **named)


def test_arguments_may_be_named_and_the_check_left_out() -> None:
    decoder = StreamingDecoder(Code.uniform(2), SHAPE)
    decoder.push(embedding=GOOD, slot=0, check=False)
    decoder.push(1, embedding=GOOD)
    decoder.push(2, GOOD, check=True)
    np.testing.assert_array_equal(decoder.syndrome(), np.zeros((1, *SHAPE)))
    with pytest.raises(ValueError, match="pushed without a check"):
        decoder.residual()


def test_a_nan_pushed_without_a_check_is_no_answer() -> None:
    decoder = StreamingDecoder(Code.uniform(2), SHAPE)
    decoder.push(0, GOOD)
    decoder.push(2, np.full(SHAPE, np.nan, np.float32), check=False)
    with pytest.raises(ValueError, match="one pushed without a check is not finite"):
        decoder.recover()


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("at", [0, 500, 9999])
@pytest.mark.parametrize("slot", [1, 3])
def test_one_value_that_is_not_finite_is_refused(
    dtype: str, bad: float, as_torch: bool, at: int, slot: int
) -> None:
    decoder, untouched = [StreamingDecoder(Code.uniform(3), 10_000, dtype) for _ in range(2)]
    row = np.ones(10_000, NUMPY[dtype])
    decoder.push(0, row)
    untouched.push(0, row)
    if as_torch:
        tensor = torch.ones(10_000, dtype=getattr(torch, dtype))
        tensor[at] = bad
        poisoned: Any = tensor
    else:
        poisoned = row.copy()
        poisoned[at] = bad
    with pytest.raises(ValueError, match=f"finite values, slot {slot}'s holds a NaN"):
        decoder.push(slot, poisoned)
    assert same_state(decoder, untouched)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("other", [0.0, 1.0, np.nan])
def test_a_short_row_that_is_not_finite_is_refused(dtype: str, bad: float, other: float) -> None:
    decoder = StreamingDecoder(Code.uniform(2), 3, dtype)
    for row in ([bad, other, other], [other, other, bad]):
        with pytest.raises(ValueError, match="finite values, slot 0's holds a NaN"):
            decoder.push(0, np.array(row, NUMPY[dtype]))
    assert decoder.missing == [0, 1]


def test_results_asked_for_too_early_are_refused() -> None:
    decoder = StreamingDecoder(Code.uniform(3), SHAPE)
    decoder.push(1, GOOD)
    with pytest.raises(ValueError, match="recover: expected results of any 3 slots, got 1"):
        decoder.recover()
    with pytest.raises(ValueError, match="residual: expected results of all 4 slots, got 1"):
        decoder.residual()
    with pytest.raises(ValueError, match="slot: 1 has its exact result, which the decoder does"):
        decoder.estimate(1)
    with pytest.raises(ValueError, match="slot: expected 0 to 2, got 3"):
        decoder.estimate(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("code", 4), TypeError, "code: expected a Code, got str"),
        ((Code.uniform(2), 4, "int8"), ValueError, "float64, float16, bfloat16, got 'int8'"),
        ((Code.uniform(2), 4, torch.int32), ValueError, "got torch.int32"),
        ((Code.uniform(2), 4, object()), ValueError, "dtype: expected one of float32"),
        ((Code.uniform(2), (4, 0)), ValueError, r"sizes of 1 or more, got \(4, 0\)"),
        ((Code.uniform(2), (-1,)), ValueError, r"sizes of 1 or more, got \(-1,\)"),
        ((Code.uniform(2), (2.5,)), TypeError, "integer"),
    ],
)
def test_a_decoder_of_nonsense_is_refused(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        StreamingDecoder(*arguments)


def test_another_device_is_refused_before_its_data_is_asked_for() -> None:
    class OnCuda:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError("the data was asked for")

    decoder = StreamingDecoder(Code.uniform(3), SHAPE)
    with pytest.raises(ValueError, match=r"CPU, got DLPack device type 2 \(CUDA\)"):
        decoder.push(0, OnCuda())


def test_a_producer_that_refuses_is_quoted() -> None:
    class Refusing:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("not today")

    with pytest.raises(ValueError, match="cannot be read: not today") as caught:
        StreamingDecoder(Code.uniform(3), SHAPE).push(0, Refusing())
    assert isinstance(caught.value.__cause__, BufferError)


def test_a_capsule_that_is_none_is_refused() -> None:
    class Empty(OldDlpack):
        def __dlpack__(self, **_: Any) -> Any:
            return None

    with pytest.raises(ValueError, match="no unused DLPack capsule"):
        StreamingDecoder(Code.uniform(3), SHAPE).push(0, Empty(torch.ones(SHAPE)))


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


def unaligned(array: NDArray[Any]) -> NDArray[Any]:
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def same_state(one: StreamingDecoder, other: StreamingDecoder) -> bool:
    return one.missing == other.missing and all(
        np.array_equal(one.estimate(slot), other.estimate(slot)) for slot in one.missing
    )
