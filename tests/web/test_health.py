"""Whether the server lives, and whether it is ready."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import Client, error_of, json_of


def test_health_is_ok(client: Client) -> None:
    response = client.get("/health")
    assert response.status_code == 200
    assert json_of(response) == {"status": "ok"}


def test_ready_is_200_while_the_store_can_be_written(client: Client) -> None:
    assert client.get("/ready").status_code == 200


def test_ready_is_503_and_health_200_when_the_store_is_gone(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path / "sessions"))) as client:
        shutil.rmtree(tmp_path / "sessions")
        assert error_of(client.get("/ready")) == (503, "storage_unavailable")
        assert client.get("/health").status_code == 200


def test_ready_is_503_and_health_200_when_shutting_down() -> None:
    with Client() as client:
        client.shut_down()
        assert error_of(client.get("/ready")) == (503, "shutting_down")
        assert client.get("/health").status_code == 200


def test_asking_whether_it_is_ready_leaves_nothing_behind(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        client.get("/ready")
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/sessions", "/"])
def test_head_is_get_without_the_body(client: Client, path: str) -> None:
    response = client.request("HEAD", path)
    assert response.status_code == 200
    assert response.data == b""
