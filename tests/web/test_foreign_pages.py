"""Pages of other sites, in a real browser, that try to use the server of whoever looks at them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support import browser
from tests.support.browser import Page
from tests.support.server import Server

pytestmark = browser.NEEDED

NAME = "rebound.example"  # a foreign name that leads to this machine, as in DNS rebinding

POST = """
const [url, type, mode] = given;
try {
  const answer = await fetch(url, {method: "POST", mode, headers: {"Content-Type": type}, body: '{"message": "Hi"}'});
  return answer.type === "opaque" ? "sent blindly" : answer.status;
} catch (error) { return error.name; }
"""

READ = """
try { const answer = await fetch(given[0]); return [answer.status, await answer.text()]; }
catch (error) { return error.name; }
"""

FORM = """
const form = document.createElement("form");
form.method = "POST"; form.enctype = "text/plain"; form.action = arguments[0];
const field = document.createElement("input");
field.name = '{"message": "Hi", "rest": "'; field.value = '"}';
form.append(field); document.body.append(form); form.submit();
"""


class Foreign(BaseHTTPRequestHandler):
    """A page of another site."""

    def do_GET(self) -> None:
        page = b"<!doctype html><title>Foreign</title><body>Look here.</body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    """The address of another site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{site.server_address[1]}"
        site.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    driver = browser.start(tmp_path_factory.mktemp("profile"), f"--host-resolver-rules=MAP {NAME} 127.0.0.1")
    yield Page(driver)
    driver.quit()


@pytest.fixture
def server(serve: Callable[..., Server]) -> Server:
    return serve("-demo")


def test_a_form_cannot_post_a_message(page: Page, foreign: str, server: Server) -> None:
    session_id = server.create()
    page.driver.get(foreign)
    page.driver.execute_script(FORM, f"{server.url}/sessions/{session_id}/run")
    page.wait_until(lambda: "forbidden_origin" in page.text("body"), "the refusal")
    assert server.messages(session_id) == []


@pytest.mark.parametrize("type", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_fetch_without_preflight_cannot_post_a_message(page: Page, foreign: str, server: Server, type: str) -> None:
    session_id = server.create()
    page.driver.get(foreign)
    assert page.run(POST, f"{server.url}/sessions/{session_id}/run", type, "no-cors") == "sent blindly"
    assert server.messages(session_id) == []


def test_a_fetch_without_preflight_cannot_make_a_session(page: Page, foreign: str, server: Server) -> None:
    page.driver.get(foreign)
    assert page.run(POST, f"{server.url}/sessions", "text/plain", "no-cors") == "sent blindly"
    assert server.request("GET", "/sessions").json == {"sessions": []}


def test_a_fetch_in_json_does_not_pass_its_preflight(page: Page, foreign: str, server: Server) -> None:
    session_id = server.create()
    page.driver.get(foreign)
    assert page.run(POST, f"{server.url}/sessions/{session_id}/run", "application/json", "cors") == "TypeError"
    assert server.messages(session_id) == []


@pytest.mark.parametrize("path", ["/sessions", "/health", "/openapi.json"])
def test_nothing_can_be_read(page: Page, foreign: str, server: Server, path: str) -> None:
    page.driver.get(foreign)
    assert page.run(READ, f"{server.url}{path}") == "TypeError"


def test_the_page_cannot_be_framed(page: Page, foreign: str, server: Server) -> None:
    page.driver.get(foreign)
    framed = """
    const frame = document.createElement("iframe"); frame.src = given[0];
    const loaded = new Promise((done) => { frame.onload = done; }); document.body.append(frame); await loaded;
    try { return frame.contentDocument === null ? "out of reach" : frame.contentDocument.body.innerText; }
    catch (error) { return error.name; }
    """
    page.run(framed, f"{server.url}/")
    page.driver.switch_to.frame(0)
    assert not page.all("#message")
    page.driver.switch_to.default_content()


def test_a_name_that_was_rebound_to_this_machine_gets_nothing(page: Page, server: Server) -> None:
    page.driver.get(f"http://{NAME}:{server.port}/")
    assert "forbidden_host" in page.text("body")
    assert page.run(READ, "/sessions")[0] == 403
    assert page.run(POST, "/sessions", "application/json", "same-origin") == 403
    assert server.request("GET", "/sessions").json == {"sessions": []}


def test_a_page_that_was_let_in_can_do_all_that(page: Page, foreign: str, serve: Callable[..., Server]) -> None:
    server = serve("-demo", f"-cors_origin={foreign}")
    session_id = server.create()
    page.driver.get(foreign)
    assert page.run(POST, f"{server.url}/sessions/{session_id}/run", "application/json", "cors") == 200
    assert page.run(READ, f"{server.url}/sessions") == [200, f'{{"sessions":["{session_id}"]}}\n']
    assert len(server.messages(session_id)) == 2
