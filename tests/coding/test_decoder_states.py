"""A decoder under any sequence of calls answers as one made anew of the pushes it accepted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from codedinv import Code, StreamingDecoder
from tests.coding.test_decoder_inputs import NewDlpack, OldDlpack, freed, read_only, unaligned

SHAPES = [(), (1,), (7,), (2, 3), (3, 1, 5), (17_000,), (129, 131)]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
CODES = [Code.uniform(1), Code.uniform(3), Code.mds(2, 2), Code.mds(4, 3)]
Array = NDArray[Any]


def as_torch(array: Array) -> torch.Tensor:
    """The same values; torch takes no bfloat16 from NumPy."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def transposed(array: Array) -> torch.Tensor:
    """The same values in column-major order."""
    axes = tuple(reversed(range(array.ndim)))
    return as_torch(array.transpose(axes)).permute(axes)


def backwards(array: Array) -> Array:
    """The same values by negative strides."""
    turned = (..., *[slice(None, None, -1)] * array.ndim)
    return array[turned].copy()[turned]


# Every form in which the values of an array may come.
FORMS: dict[str, Callable[[Array], Any]] = {
    "plain": lambda a: a,
    "backwards": backwards,
    "fortran": lambda a: a.copy(order="F"),
    "strided": lambda a: np.stack([a, a], axis=-1)[..., 1],
    "broadcast": lambda a: np.broadcast_to(a, (3, *a.shape))[2, ...],
    "read-only": read_only,
    "unaligned": unaligned,
    "torch": as_torch,
    "torch strided": lambda a: torch.stack([as_torch(a)] * 3, dim=-1)[..., 1],
    "torch expanded": lambda a: as_torch(a).expand(3, *a.shape)[1],
    "torch transposed": transposed,
    "torch parameter": lambda a: torch.nn.Parameter(as_torch(a)),
    "dlpack": lambda a: OldDlpack(as_torch(a)),
    "dlpack, versioned": lambda a: NewDlpack(as_torch(a)),
}


def poisoned(array: Array, value: float) -> Array:
    array = array.copy()
    array.flat[array.size // 2] = value
    return array


def faked(array: Array) -> torch.Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(array.shape, dtype=as_torch(array).dtype)


def elsewhere(array: Array) -> Any:
    class OnAccelerator(OldDlpack):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (10, 0)  # ROCm

    return OnAccelerator(as_torch(array))


def used_up(array: Array) -> Any:
    capsule = as_torch(array).__dlpack__()
    torch.from_dlpack(capsule)

    class Used(OldDlpack):
        def __dlpack__(self, **_: Any) -> Any:
            return capsule

    return Used(as_torch(array))


# What no decoder may take, made of a good row.
BAD: dict[str, Callable[[Array], Any]] = {
    "nan": lambda a: poisoned(a, np.nan),
    "infinity": lambda a: as_torch(poisoned(a, -np.inf)),
    "infinity, backwards": lambda a: backwards(poisoned(a, np.inf)),
    "one row too many": lambda a: np.stack([a, a]),
    "one dimension too many": lambda a: a[None],
    "no element": lambda a: np.empty((0, *a.shape), a.dtype),
    "no element of torch's": lambda a: as_torch(a)[None][:0],
    "a huge shape": lambda a: np.broadcast_to(a.ravel()[0], (2**40, 3)),
    "a huge shape of torch's": lambda a: as_torch(a.ravel()[:1]).expand(2**40, 1),
    "integers": lambda a: np.ones(a.shape, np.int32),
    "complex": lambda a: torch.ones(a.shape, dtype=torch.complex64),
    "another byte order": lambda a: np.ones(a.shape, ">f4"),
    "records": lambda a: np.ones(a.shape, "f4,f4"),
    "objects": lambda a: np.full(a.shape, None),
    "a mask": lambda a: np.ma.masked_array(a, mask=False),
    "lazily negated": lambda a: torch._neg_view(as_torch(a)),
    "meta": lambda a: as_torch(a).to("meta"),
    "fake": faked,
    "functional": lambda a: torch._to_functional_tensor(as_torch(a)),
    "zero tensor": lambda a: torch._efficientzerotensor(a.shape, dtype=as_torch(a).dtype),
    "freed": lambda a: freed(as_torch(a).clone()),
    "freed, by capsule": lambda a: OldDlpack(freed(as_torch(a).clone())),
    "on an accelerator": elsewhere,
    "a used capsule": used_up,
    "a list": lambda a: a.tolist(),
    "a number": lambda a: 1.0,
    "bytes": lambda a: a.tobytes(),
    "none": lambda a: None,
}
NO_SLOTS = [-1, 7, 2**63, -(2**70), 1.0, "0", None, [0]]
# No place for rows to be recovered to.
NO_OUTS: dict[str, Callable[[Array], Any]] = {
    "read-only": read_only,
    "backwards": backwards,
    "unaligned": unaligned,
    "strided": lambda a: np.stack([a, a], axis=-1)[..., 0],
    "too small": lambda a: a[1:],
    "another dtype": lambda a: a.astype(np.int8),
    "a list": lambda a: a.tolist(),
    "a tensor": as_torch,
}


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gave, or why it was refused, in a form that compares by bits."""
    try:
        given = call()
    except ValueError as error:
        return str(error)
    if isinstance(given, dict):
        return {slot: (row.shape, row.tobytes()) for slot, row in given.items()}
    return (given.shape, str(given.dtype), given.tobytes())


class DecoderMachine(RuleBasedStateMachine):
    @initialize(
        code=st.sampled_from(CODES),
        shape=st.sampled_from(SHAPES),
        dtype=st.sampled_from(DTYPES),
        seed=st.integers(0, 2**32 - 1),
    )
    def make(self, code: Code, shape: tuple[int, ...], dtype: str, seed: int) -> None:
        self.code, self.shape, self.dtype = code, shape, dtype
        self.decoder = StreamingDecoder(code, shape, dtype)
        self.rng = np.random.default_rng(seed)
        self.accepted: dict[int, Array] = {}

    def row(self) -> Array:
        return np.asarray(self.rng.normal(size=self.shape)).astype(self.decoder.dtype)

    def anew(self) -> StreamingDecoder:
        decoder = StreamingDecoder(self.code, self.shape, self.dtype)
        for slot, row in self.accepted.items():
            decoder.push(slot, row)
        return decoder

    @precondition(lambda self: len(self.accepted) < self.code.n)
    @rule(form=st.sampled_from(list(FORMS)), which=st.integers(0, 99))
    def push(self, form: str, which: int) -> None:
        free = [slot for slot in range(self.code.n) if slot not in self.accepted]
        slot, row = free[which % len(free)], self.row()
        self.decoder.push(slot, FORMS[form](row))
        self.accepted[slot] = row

    @rule(bad=st.sampled_from(list(BAD)), which=st.integers(0, 99))
    def push_what_is_no_embedding(self, bad: str, which: int) -> None:
        with pytest.raises((ValueError, TypeError), match="embedding: "):
            self.decoder.push(which % self.code.n, BAD[bad](self.row()))

    @rule(form=st.sampled_from(list(FORMS)), slot=st.sampled_from(NO_SLOTS))
    def push_to_no_slot(self, form: str, slot: Any) -> None:
        with pytest.raises((ValueError, TypeError)):
            self.decoder.push(slot, FORMS[form](self.row()))

    @precondition(lambda self: self.accepted)
    @rule(form=st.sampled_from(list(FORMS)), which=st.integers(0, 99), check=st.booleans())
    def push_again(self, form: str, which: int, check: bool) -> None:
        slot = list(self.accepted)[which % len(self.accepted)]
        with pytest.raises(ValueError, match=f"slot: {slot} already has a result"):
            self.decoder.push(slot, FORMS[form](self.row()), check=check)

    @precondition(lambda self: self.decoder.ready and self.decoder.missing)
    @rule(more=st.integers(0, 2))
    def recover_to_rows(self, more: int) -> None:
        rows = np.full((len(self.decoder.missing) + more, *self.shape), 7, self.decoder.dtype)
        given = outcome(lambda: self.decoder.recover(out=rows))
        assert given == outcome(self.anew().recover)
        if isinstance(given, dict):
            assert [row for _, row in given.values()] == [
                row.tobytes() for row in rows[: len(given)]
            ]
        assert (rows[len(self.decoder.missing) :] == 7).all()

    @precondition(lambda self: self.decoder.ready and self.decoder.missing)
    @rule(out=st.sampled_from(list(NO_OUTS)))
    def recover_to_no_rows(self, out: str) -> None:
        rows = np.stack([self.row() for _ in self.decoder.missing])
        if rows.size == 1 and out in ("backwards", "strided"):
            return  # one element is contiguous however it lies
        with pytest.raises((ValueError, TypeError), match="out: expected"):
            self.decoder.recover(out=NO_OUTS[out](rows))

    @rule()
    def reset(self) -> None:
        self.decoder.reset()
        self.accepted = {}

    @invariant()
    def answers_as_one_made_anew(self) -> None:
        anew = self.anew()
        assert self.decoder.ready == (len(self.accepted) >= self.code.k) == anew.ready
        missing = [slot for slot in range(self.code.k) if slot not in self.accepted]
        assert self.decoder.missing == missing
        for slot in range(self.code.k):
            assert outcome(lambda s=slot: self.decoder.estimate(s)) == outcome(
                lambda s=slot: anew.estimate(s)
            )
        for name in ("recover", "syndrome"):
            assert outcome(getattr(self.decoder, name)) == outcome(getattr(anew, name))
        if len(self.accepted) == self.code.n:  # norms round as the rows happen to lie
            np.testing.assert_allclose(self.decoder.residual(), anew.residual(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_decoder_answers_as_one_made_anew_of_what_it_accepted() -> None:
    how = settings(
        max_examples=40,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],  # torch takes seconds for its first fake
    )
    run_state_machine_as_test(DecoderMachine, settings=how)
