"""`examples/ai-sdk` in a real browser: React and `useChat`, on a page of another origin."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.front_end import MISSING, NEEDS, NPM
from tests.support.letters import Letters
from tests.support.model_server import STALL, ModelServer, answer, status, tool_call, wait
from tests.support.server import ROOT, Server

EXAMPLE = ROOT / "examples" / "ai-sdk"
pytestmark = [
    pytest.mark.skipif(MISSING, reason=NEEDS),
    browser.NEEDED,
]


class Files(SimpleHTTPRequestHandler):
    """The files of the page."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page, bundled as its package.json says."""
    directory = tmp_path_factory.mktemp("site")
    shutil.copy(EXAMPLE / "index.html", directory)
    bundle = ["--bundle", "--format=esm", "--jsx=automatic", f"--outfile={directory / 'chat.js'}"]
    modules = NPM / "node_modules"
    esbuild = [str(modules / ".bin" / "esbuild"), "chat.jsx", *bundle, "--log-level=warning"]
    done = subprocess.run(
        esbuild, cwd=EXAMPLE, env={**os.environ, "NODE_PATH": str(modules)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(directory))) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_address[1]}"
        site.shutdown()


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as model:
        yield model


@pytest.fixture(scope="module")
def server(model: ModelServer, origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log: Path = tmp_path_factory.mktemp("server") / "log"
    with Server(f"-base_url={model.base_url}", f"-cors_origin={origin}", log=log) as server:
        yield server


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Driver]:
    driver = browser.start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: browser.Driver, server: Server, origin: str, model: ModelServer) -> Page:
    """The page with a session of its own."""
    model.forget()
    page = Page(driver)
    driver.get("about:blank")
    driver.get(f"{origin}/?server={server.url}")
    page.wait_until(lambda: page.shows("input"), "the page")
    return page


def ask(page: Page, text: str) -> None:
    page.wait_until(lambda: page.all("input:enabled"), "the input")
    page.type("input", text, Keys.ENTER)


def told(page: Page, *expected: str) -> None:
    """Waits until the page shows just these texts."""
    page.wait_until(lambda: page.texts("article p") == list(expected), f"{expected}")


def idle(page: Page) -> None:
    page.wait_until(lambda: page.all("input:enabled"), "the end")


def test_a_turn_is_shown_and_there_after_a_reload(page: Page, model: ModelServer) -> None:
    model.then(tool_call("calculator", {"expression": "15 * 23"}), answer("It is ", "345."))
    ask(page, "How much?")
    for _ in range(2):
        told(page, "How much?", "It is 345.")
        assert page.texts("pre") == ['calculator({"expression":"15 * 23"}) = 345']
        idle(page)
        page.reload()
    logged = page.driver.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in logged if entry["level"] != "INFO"] == []


def test_a_reload_in_mid_answer_takes_it_up(page: Page, model: ModelServer) -> None:
    go = threading.Event()
    model.then(answer("It is ", wait(go), "345."))
    ask(page, "How much?")
    told(page, "How much?", "It is")
    page.reload()
    told(page, "How much?", "It is")
    go.set()
    told(page, "How much?", "It is 345.")
    idle(page)
    page.reload()
    told(page, "How much?", "It is 345.")


def test_stop_keeps_what_was_shown_and_try_again_replaces_it(page: Page, model: ModelServer) -> None:
    model.then(answer("It is", STALL), answer("345."))
    ask(page, "How much?")
    told(page, "How much?", "It is")
    page.click("button")
    idle(page)
    told(page, "How much?", "It is")
    page.click("button")
    told(page, "How much?", "345.")
    idle(page)
    page.reload()
    told(page, "How much?", "345.")
    page.click("button")
    told(page, "How much?", "OK")


def test_an_error_is_a_sentence(page: Page, model: ModelServer, server: Server) -> None:
    model.then(status(401, {}))
    ask(page, "How much?")
    page.wait_until(lambda: "API key" in page.text("[role=alert]"), "the error")
    assert server.request("DELETE", f"/sessions/{page.session}").status == 200
    ask(page, "And now?")
    page.wait_until(lambda: page.text("[role=alert]") == f"Session {page.session} not found", "the error")


SEND = tool_call("send", {"to": "Ann"}, text="Shall I?", id="call_send")


@pytest.fixture
def letters(tmp_path: Path) -> Letters:
    return Letters(tmp_path)


@pytest.fixture
def asking(
    driver: browser.Driver, origin: str, model: ModelServer, letters: Letters, tmp_path: Path
) -> Iterator[tuple[Page, Callable[[], Server]]]:
    """The page at a server whose tool asks, on a session that waits, and what restarts that server after a crash."""
    model.forget()
    flags = [letters.flag, f"-session_dir={tmp_path}/sessions", f"-base_url={model.base_url}"]
    servers: list[Server] = []

    def start() -> Server:
        port = servers[-1].port if servers else 0
        for server in servers[-1:]:
            server.kill()
        flags_now = [*flags, f"-cors_origin={origin}", *([f"-port={port}"] if port else [])]
        servers.append(Server(*flags_now, log=tmp_path / f"log-{len(servers)}"))
        return servers[-1]

    page = Page(driver)
    driver.get("about:blank")
    driver.get(f"{origin}/?server={start().url}")
    model.then(SEND, answer("It is on its way."))
    ask(page, "Write to Ann")
    page.wait_until(lambda: page.all(".allow"), "the question")
    yield page, start
    driver.get("about:blank")
    servers[-1].close()


@pytest.mark.parametrize("after", ["at once", "a reload", "a crash of the server", "both"])
@pytest.mark.parametrize("answered", ["allow", "deny"])
def test_a_call_that_waits_is_answered(
    asking: tuple[Page, Callable[[], Server]], letters: Letters, after: str, answered: str
) -> None:
    page, restart = asking
    if after in ("a crash of the server", "both"):
        restart()
    if after in ("a reload", "both"):
        page.reload()
    page.click(f".{answered}")
    page.wait_until(lambda: "It is on its way." in page.texts("article p"), "the answer")
    idle(page)
    assert letters.sent == (["Ann"] if answered == "allow" else [])
    page.reload()
    told(page, "Write to Ann", "Shall I?", "It is on its way.")
    assert not page.all(".allow")


def test_two_tabs_show_the_same_answer(page: Page, model: ModelServer) -> None:
    go = threading.Event()
    model.then(answer("It is ", wait(go), "345."))
    ask(page, "How much?")
    told(page, "How much?", "It is")
    first, address = page.driver.current_window_handle, page.driver.current_url
    page.driver.switch_to.new_window("tab")
    page.driver.get(address)
    told(page, "How much?", "It is")
    go.set()
    told(page, "How much?", "It is 345.")
    page.driver.close()
    page.driver.switch_to.window(first)
    told(page, "How much?", "It is 345.")
