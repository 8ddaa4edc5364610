"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.model_server import ModelServer
from tests.support.server import Server

pytest.register_assert_rewrite("tests.support.storage_conformance")


@pytest.fixture
def model() -> Iterator[ModelServer]:
    """A model server that answers "OK", and what a test puts in line."""
    with ModelServer() as model:
        yield model


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Starts server processes, and ends those that still run when the test is over. In a module with `FRESH = True`
    they are started as their users start them."""
    servers: list[Server] = []
    fresh = getattr(request.module, "FRESH", False)

    def start(*flags: str, env: dict[str, str] | None = None) -> Server:
        servers.append(Server(*flags, env=env, log=tmp_path / f"server-{len(servers)}.log", fresh=fresh))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
