"""The bell that wakes a pool's owner."""

from __future__ import annotations

import select

import pytest

from codedinv.workers.bell import Bell


def is_heard(bell: Bell) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


def test_a_ring_lasts_until_it_is_cleared() -> None:
    bell = Bell()
    assert not is_heard(bell)
    for _ in range(2):
        for _ in range(100_000):  # more than its socket could buffer
            bell.ring()
        assert is_heard(bell)
        bell.clear()
        assert not is_heard(bell)
    bell.close()
    bell.ring()


def test_a_ring_in_the_middle_of_a_clear_does_not_silence_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bell = Bell()
    real = bell._read

    class RungWhileRead:
        def recv(self, size: int) -> bytes:
            bell.ring()  # as another thread may at this very moment
            return real.recv(size)

    bell.ring()
    with monkeypatch.context() as patch:
        patch.setattr(bell, "_read", RungWhileRead())
        bell.clear()
    bell.ring()
    assert is_heard(bell)
    bell.close()
