"""Policy: every choice of the server that is not the model's."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

Release = Literal["eager", "grace", "deadline"]


@dataclass(frozen=True)
class Policy:
    """How a `CodedServer` behaves. All times are seconds.

    Args:
        release: when a reconstructed answer may be given. "eager": as soon as it can be made, which
            is what the paper does and gives the lowest latency. "grace": `grace_s` later, so that a
            worker that is only a little late still answers exactly. "deadline": as late as the
            query's deadline allows. A query whose own result is known to be lost never waits.
        grace_s: for release="grace". 0.01: several times the service time of a small backbone.
        group_wait_s: how long an open group waits for its k-th member before it closes with anchors
            in the free slots. 0.02: longer makes fuller groups (less redundant work), shorter
            reconstructs sooner; at 200 queries/s a group of 4 fills in this time.
        deadline_s: of a query that brings none. 30: far above any latency that is useful, yet a
            query never waits for ever. None: no deadline.
        deadline_margin_s: the best answer there is is given this much before the deadline, so that
            a timer that rings late, decoding and heads still leave it in time. 0.005: a thread that
            wakes on a busy machine is a few milliseconds late. At most a quarter of the time that
            the query has.
        max_queue: queries accepted and not yet ended; one more is refused with `Overloaded`. 1024:
            a second's work of ten workers at 100 queries/s each.
        in_flight: tasks a worker holds at once. 1: a straggler delays one task, not those behind
            it; 2 hides the round trip (about 0.1 ms) where the backbone takes less than that. A
            server with `max_batch` above 1 raises it to twice that.
        hedge_after: a query whose own task is not done this long after it was sent is sent to a
            second worker; the first result wins ("hedged" if the second's). Seconds, or "p95": that
            quantile of this server's own recent service times. None: never.
        tied: the attempt that lost is cancelled while it waits at its worker (`in_flight` 2 or
            more).
        max_extra_load: hedges at most, as a share of the queries sent: a token bucket, so that a
            slow fleet is not hedged to death. 0.05, the load of hedging at p95 (Dean & Barroso).
        retries: how often a lost task is sent again when the code does not cover it. 2: a query
            that kills its workers takes at most three of them.
        hang_timeout_s: a worker that holds a task this long without finishing any is killed and
            restarted; time that the front end itself was stopped does not count. None: never. 10:
            well above a slow backbone's time on a busy machine.
        quarantine_after: a worker that fails so many tasks in a row gets no queries until it has
            answered probes (copies of a recent query, nobody waits for them); if those fail too, it
            is restarted. At most half of the workers are in quarantine for that. 3: a retry and a
            half of a query.
        probe_interval_s: between probes of a worker in quarantine, doubled while they fail up to
            four times that. Also how often a worker much slower than the rest is tried again. 0.5:
            a repaired worker is back within two seconds.
        start_timeout_s: a worker not ready this long after its start is killed and restarted. 60: a
            large bundle on a cold disk.
        restart_backoff_s: wait before a dead worker is restarted, doubled with each death that no
            finished task came between. 0.1: a crash is over at once, a crash loop costs little.
        restart_backoff_max_s: the longest such wait. 5: a repaired worker is back within seconds.
        drain_timeout_s: what `close` gives outstanding queries before it ends them with
            `ServerClosed`. 30, like `deadline_s`.
        always_encode: send parities also for groups whose queries are all answered when the group
            closes. False: nobody waits for them.
        verify: check every full group for a wrong result, find the worker that gave it by running
            the group's queries again elsewhere, and put it in quarantine. Sends every parity, as
            `always_encode` does.

    Raises:
        ValueError: a value out of its range, naming it.
    """

    release: Release = "eager"
    grace_s: float = 0.01
    group_wait_s: float = 0.02
    deadline_s: float | None = 30.0
    deadline_margin_s: float = 0.005
    max_queue: int = 1024
    in_flight: int = 1
    hedge_after: float | Literal["p95"] | None = None
    tied: bool = False
    max_extra_load: float = 0.05
    retries: int = 2
    hang_timeout_s: float | None = 10.0
    quarantine_after: int = 3
    probe_interval_s: float = 0.5
    start_timeout_s: float = 60.0
    restart_backoff_s: float = 0.1
    restart_backoff_max_s: float = 5.0
    drain_timeout_s: float = 30.0
    always_encode: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        if self.release not in get_args(Release):
            raise ValueError(
                f"release: expected one of {list(get_args(Release))}, got {self.release!r}"
            )
        for f in fields(self):
            if f.name.endswith("_s"):
                zero_is_fine = f.name in ("grace_s", "group_wait_s", "deadline_margin_s")
                self._check_seconds(f.name, getattr(self, f.name), zero_is_fine)
        if self.hedge_after != "p95":
            self._check_seconds("hedge_after", self.hedge_after, True)
        counts = (("max_queue", 1), ("in_flight", 1), ("retries", 0), ("quarantine_after", 1))
        for name, least in counts:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer of {least} or more, got {value!r}")
        for name in ("tied", "always_encode", "verify"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: expected a bool, got {getattr(self, name)!r}")
        share = self.max_extra_load
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise ValueError(f"max_extra_load: expected a share from 0 to 1, got {share!r}")

    @staticmethod
    def _check_seconds(name: str, value: float | None, zero_is_fine: bool) -> None:
        if value is None and name in ("deadline_s", "hang_timeout_s", "hedge_after"):
            return
        least = "0 or more" if zero_is_fine else "more than 0"
        expected = f"{name}: expected {least} (finite, seconds), got {value!r}"
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(expected)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_is_fine):
            raise ValueError(expected)
