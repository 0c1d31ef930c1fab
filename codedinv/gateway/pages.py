"""The status page at `/`, and the figures that it shows."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import files
from typing import Any

from codedinv import __version__
from codedinv.gateway.exposition import Snapshots, extra_load
from codedinv.gateway.hosted import HostedModel
from codedinv.serving.metrics import Snapshot

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
    latency = stats.latency["all"]
    return shown | {
        "scheme": server.scheme.name,
        "k": plan.k,
        "n": plan.n,
        "workers": list(stats.workers),
        "answered": dict(stats.answered),
        "failed": dict(stats.failed),
        "accepted": stats.accepted,
        "refused": stats.overloaded,
        "queued": stats.queued,
        "outstanding": stats.outstanding,
        "extra_load": extra_load(stats),
        "deaths": stats.deaths,
        "restarts": stats.restarts,
        "reloads": stats.reloads,
        "corrupt": stats.corrupt,
        "latency": {
            key: None if math.isnan(value) else value
            for key, value in (("p50", latency.p50), ("p99", latency.p99), ("p999", latency.p999))
        },
        "last_error": stats.last_error,
    }
