"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.routing import Rule

from agent import Agent
from tests.support.agent import MakeAgent, calculator
from tests.support.model_server import ModelServer
from tests.support.server import Server

pytest.register_assert_rewrite(
    "tests.support.storage_conformance", "tests.support.lock_conformance", "tests.support.queue_conformance"
)


def _share_url_builders() -> None:
    """Has all apps share the functions that make URLs of their rules. Nobody calls those here, and to compile them
    took three quarters of what a short test costs."""
    compile_builder, compiled = Rule._compile_builder, dict[Any, Any]()

    def find_builder(rule: Rule, append_unknown: bool = True) -> Any:
        key = (rule.rule, append_unknown)
        if key not in compiled:
            compiled[key] = compile_builder(rule, append_unknown)
        return compiled[key]

    Rule._compile_builder = find_builder  # type: ignore[method-assign]


_share_url_builders()


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


@pytest.fixture
def agent_of() -> Iterator[MakeAgent]:
    """Makes agents that are closed at the end."""
    made: list[Agent] = []

    def make(server: ModelServer | None = None, **given: Any) -> Agent:
        defaults: dict[str, Any] = {"api_key": "sk-test", "model": "m", "tools": [calculator]}
        if server is not None:
            defaults["base_url"] = server.base_url
        made.append(Agent(**{**defaults, **given}))
        return made[-1]

    yield make
    for agent in made:
        agent.close()
