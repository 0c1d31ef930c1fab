"""Counts of a model's requests, as the protocol's statistics ask for them."""

from __future__ import annotations

import time
from typing import Any


class Statistics:
    """What became of the requests to one model; times in nanoseconds."""

    def __init__(self) -> None:
        self.requests = self.queries = self.failures = 0
        self.success_ns = self.failure_ns = 0
        self.last_ms = 0

    def succeeded(self, queries: int, seconds: float) -> None:
        """A request was answered."""
        self.requests += 1
        self.queries += queries
        self.success_ns += int(seconds * 1e9)
        self.last_ms = time.time_ns() // 1_000_000

    def failed(self, seconds: float) -> None:
        """A request was not answered."""
        self.failures += 1
        self.failure_ns += int(seconds * 1e9)

    def to_dict(self, queue_count: int, queue_s: float) -> dict[str, Any]:
        """The protocol's fields.

        Args:
            queue_count, queue_s: queries that waited for a worker, and how long in sum.
        """
        queue_ns = int(queue_s * 1e9)
        compute_ns = max(0, self.success_ns - queue_ns)
        nothing = {"count": 0, "ns": 0}
        return {
            "last_inference": self.last_ms,
            "inference_count": self.queries,
            "execution_count": self.requests,
            "inference_stats": {
                "success": {"count": self.requests, "ns": self.success_ns},
                "fail": {"count": self.failures, "ns": self.failure_ns},
                "queue": {"count": queue_count, "ns": queue_ns},
                "compute_input": dict(nothing),
                "compute_infer": {"count": self.requests, "ns": compute_ns},
                "compute_output": dict(nothing),
                "cache_hit": dict(nothing),
                "cache_miss": dict(nothing),
            },
            "batch_stats": [],
        }
