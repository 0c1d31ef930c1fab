"""When a query is sent a second time, and how often that may be.

Source: Dean & Barroso, "The Tail at Scale", CACM 56(2), 2013.
"""

from __future__ import annotations

from codedinv.serving.policy import Policy
from codedinv.serving.service_times import ServiceTimes

_FEWEST = 20  # results, before their p95 is believed
BURST = 10.0  # hedges that a quiet time may save up, and a start begins with


class Hedging:
    """The delay and the budget of hedges: a token bucket that each query fills a little."""

    def __init__(self, policy: Policy, service: ServiceTimes) -> None:
        self._policy = policy
        self._service = service
        self._tokens = BURST

    def delay(self) -> float | None:
        """Seconds after its sending when a query is hedged; None: not at all."""
        after = self._policy.hedge_after
        if after != "p95":
            return after
        return self._service.quantile(0.95) if self._service.count >= _FEWEST else None

    def query_sent(self) -> None:
        """Counts a query that was sent for the first time."""
        self._tokens = min(self._tokens + self._policy.max_extra_load, BURST)

    def take(self) -> bool:
        """Takes one hedge from the budget, if there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
