"""The status page at `/`, and the figures that it shows."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from codedinv import __version__
from codedinv.gateway.exposition import Snapshots, extra_load
from codedinv.gateway.hosted import HostedModel
from codedinv.serving.histogram import Histogram
from codedinv.serving.metrics import Snapshot

_BOUNDS_S = tuple(2.0 ** (step / 4) for step in range(-48, 25))  # 0.24 ms to 64 s, 19 % apart
_COUNTS = {
    "coding groups": "groups",
    "groups recovered": "groups_recovered",
    "parities sent": "parity_queries",
    "parities dropped": "parities_dropped",
    "hedges": "hedges",
    "sent again": "retries",
    "workers lost": "deaths",
    "workers restarted": "restarts",
    "quarantines": "quarantines",
    "wrong results": "corrupt",
    "reloads": "reloads",
}

PAGE_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
    ),
]


@cache
def page() -> bytes:
    """The page: one file that fetches nothing but `status`, beside it."""
    return files("codedinv.gateway").joinpath("status.html").read_bytes()


def status(ready: bool, snapshots: Snapshots) -> dict[str, Any]:
    """What the page shows; times in seconds, None where there is none yet."""
    return {
        "version": __version__,
        "ready": ready,
        "models": [_model(hosted, snapshot) for hosted, snapshot in snapshots],
    }


def _model(hosted: HostedModel, snapshot: Snapshot | None) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": hosted.name,
        "version": hosted.version,
        "ready": hosted.ready,
        "state": hosted.state,
        "reason": hosted.reason,
    }
    server = hosted.server
    if snapshot is None or server is None:
        return shown
    stats = snapshot.stats()
    plan = server.scheme.plan
    return shown | {
        "scheme": server.scheme.name,
        "k": plan.k,
        "n": plan.n,
        "workers": list(stats.workers),
        "accepted": stats.accepted,
        "answered": dict(stats.answered),
        "failed": dict(stats.failed),
        "refused": stats.overloaded,
        "queued": stats.queued,
        "outstanding": stats.outstanding,
        "extra_load": extra_load(stats),
        "latency": _latency(snapshot),
        "counts": {label: getattr(stats, field) for label, field in _COUNTS.items()},
        "last_error": stats.last_error,
    }


def _latency(snapshot: Snapshot) -> dict[str, Any]:
    """Answers by latency, as counts of those at most each bound: what is recent is the difference
    of two of these."""
    histogram = Histogram.total(snapshot.latency.values())
    return {"bounds": list(_BOUNDS_S), "counts": histogram.at_most(_BOUNDS_S)}
