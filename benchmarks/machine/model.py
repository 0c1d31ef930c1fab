"""From counts to microseconds on an H200: a low and a high guess, and what it is limited by.

Nothing here was measured on a card. Rates are the data sheet's, or published measurements of the
same chip, or a range wide enough to be honest; each says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Counts = Mapping[str, float]


@dataclass(frozen=True)
class Range:
    """A low and a high guess."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, times: float) -> Range:
        return Range(self.low * times, self.high * times)

    __rmul__ = __mul__

    def over(self, other: Range) -> Range:
        """This by the other, at its least and its most."""
        return Range(self.low / other.high, self.high / other.low)


NONE = Range(0, 0)

# What of it is sustained: 1.98 GHz is the most, 1.755 what data-sheet rates are stated for.
CLOCK_GHZ = Range(1.98, 1.7)
MULTIPROCESSORS = 132
# Data sheet, dense bfloat16: 989 TFLOP/s on 132 multiprocessors at 1.83 GHz.
MACS_PER_CYCLE = 2048
# What of that a kernel reaches whose instructions wait for one another: guessed.
MATRIX_SHARE = Range(0.85, 0.5)
# Instructions a scheduler issues per cycle, by the warps it has: guessed. One warp waits for each
# result it needs, 4 to 6 cycles for arithmetic and 30 for shared memory.
IPC = {1: Range(0.5, 0.3), 2: Range(0.7, 0.45), 4: Range(0.85, 0.6)}
SCHEDULERS = 4
# Of bytes loaded, what is not in L1: a pixel's activations are read for nine taps, its products for
# nine neighbours, and what was stored a moment ago may or may not be there. Guessed.
PAST_L1 = Range(0.3, 0.7)
# L2 to all multiprocessors, published microbenchmarks of H100: 5.5 to 7 TB/s read; and to one.
L2_BYTES_PER_US = Range(6.0e6, 3.5e6)
L2_BYTES_PER_CYCLE = Range(64, 32)
SHARED_BYTES_PER_CYCLE = Range(128, 80)
# A program's own barrier: published, 20 to 40 cycles once all have come.
BARRIER_CYCLES = Range(20, 40)
# Release, spin and acquire through L2: two to three round trips of 250 to 300 ns, then the first
# loads after it, which miss L1 (published grid barriers of H100: 1.2 us).
MEETING_US = Range(0.7, 1.6)


@dataclass(frozen=True)
class Residence:
    """How a launch fills the card.

    Attributes:
        warps: of a program. programs: on the busiest multiprocessor at once. used: multiprocessors
            with any. waves: times that the busiest has to go round.
    """

    warps: int
    programs: int
    used: int
    waves: int


def residence(batch: int, images: int, bands: int, warps: int, registers: int) -> Residence:
    """Of a launch as `launch.programs_on` makes it: at most two programs a multiprocessor, one
    where bands wait for each other."""
    tasks = -(-batch // images)
    fit = min(2, 65536 // (32 * warps * registers)) if bands == 1 else 1
    grid = min(tasks, MULTIPROCESSORS * (2 if bands == 1 else 1) // bands)
    programs = min(fit, -(-grid * bands // MULTIPROCESSORS))
    waves = -(-tasks // min(grid, MULTIPROCESSORS * fit // bands))
    return Residence(warps, programs, min(MULTIPROCESSORS, grid * bands), waves)


def terms(counts: Counts, where: Residence) -> dict[str, Range]:
    """Microseconds that each resource of the busiest multiprocessor needs."""
    of_all = where.warps * where.programs
    per_scheduler = max(1, min(4, of_all // SCHEDULERS))
    ipc = IPC[max(warps for warps in IPC if warps <= per_scheduler)]
    past = of_all * (counts.get("bytes copied", 0) + counts.get("bytes stored", 0))
    loaded = of_all * counts.get("bytes loaded", 0)
    moved = Range(past + PAST_L1.low * loaded, past + PAST_L1.high * loaded)

    def cycles(low: float, high: float) -> Range:
        return Range(low / CLOCK_GHZ.low / 1e3, high / CLOCK_GHZ.high / 1e3)

    def at(amount: float, rate: Range) -> Range:
        return cycles(amount / rate.low, amount / rate.high)

    of_card = where.used * moved
    shared_l2 = Range(of_card.low / L2_BYTES_PER_US.low, of_card.high / L2_BYTES_PER_US.high)
    own_l2 = cycles(moved.low / L2_BYTES_PER_CYCLE.low, moved.high / L2_BYTES_PER_CYCLE.high)
    matrix = counts.get("macs", 0) * of_all / MACS_PER_CYCLE
    barriers = counts.get("barrier", 0) / where.programs
    return {
        "instructions": at(counts.get("issued", 0) * of_all / SCHEDULERS, ipc),
        "matrix products": at(matrix, MATRIX_SHARE),
        "L2": Range(max(shared_l2.low, own_l2.low), max(shared_l2.high, own_l2.high)),
        "shared memory": at(counts.get("bytes shared", 0) * of_all, SHARED_BYTES_PER_CYCLE),
        "barriers": cycles(barriers * BARRIER_CYCLES.low, barriers * BARRIER_CYCLES.high),
    }


def time_of(counts: Counts, where: Residence, meetings: int) -> tuple[Range, str]:
    """(microseconds, what limits it) of what a launch does once.

    Low: everything overlaps but barriers and meetings. High: half of what is not the longest adds
    to it.
    """
    parts = terms(counts, where)
    barriers = parts.pop("barriers")
    longest = max(parts, key=lambda name: parts[name].low + parts[name].high)
    most = max(part.high for part in parts.values())
    rest = sum(part.high for part in parts.values()) - most
    low = max(part.low for part in parts.values()) + barriers.low
    high = most + rest / 2 + barriers.high
    total = where.waves * Range(low, high) + meetings * MEETING_US
    if meetings and meetings * MEETING_US.low > parts[longest].low:
        longest = "meetings of bands"
    return total, longest
