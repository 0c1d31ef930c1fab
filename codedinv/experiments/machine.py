"""How busy other processes keep this machine: their work shows in every tail that is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # fields of a cpu's line: idle, waiting for I/O


class OthersLoad:
    """Processor time of all processes but this one and its children, from now on.

    Children count once they have ended, so ask when they have.
    """

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._all, self._own = _all_s(), _own_s()

    def cores(self) -> float | None:
        """Cores that others kept busy on average; None where the system does not tell."""
        now = _all_s()
        if now is None or self._all is None:
            return None
        others = (now - self._all) - (_own_s() - self._own)
        return max(0.0, others / (time.monotonic() - self._begin))


def _own_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _all_s() -> float | None:
    """Seconds that the processors which this process may use were busy; stolen ones too."""
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return None
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for line in lines:
        name, *fields = line.split()
        if name in mine:  # of the fields beyond the eighth the first two count already
            ticks += sum(int(f) for i, f in enumerate(fields[:8]) if i not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")
