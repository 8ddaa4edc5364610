"""The chat page in a real browser: fixtures that its tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support import browser
from tests.support.browser import Driver, Page
from tests.support.model_server import ModelServer, ReplyTo, answer
from tests.support.server import Server

Script = Callable[..., None]


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
