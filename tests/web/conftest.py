"""Fixtures that the tests of HTTP and of the page share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage import Storage
from tests.support import browser
from tests.support.browser import Driver, Page
from tests.support.client import Client, storages
from tests.support.model_server import ModelServer, ReplyTo, answer
from tests.support.openapi import World
from tests.support.server import Server

Script = Callable[..., None]
Serve = Callable[..., Server]

FORGET = """
const box = document.getElementById("message");
if (box) box.value = "";
if (location.protocol !== "about:") {
  localStorage.clear();
  indexedDB?.deleteDatabase("session_server");
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = browser.start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: Driver) -> Iterator[Page]:
    yield Page(driver)
    first, *others = driver.window_handles
    for other in others:
        driver.switch_to.window(other)
        driver.close()
    driver.switch_to.window(first)
    driver.execute_script(FORGET)
    driver.get("about:blank")
    browser.resize(driver, 1200, 800)
    driver.get_log("browser")  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def line() -> list[ReplyTo]:
    """The model's replies, in line; then it says OK."""
    return []


@pytest.fixture(scope="module")
def model(line: list[ReplyTo]) -> Iterator[ModelServer]:
    with ModelServer(default=lambda request: (line.pop(0) if line else answer("OK"))(request)) as model:
        yield model


@pytest.fixture
def script(line: list[ReplyTo]) -> Script:
    """Puts the next replies of the model in line."""
    line.clear()
    return lambda *replies: line.extend(replies)


@pytest.fixture(scope="module")
def server(model: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of those tests that need no flags of their own."""
    home = tmp_path_factory.mktemp("server")
    with Server(f"-session_dir={home}", f"-base_url={model.base_url}", log=home / "log") as server:
        yield server


@pytest.fixture
def here(page: Page, server: Server, script: Script) -> Page:
    """The page, open at that server with a new session."""
    page.open(server.url)
    return page


@pytest.fixture(params=["memory", "files"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return storages(tmp_path)[request.param]()


@pytest.fixture
def anywhere(storage: Storage) -> Iterator[Client]:
    """The app over each back end in turn."""
    with Client(storage=storage) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """The app over one of them, where it does not matter which, nor what was before."""
    with Client() as client:
        yield client


@pytest.fixture(scope="module")
def shared_model() -> Iterator[ModelServer]:
    with ModelServer() as model:
        yield model


@pytest.fixture
def world(tmp_path: Path, shared_model: ModelServer) -> Iterator[World]:
    shared_model.default = answer("Hello")
    world = World(tmp_path, shared_model)
    yield world
    world.close()
