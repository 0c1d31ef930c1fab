"""The same victims in every run, whoever is busy when."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from codedinv.experiments.demo import plan_mishaps
from codedinv.experiments.mishaps import Mishap, Mishaps


class Server:
    """A server whose worker w is given a query with those in `given[w]` and done by the next one,
    unless it stands still; and how it is broken."""

    def __init__(self, given: dict[int, set[int]]) -> None:
        self._given = given
        self.number = -1
        self.deeds: list[tuple[str, int, int]] = []
        self._stopped: set[int] = set()
        self.holding: set[int] = set()
        self.pool = self

    def next_query(self, number: int) -> None:
        self.number = number
        self.holding &= self._stopped
        self.holding |= {worker for worker, numbers in self._given.items() if number in numbers}

    def stats(self) -> SimpleNamespace:
        states = ("busy" if worker in self.holding else "ready" for worker in range(5))
        return SimpleNamespace(workers=tuple(states))

    def pause(self, worker: int) -> None:
        self._stopped.add(worker)
        self.deeds.append(("stop", worker, self.number))

    def kill(self, worker: int) -> None:
        self.deeds.append(("kill", worker, self.number))

    def slow(self, worker: int, delay_s: float) -> None:
        assert delay_s == 0.1
        self.deeds.append(("slow", worker, self.number))


PLANNED = [Mishap("kill", 1, 10), Mishap("slow", 3, 30, 0.1)]


def run(server: Server, queries: int = 100) -> tuple[Mishaps, list[str]]:
    told: list[str] = []
    mishaps = Mishaps(server, PLANNED, lambda mishap: told.append(str(mishap)))
    for number in range(queries):
        server.next_query(number)
        mishaps.after_query(number)
    return mishaps, told


def test_an_idle_victim_stands_still_and_is_killed_with_its_next_query() -> None:
    server = Server({1: {3, 12, 17}, 0: set(range(100))})
    mishaps, told = run(server)
    assert server.deeds == [("stop", 1, 10), ("kill", 1, 12), ("slow", 3, 30)]
    assert told == ["SIGKILL", "100 ms slow"]
    assert [(s.query, s.at_work) for s in mishaps.struck] == [(12, True), (30, False)]


def test_a_victim_at_work_is_killed_at_its_arrival() -> None:
    server = Server({1: {10}})
    run(server)
    assert server.deeds[:2] == [("stop", 1, 10), ("kill", 1, 10)]


def test_two_runs_with_other_busy_workers_have_the_same_victims() -> None:
    first, second = Server({1: {10}, 4: {11}}), Server({1: {19}, 2: set(range(10, 60))})
    run(first)
    run(second)
    assert [deed[:2] for deed in first.deeds] == [deed[:2] for deed in second.deeds]


def test_a_victim_that_never_gets_work_is_killed_at_last() -> None:
    server = Server({})
    mishaps, _ = run(server)
    assert ("kill", 1, 60) in server.deeds
    assert not mishaps.struck[-1].at_work


@pytest.mark.parametrize("workers", [2, 3, 5, 11])
def test_one_worker_is_killed_and_another_slowed(workers: int) -> None:
    killed, slowed = plan_mishaps(workers, 1200)
    assert (killed.kind, slowed.kind) == ("kill", "slow")
    assert killed.worker != slowed.worker < workers
    assert 0 < killed.after < slowed.after < 1200
