"""Gateways for tests: one that most of them share, and whoever needs another starts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from codedinv.bundle import CodedModel
from codedinv.coding import Code
from tests.gateway.servers import Endpoint, Gateway, endpoint_of, running_gateway

POLICY = {"deadline_s": 30.0, "max_queue": 64}


@pytest.fixture(scope="session")
def bundle(
    tmp_path_factory: pytest.TempPathFactory, make_small_model: Callable[..., CodedModel]
) -> Path:
    """A (5, 4) bundle whose parities are perfect: reconstructed answers equal exact ones."""
    folder = tmp_path_factory.mktemp("bundle") / "small"
    return make_small_model(Code.uniform(4), linear=True).save(folder)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Gateway]:
    """A gateway with that bundle, three workers and the defaults."""
    settings = {
        "models": [{"model": str(bundle), "workers": 3, "policy": POLICY}],
        "max_batch": 64,
        "max_body_bytes": 2**20,
    }
    with running_gateway(tmp_path_factory.mktemp("gateway"), settings) as running:
        yield running


@pytest.fixture(
    scope="session", params=["codedinv", pytest.param("triton", marks=pytest.mark.servers)]
)
def endpoint(request: pytest.FixtureRequest, bundle: Path) -> Endpoint:
    """Every server that `test_client_api.py` must find alike.

    "triton" is the fixture `triton_endpoint`, a real Triton.
    """
    if request.param == "codedinv":
        return endpoint_of(request.getfixturevalue("gateway"), bundle)
    try:
        found: Endpoint = request.getfixturevalue("triton_endpoint")
    except pytest.FixtureLookupError:
        pytest.skip("no fixture triton_endpoint: Triton is not there to be compared with")
    return found
