"""Hostile calls at random, seeded: every one ends in an answer or a plain error, none in a crash.

The calls run in a process of their own, so that a crash is a failed test that prints its seed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = '''
import random, sys, time, warnings
import ml_dtypes, numpy as np, torch
from codedinv import Code, StreamingDecoder

warnings.simplefilter("ignore")
rng = random.Random(int(sys.argv[1]))
DTYPES = ["float32", "float64", "float16", "bfloat16"]
NUMPY = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.complex64, ">f4"]
TORCH = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
SHAPES = [(), (1,), (7,), (2, 3), (3, 2), (6,), (1, 6), (0,), (17_000,), (130, 131)]


def values(shape):
    made = np.random.default_rng(rng.randrange(2**32)).normal(size=shape)
    if made.size and rng.random() < 0.2:
        made.flat[rng.randrange(made.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e38, 1e308])
    return made


def layout(array, torch_too):
    kind = rng.randrange(7)
    if kind == 0:
        return array.T if array.ndim == 2 else array
    if kind == 1 and array.ndim:
        return array[::2]
    if kind == 2 and array.ndim and not torch_too:
        return array[::-1]
    if kind == 3:
        return array[None]
    if kind == 4 and array.ndim:
        return array[array.shape[0] // 2:]
    return array


def tensor(shape):
    made = layout(torch.tensor(values(shape)).to(rng.choice(TORCH)), True)
    kind = rng.randrange(12)
    if kind == 0:
        made.untyped_storage().resize_(0)
    elif kind == 1:
        made = torch._efficientzerotensor(shape)
    elif kind == 2:
        made = torch._to_functional_tensor(made)
    elif kind == 3:
        made = made.to("meta")
    elif kind == 4 and made.dim():
        made = made.to_sparse()
    elif kind == 5 and made.is_floating_point():
        made.requires_grad_()
    elif kind == 6:
        made = made.expand(2, *made.shape)[1]
    elif kind == 7 and made.is_floating_point():
        made = torch._neg_view(made)
    return made


class Lies:
    """A producer that is not what it says."""

    def __init__(self, shape):
        self.inner = torch.ones(shape)

    def __dlpack_device__(self):
        return rng.choice([(1, 0), (2, 0), (1,), (), None, ("cpu", 0), (2**40, 0)])

    def __dlpack__(self, **_):
        if rng.random() < 0.3:
            decoder.reset()
        capsule = self.inner.__dlpack__()
        if rng.random() < 0.3:
            torch.from_dlpack(capsule)  # now it is used
        return rng.choice([capsule, capsule, None, 3, self])


def embedding(shape):
    kind = rng.randrange(10)
    shape = shape if rng.random() < 0.8 else rng.choice(SHAPES)
    if kind < 4:
        made = np.asarray(values(shape)).astype(rng.choice(NUMPY))
        return layout(made, False)
    if kind < 8:
        return tensor(shape)
    if kind == 8:
        return Lies(shape)
    return rng.choice([None, 3, "row", [1.0], b"bytes", object(), np.float32(1), np.ma.ones(shape)])


SLOTS = [-1, 0, 1, 2, 3, 4, 5, 6, 10**30, 1.5, None, "0", True, np.int8(1), torch.tensor(2)]
OUTS = [None, None, 3, [], np.zeros(3)]
done = answers = 0
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    shape, dtype = rng.choice(SHAPES), rng.choice(DTYPES)
    code = rng.choice([Code.uniform(1), Code.uniform(3), Code.mds(2, 2), Code.mds(3, 2)])
    try:
        decoder = StreamingDecoder(code, shape, dtype)
    except ValueError:
        assert 0 in shape
        continue
    numpy_dtype = decoder.dtype
    for _ in range(rng.randrange(30)):
        good = np.ones(shape, numpy_dtype)
        rows = np.zeros((rng.randrange(4), *shape), numpy_dtype)
        call = rng.choice([
            lambda: decoder.push(rng.choice(SLOTS), embedding(shape)),
            lambda: decoder.push(rng.choice(SLOTS), embedding(shape), check=rng.random() < 0.5),
            lambda: decoder.push(rng.randrange(code.n), good),
            lambda: decoder.push(rng.randrange(code.n), good),
            lambda: decoder.estimate(rng.choice(SLOTS)),
            lambda: decoder.recover(rng.choice([*OUTS, rows])),
            lambda: decoder.syndrome(rng.choice([*OUTS, rows])),
            decoder.residual,
            decoder.reset,
            lambda: (decoder.ready, decoder.missing, decoder.shape, repr(decoder)),
        ])
        done += 1
        try:
            call()
            answers += 1
        except (ValueError, TypeError):
            pass
print(done, answers)
'''


@pytest.mark.parametrize("seed", range(3))
def test_hostile_calls_end_in_an_answer_or_a_plain_error(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(seed), "2"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    calls, answers = map(int, done.stdout.split())
    assert calls > 200
    assert 0.2 < answers / calls < 0.9
