"""One query through a server or a bare pool: `pytest benchmarks/test_frontend.py`.

Interleaved ratios and the verdicts on the bars are made by benchmarks/frontend.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

sys.path.insert(0, str(Path(__file__).parent))

from frontend import SIZE, WAYS, opened, saturate
from identity import IdentityModel


@pytest.mark.parametrize("way", WAYS)
def test_one_query_at_a_time(benchmark: BenchmarkFixture, way: str, tmp_path: Path) -> None:
    benchmark.group = "a query, identity backbone"
    model = IdentityModel(SIZE).saved(tmp_path / "bundle")
    query = model.queries(1)[0]
    with opened(way, model, in_flight=1) as submit:
        saturate(submit, query[None], 100, 5)
        benchmark.pedantic(lambda: submit(query).result(), rounds=200)
