"""Small exact models and the two ways to run their workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from codedinv.serving import CodedServer, Policy
from tests.serving.linear_model import LinearModel


@pytest.fixture(scope="session")
def linear(tmp_path_factory: pytest.TempPathFactory) -> LinearModel:
    """k = 4, r = 1, saved."""
    return LinearModel().saved(tmp_path_factory.mktemp("linear") / "bundle")


@pytest.fixture(params=["thread", "process"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each test that asks for it runs with threads and with processes."""
    return str(request.param)


@pytest.fixture
def serve(linear: LinearModel) -> Iterator[Callable[..., CodedServer]]:
    """Starts servers (of the linear model, unless told otherwise) and closes them afterwards."""
    with ExitStack() as stack:

        def start(model: Any = linear, policy: Policy | None = None, **options: Any) -> CodedServer:
            return stack.enter_context(CodedServer(model, policy=policy, **options))

        yield start


@pytest.fixture
def new_folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "bundle"
