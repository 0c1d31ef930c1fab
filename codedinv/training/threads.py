"""How many threads torch may use: as many as there are cores that nobody else uses."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def use_threads(threads: int | None) -> int:
    """Sets torch's threads and returns their number.

    Threads that wait for one that is not scheduled wait at every operation: on two busy cores two
    threads took 68 steps in the time in which one took 327. So None means the cores that are idle
    now, at least one; OMP_NUM_THREADS, where it is set, wins.

    Raises:
        ValueError: fewer than one.
    """
    if threads is None:
        threads = torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else _idle_cores()
    if threads < 1:
        raise ValueError(f"--threads: expected at least 1, got {threads}")
    torch.set_num_threads(threads)
    return threads


def _idle_cores() -> int:
    """Cores of this process, within its container's quota, less the load of the last minute."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = _QUOTA.read_text().split()
        if quota != "max":
            cores = min(cores, float(quota) / float(period))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: then no quota is known either
    return max(1, round(cores - os.getloadavg()[0]))
