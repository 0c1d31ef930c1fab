"""Seeded fault schedules against the core.

`python -m tests.serving.fuzz --seed 123` replays one schedule and prints its events;
`python -m tests.serving.fuzz --first 0 --count 1e6` looks for a seed that fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from codedinv.experiments.receipts import write_receipt
from codedinv.serving.core import Core
from tests.serving.checks import Violation
from tests.serving.world import World


class Found(AssertionError):
    """A seed whose schedule breaks an invariant (or the core)."""

    def __init__(self, seed: int, error: Exception) -> None:
        super().__init__(
            f"seed {seed}: {type(error).__name__}: {error}\n"
            f"replay: python -m tests.serving.fuzz --seed {seed}"
        )
        self.seed = seed

    def __reduce__(self) -> tuple[object, ...]:
        return _found, (self.seed, str(self))


def _found(seed: int, text: str) -> Found:
    """A find from another process."""
    found = Found(seed, ValueError())
    found.args = (text,)
    return found


def fuzz(first: int, count: int, core_class: type[Core] = Core) -> int:
    """Runs the schedules of the seeds first..first+count-1; returns how many events they had.

    Raises:
        Found: the first seed that fails.
    """
    events = 0
    for seed in range(first, first + count):
        world = World(seed, core_class)
        try:
            world.run()
        except Exception as error:  # whatever the core raises is a find
            raise Found(seed, error) from error
        events += world.events
    return events


def replay(seed: int) -> None:
    """Plays one schedule, printing every event with the actions it led to."""
    world = World(seed)
    print(world.plan, world.policy, f"{len(world.watcher.core.fleet.workers)} workers", sep="\n")
    handle = world.watcher.handle

    def handle_and_print(event):  # type: ignore[no-untyped-def]
        print(f"\n{event.time:8.3f}  {event}")
        actions = handle(event)
        for action in actions:
            print(f"{'':10}-> {action}")
        return actions

    world.watcher.handle = handle_and_print  # type: ignore[method-assign]
    world.run()


def fuzz_in_processes(first: int, count: int, processes: int) -> int:
    """As `fuzz`, on several cores; a line of progress for every tenth."""
    chunk = max(1, count // 200)
    starts = range(first, first + count, chunk)
    events = done = 0
    with ProcessPoolExecutor(processes) as pool:
        sizes = [min(chunk, first + count - start) for start in starts]
        for size, found in zip(sizes, pool.map(fuzz, starts, sizes), strict=True):
            events += found
            done += size
            if done * 10 // count != (done - size) * 10 // count:
                print(f"{done:,} of {count:,}", flush=True)
    return events


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=float, default=20_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--receipt", help="JSON file to write the result to")
    options = parser.parse_args()
    if options.seed is not None:
        try:
            replay(options.seed)
        except Violation as violation:
            print(f"\nseed {options.seed}: {violation}")
            return 1
        return 0
    count = int(options.count)
    started = time.perf_counter()
    try:
        if options.processes > 1:
            events = fuzz_in_processes(options.first, count, options.processes)
        else:
            events = fuzz(options.first, count)
    except Found as found:
        print(found)
        return 1
    took = time.perf_counter() - started
    print(f"{count:,} schedules, {events:,} events, {took:.1f} s, no violation")
    if options.receipt:
        command = f"python -m tests.serving.fuzz --first {options.first} --count {count}"
        result = {"schedules": count, "first_seed": options.first, "events": events}
        write_receipt(options.receipt, command, result | {"violations": 0, "seconds": took})
    return 0


if __name__ == "__main__":
    sys.exit(main())
