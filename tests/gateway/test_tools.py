"""What others' tools say of the gateway's interfaces: schemathesis of its OpenAPI, promtool of its
metrics."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.gateway.conftest import BUNDLE
from tests.gateway.servers import ROOT, Gateway, get, infer_body

pytestmark = [pytest.mark.servers, pytest.mark.timeout(300)]


def tool(environment: str, name: str) -> str:
    """A program of an environment that `make test-servers` makes, or of the system."""
    found = shutil.which(name, path=str(ROOT / environment / "bin")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({environment}): `make test-servers` does that")
    return found


def test_schemathesis_finds_nothing(gateway: Gateway, tmp_path: Path) -> None:
    """In a minute of requests made from the OpenAPI document, right ones and wrong ones.

    Loads and unloads are left out, for they would take the model away from all other tests; and so
    is that what the schema allows is always taken, for it cannot say how many numbers a shape has.
    """
    checked = subprocess.run(
        [
            *(tool(".venv-schemathesis", "schemathesis"), "run", f"{gateway.url}/openapi.json"),
            *("--phases", "examples,coverage,fuzzing", "--max-time", "60", "--seed", "1"),
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *("--exclude-path-regex", "load$", "--continue-on-failure"),
            *("--request-timeout", "30", "--max-response-time", "30"),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
    )
    assert checked.returncode == 0, checked.stdout[-8000:] + checked.stderr[-2000:]
    assert get(gateway, "/v2/health/ready").status_code == 200


def test_promtool_finds_nothing(gateway: Gateway) -> None:
    body = infer_body(np.zeros((1, 1, 28, 28), np.float32))
    httpx.post(f"{gateway.url}/v2/models/{BUNDLE}/infer", json=body, timeout=60)
    checked = subprocess.run(
        [tool(".venv-promtool", "promtool"), "check", "metrics"],
        input=get(gateway, "/metrics").text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stderr == ""  # its advice on names
