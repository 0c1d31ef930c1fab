"""`/metrics`: what the servers and the gateway counted, for Prometheus. Times are seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import PROCESS_COLLECTOR
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from codedinv.gateway.hosted import HostedModel
from codedinv.gateway.traffic import Traffic
from codedinv.serving.histogram import Histogram
from codedinv.serving.metrics import Snapshot, Stats

Snapshots = list[tuple[HostedModel, Snapshot | None]]

BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
_LABELS = ("model", "version")

# Prometheus's name, the field of `Stats`, what it says.
_COUNTERS = (
    ("queries_accepted", "accepted", "Queries taken."),
    ("queries_refused", "overloaded", "Queries refused because the queue was full."),
    ("queries_hopeless", "hopeless", "Queries given up before they were sent to a worker."),
    ("corrections", "corrections", "Exact results that came after another answer was given."),
    ("groups", "groups", "Coding groups closed."),
    ("groups_partial", "groups_partial", "Coding groups with anchors in free slots."),
    ("groups_recovered", "groups_recovered", "Coding groups of which an answer was made."),
    ("parities_sent", "parity_queries", "Parity queries sent to workers."),
    ("parities_dropped", "parities_dropped", "Parity queries useless before they were sent."),
    ("encode_errors", "encode_errors", "Coding groups whose parities could not be made."),
    ("retries", "retries", "Tasks sent again after a loss."),
    ("hedges", "hedges", "Queries sent to a second worker, for the first took long."),
    ("hedge_wins", "hedge_wins", "Hedges answered by the second worker."),
    ("late_results", "late_results", "Results that came after their query had its answer."),
    ("task_errors", "task_errors", "Tasks that a worker could not do."),
    ("worker_restarts", "restarts", "Starts of workers beyond the first."),
    ("quarantines", "quarantines", "Times that a worker was given no queries."),
    ("probes", "probes", "Copies of queries sent to workers in quarantine or slow ones."),
    ("stalls", "stalls", "Times that the front end's loop was away for 0.1 s or more."),
    ("reloads", "reloads", "Models replaced."),
    ("reloads_failed", "reloads_failed", "Models that could not be started in place of another."),
    ("groups_checked", "groups_checked", "Coding groups whose results were checked."),
    ("corruption_alarms", "suspected_corruption", "Coding groups that contradicted themselves."),
    ("corrupt_results", "corrupt", "Results found wrong."),
)
WORKER_STATES = ("starting", "ready", "busy", "quarantined", "vacant", "dead")


def exposition(snapshots: Snapshots, traffic: Traffic, accept: str) -> tuple[bytes, str]:
    """The page, and its content type.

    Args:
        snapshots: of each model; None where it is not loaded.
        traffic: of the gateway.
        accept: the client's header; Prometheus's and OpenMetrics' formats are there.
    """
    encode, content_type = choose_encoder(accept)
    body: bytes = encode(_Page(snapshots, traffic))
    return body, content_type


class _Page(Collector):
    """What the encoder reads, as it reads a registry."""

    def __init__(self, snapshots: Snapshots, traffic: Traffic) -> None:
        self._snapshots = snapshots
        self._traffic = traffic

    def collect(self) -> Iterator[Metric]:
        loaded = [
            ((hosted.name, hosted.version), snapshot, snapshot.stats())
            for hosted, snapshot in self._snapshots
            if snapshot is not None
        ]
        yield _ready(self._snapshots)
        for name, field, text in _COUNTERS:
            family = CounterMetricFamily(f"codedinv_{name}", text, labels=_LABELS)
            for labels, _, stats in loaded:
                family.add_metric(labels, getattr(stats, field))
            yield family
        yield from _by_kind(loaded)
        yield from _gauges(loaded)
        yield from _histograms(loaded)
        yield from _of_gateway(self._traffic)
        yield from PROCESS_COLLECTOR.collect()


Loaded = list[tuple[tuple[str, str], Snapshot, Stats]]


def _ready(snapshots: Snapshots) -> Metric:
    family = GaugeMetricFamily("codedinv_model_ready", "1: the model answers.", labels=_LABELS)
    for hosted, _ in snapshots:
        family.add_metric((hosted.name, hosted.version), float(hosted.ready))
    return family


def _by_kind(loaded: Loaded) -> Iterator[Metric]:
    answered = CounterMetricFamily(
        "codedinv_queries_answered", "Queries answered.", labels=(*_LABELS, "source")
    )
    failed = CounterMetricFamily(
        "codedinv_queries_failed", "Queries not answered.", labels=(*_LABELS, "outcome")
    )
    deaths = CounterMetricFamily(
        "codedinv_worker_deaths", "Workers that died or were killed.", labels=(*_LABELS, "reason")
    )
    for labels, _, stats in loaded:
        _add(answered, labels, stats.answered)
        _add(failed, labels, stats.failed)
        _add(deaths, labels, {"hung": stats.hangs, "died": stats.deaths - stats.hangs})
    yield from (answered, failed, deaths)


def _gauges(loaded: Loaded) -> Iterator[Metric]:
    queued = GaugeMetricFamily("codedinv_queries_queued", "Waiting for a worker.", labels=_LABELS)
    outstanding = GaugeMetricFamily(
        "codedinv_queries_outstanding", "At a worker, or to be reconstructed.", labels=_LABELS
    )
    extra = GaugeMetricFamily(
        "codedinv_extra_load_ratio",
        "Parities, hedges, retries and probes sent, over queries taken, since the start.",
        labels=_LABELS,
    )
    workers = GaugeMetricFamily("codedinv_workers", "By state.", labels=(*_LABELS, "state"))
    for labels, _, stats in loaded:
        queued.add_metric(labels, stats.queued)
        outstanding.add_metric(labels, stats.outstanding)
        extra.add_metric(labels, extra_load(stats))
        _add(workers, labels, {state: stats.workers.count(state) for state in WORKER_STATES})
    yield from (queued, outstanding, extra, workers)


def extra_load(stats: Stats) -> float:
    """Tasks beyond one for each query, over queries."""
    more = stats.parity_queries + stats.hedges + stats.retries + stats.probes
    return more / stats.accepted if stats.accepted else 0.0


def _histograms(loaded: Loaded) -> Iterator[Metric]:
    latency = HistogramMetricFamily(
        "codedinv_latency_seconds", "From submit to the answer.", labels=(*_LABELS, "source")
    )
    queue = HistogramMetricFamily(
        "codedinv_queue_wait_seconds", "From submit to a worker.", labels=_LABELS
    )
    group = HistogramMetricFamily(
        "codedinv_group_wait_seconds", "That coding groups were open.", labels=_LABELS
    )
    for labels, snapshot, _ in loaded:
        for source, histogram in snapshot.latency.items():
            _add_histogram(latency, (*labels, source), histogram)
        _add_histogram(queue, labels, snapshot.queue_wait)
        _add_histogram(group, labels, snapshot.group_wait)
    yield from (latency, queue, group)


def _of_gateway(traffic: Traffic) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "codedinv_gateway_requests",
        "Inference requests by their end; gRPC codes as the HTTP status of the same meaning.",
        labels=("protocol", "model", "status"),
    )
    for (protocol, model, status), count in sorted(traffic.ended.items()):
        requests.add_metric((protocol, model, str(status)), count)
    seconds = HistogramMetricFamily(
        "codedinv_gateway_request_seconds",
        "From a request's first byte to its answer.",
        labels=("protocol", "model"),
    )
    for key, histogram in sorted(traffic.seconds.items()):
        _add_histogram(seconds, key, histogram)
    yield requests
    yield seconds
    yield GaugeMetricFamily(
        "codedinv_gateway_requests_in_progress", "Inference requests.", traffic.in_progress
    )


def _add(family: Any, labels: tuple[str, ...], counts: Mapping[str, float]) -> None:
    for kind, count in counts.items():
        family.add_metric((*labels, kind), count)


def _add_histogram(family: Any, labels: Iterable[str], histogram: Histogram) -> None:
    counts = histogram.at_most(BUCKETS_S)
    buckets = [(str(bound), count) for bound, count in zip(BUCKETS_S, counts, strict=True)]
    buckets.append(("+Inf", histogram.count))
    family.add_metric(tuple(labels), buckets, histogram.sum)
