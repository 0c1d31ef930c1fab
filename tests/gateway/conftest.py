"""Gateways for tests: one that most of them share, and whoever needs another starts it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.servers import Endpoint, Gateway, endpoint_of, running_gateway

BUNDLE = "fashion-mnist"
# Exact answers, unless a worker dies: they can be compared with the model's own.
POLICY = {"release": "deadline", "deadline_s": 30.0, "max_queue": 64}


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a bundled model, three workers, and answers that are exact."""
    settings = {
        "models": [{"model": BUNDLE, "workers": 3, "policy": POLICY}],
        "max_batch": 64,
        "max_body_bytes": 2**20,
    }
    with running_gateway(tmp_path_factory.mktemp("gateway"), settings) as running:
        yield running


@pytest.fixture(
    scope="session", params=["codedinv", pytest.param("triton", marks=pytest.mark.servers)]
)
def endpoint(request: pytest.FixtureRequest) -> Endpoint:
    """Every server that `test_client_api.py` must find alike.

    "triton" is the fixture `triton_endpoint`, a real Triton.
    """
    if request.param == "codedinv":
        return endpoint_of(request.getfixturevalue("gateway"), BUNDLE)
    found: Endpoint = request.getfixturevalue("triton_endpoint")  # skips where Triton is not
    return found
