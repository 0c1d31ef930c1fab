"""Latency quantiles in bounded memory, and the corruption threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codedinv.serving.metrics import Histogram, Metrics, Quantiles


@given(st.lists(st.floats(1e-6, 2000.0), min_size=1, max_size=200), st.floats(0.0, 1.0))
def test_a_quantile_is_within_one_percent_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    rank = max(1, math.ceil(q * len(values)))
    assert histogram.quantile(q) == pytest.approx(sorted(values)[rank - 1], rel=0.01)


def test_the_median_of_many_latencies() -> None:
    latencies = np.random.default_rng(0).lognormal(-5, 1, 20_000)
    histogram = Histogram()
    for latency in latencies:
        histogram.record(latency)
    quantiles = Quantiles.of(histogram)
    for q, got in ((0.5, quantiles.p50), (0.99, quantiles.p99), (0.999, quantiles.p999)):
        assert got == pytest.approx(np.quantile(latencies, q), rel=0.02)
    assert quantiles.max == latencies.max()
    assert quantiles.count == 20_000


def test_values_off_the_scale_count_at_its_ends() -> None:
    histogram = Histogram()
    for value in (0.0, 1e-12, 1e12):
        histogram.record(value)
    assert histogram.count == 3
    assert histogram.quantile(0.5) < 2e-6
    assert histogram.quantile(1.0) > 2000


def test_an_empty_histogram_has_no_quantiles() -> None:
    quantiles = Quantiles.of(Histogram())
    assert quantiles.count == 0
    assert math.isnan(quantiles.p50)
    assert math.isnan(quantiles.max)


def test_a_group_that_disagrees_far_more_than_others_is_suspected() -> None:
    metrics = Metrics(corruption_residual=None)
    for residual in np.random.default_rng(0).uniform(0.02, 0.06, 64):
        metrics.inspected(residual)
    assert metrics.suspected_corruption == 0
    metrics.inspected(0.4)
    assert metrics.suspected_corruption == 1


def test_a_given_threshold_counts_from_the_first_group() -> None:
    metrics = Metrics(corruption_residual=0.1)
    metrics.inspected(0.09)
    metrics.inspected(0.11)
    assert metrics.suspected_corruption == 1
