"""`/metrics`, read by Prometheus's own parser, and the dashboard that shows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families

import codedinv.gateway
from tests.gateway.servers import Gateway, get, infer_body

DASHBOARD = Path(codedinv.gateway.__file__).with_name("dashboard.json")
MODEL = "fashion-mnist"


def samples(gateway: Gateway) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(get(gateway, "/metrics").text)
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in families
        for s in family.samples
    }


class Page:
    """A page of metrics, asked by name and labels."""

    def __init__(self, gateway: Gateway) -> None:
        self._samples = samples(gateway)

    def __call__(self, name: str, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(v for (n, found), v in self._samples.items() if n == name and wanted <= found)

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(found) for n, found in self._samples if n == name]


def ask(gateway: Gateway, count: int, **body: Any) -> httpx.Response:
    x = np.zeros((count, 1, 28, 28), np.float32)
    return httpx.post(
        f"{gateway.url}/v2/models/{MODEL}/infer", json=infer_body(x, **body), timeout=30
    )


@pytest.fixture
def before(gateway: Gateway) -> Page:
    return Page(gateway)


def test_answers_are_counted_by_source_and_requests_by_status(
    gateway: Gateway, before: Page
) -> None:
    assert ask(gateway, 5).status_code == 200
    assert ask(gateway, 2, parameters={"timeout": 1}).status_code == 200
    assert ask(gateway, 2, parameters={"timeout": -1}).status_code == 400
    after = Page(gateway)

    def more(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert more("codedinv_queries_accepted_total", model=MODEL) == 7
    assert more("codedinv_queries_answered_total", model=MODEL, source="exact") == 5
    assert more("codedinv_queries_answered_total", model=MODEL, source="fallback") == 2
    assert more("codedinv_gateway_requests_total", protocol="http", status="200") == 2
    assert more("codedinv_gateway_requests_total", protocol="http", status="400") == 1
    assert more("codedinv_latency_seconds_count", source="exact") == 5
    assert more("codedinv_latency_seconds_bucket", source="exact", le="+Inf") == 5
    assert 0 < more("codedinv_latency_seconds_sum", source="exact") < 5 * 30
    assert more("codedinv_queue_wait_seconds_count") >= 5
    assert more("codedinv_gateway_request_seconds_count", protocol="http") == 3


def test_labels_are_model_and_version(gateway: Gateway) -> None:
    page = Page(gateway)
    version = gateway.ready["models"][MODEL]
    (labels,) = page.labels("codedinv_queries_accepted_total")
    assert labels == {"model": MODEL, "version": version}
    assert page("codedinv_model_ready", model=MODEL, version=version) == 1
    assert page("codedinv_workers", model=MODEL) == 3


def test_names_that_clients_make_up_are_no_labels(gateway: Gateway) -> None:
    for name in ("a", "b", "c"):
        httpx.post(f"{gateway.url}/v2/models/{name}/infer", timeout=30)
    models = {found["model"] for found in Page(gateway).labels("codedinv_gateway_requests_total")}
    assert models <= {MODEL, "unknown"}


def test_buckets_never_decrease(gateway: Gateway) -> None:
    ask(gateway, 8)
    found: dict[Any, list[tuple[float, float]]] = {}
    for (name, labels), value in samples(gateway).items():
        if name.endswith("_bucket"):
            rest = frozenset(item for item in labels if item[0] != "le")
            found.setdefault((name, rest), []).append((float(dict(labels)["le"]), value))
    assert found
    for buckets in found.values():
        counts = [count for _, count in sorted(buckets)]
        assert counts == sorted(counts)


def test_openmetrics_is_spoken_too(gateway: Gateway) -> None:
    answer = get(gateway, "/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert "codedinv_queries_answered" in {family.name for family in parse_open(answer.text)}


def test_the_dashboard_shows_metrics_that_there_are(gateway: Gateway) -> None:
    ask(gateway, 1)
    there = {name for name, _ in samples(gateway)}
    dashboard = json.loads(DASHBOARD.read_text())
    shown: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            shown |= set(re.findall(r"\b(?:codedinv|process)_[a-z_]+", target["expr"]))
    assert shown
    assert shown <= there
