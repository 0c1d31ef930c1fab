"""Alarms ring in order, cancelled ones never, and they do not pile up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from codedinv.serving.timers import Timers


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=300))
def test_alarms_ring_in_order_of_time_and_age_unless_cancelled(
    plan: list[tuple[float, bool]],
) -> None:
    timers = Timers()
    alarms = [timers.set(at, f"ring {i % 3}", i) for i, (at, _) in enumerate(plan)]
    for alarm, (_, cancelled) in zip(alarms, plan, strict=True):
        if cancelled:
            timers.cancel(alarm)
    expected = sorted((at, i) for i, (at, cancelled) in enumerate(plan) if not cancelled)
    rung = []
    while (at := timers.next()) is not None:
        while (due := timers.due(at)) is not None:
            rung.append((at, due[1]))
    assert rung == expected


def test_nothing_rings_early() -> None:
    timers = Timers()
    timers.set(2.0, "ring", None)
    assert timers.due(1.9) is None
    assert timers.due(2.0) == ("ring", None)
    assert timers.next() is None


def test_cancelled_alarms_do_not_pile_up() -> None:
    timers = Timers()
    for i in range(10_000):
        timers.cancel(timers.set(1e6, "deadline", i))
    assert timers._count < 200
    first = timers.set(1e6, "deadline", -1)  # one that lasts must not keep the others
    for i in range(10_000):
        timers.cancel(timers.set(1e6 + i, "deadline", i))
        timers.cancel(timers.set(1e6 - i, "deadline", i))
    assert len(timers._heap) + sum(map(len, timers._queues.values())) == timers._count < 200
    assert timers.next() == 1e6
    timers.cancel(first)
    assert timers.next() is None


def test_cancelling_twice_or_after_the_ring_is_harmless() -> None:
    timers = Timers()
    alarm = timers.set(1.0, "ring", None)
    timers.due(1.0)
    timers.cancel(alarm)
    timers.cancel(None)
    timers.set(2.0, "ring", "other")
    assert timers.next() == 2.0
