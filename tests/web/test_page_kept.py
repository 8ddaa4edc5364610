"""The chat page: what was typed, given and sent is there after a reload or a crash, however large it is."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Driver, Page
from tests.support.model_server import ModelServer, answer, status, wait
from tests.support.pictures import png
from tests.support.relay import Relay
from tests.support.server import Server
from tests.web.conftest import Script, Serve
from tests.web.test_page_files import PICTURE, drawn, give, parts
from tests.web.test_page_queue import begin, waiting

pytestmark = browser.NEEDED

SIZE = 4 << 20  # bytes of each large picture; what browsers keep as text has room for 5 MB in all
PICTURES = [(f"{shade}.png", "image/png", png(shade)) for shade in (10, 20, 30)]
ENLARGE = """
const whole = Blob.prototype.arrayBuffer;
File.prototype.arrayBuffer = async function () {
  const bytes = new Uint8Array(given[0]);
  bytes.set(new Uint8Array(await whole.call(this)));
  return bytes.buffer;
};
"""
KEPT = """
const opening = indexedDB.open("session_server", 1);
await new Promise((resolve) => (opening.onsuccess = resolve));
const counting = opening.result.transaction("files").objectStore("files").count();
await new Promise((resolve) => (counting.onsuccess = resolve));
opening.result.close();
return counting.result;
"""


def kept(page: Page) -> int:
    """How many files the browser's database holds."""
    found: int = page.run(KEPT)
    return found


def await_none_kept(page: Page) -> None:
    page.wait_until(lambda: kept(page) == 0, "the end of what the browser keeps")


def give_large(page: Page) -> None:
    """Drops pictures of 12 MB together, which the page itself makes so large: the driver would take long."""
    page.run(ENLARGE, SIZE)
    give(page, "drop", *PICTURES)


def leave_unheard(page: Page, text: str) -> None:
    """Sends a message that does not arrive, and leaves the page."""
    page.send(text)
    page.wait_until(lambda: "connection is lost" in page.notice, "the words")
    page.driver.get("about:blank")


def contents(server: Server, session: str) -> list[Any]:
    return [message["content"] for message in server.messages(session) if message["role"] == "user"]


@pytest.fixture
def relay(server: Server) -> Iterator[Relay]:
    with Relay(server.port) as relay:
        yield relay


@pytest.fixture
def far(page: Page, relay: Relay, script: Script) -> Iterator[Page]:
    """The page, open at a server whose line can be cut."""
    page.open(f"http://127.0.0.1:{relay.port}")
    yield page
    page.driver.get("about:blank")


def test_a_message_with_large_pictures_is_sent_once_after_the_tab_was_closed(
    far: Page, relay: Relay, server: Server, model: ModelServer, script: Script
) -> None:
    script(answer("One."), answer("Two."))
    far.ask("First")
    session = far.session
    give_large(far)
    relay.cut()
    leave_unheard(far, "What are these?")
    relay.mend()
    far.open(f"http://127.0.0.1:{relay.port}", session)
    far.wait_until(lambda: far.answers == ["One.", "Two."], "the answer")
    far.settle()
    assert [part["type"] for part in parts(model)] == ["text", *["image_url"] * 3]
    _, sent = contents(server, session)
    assert [part.get("size") for part in sent[1:]] == [SIZE] * 3
    assert far.questions == ["First", "What are these?"]
    await_none_kept(far)
    far.click(".question .picture")
    far.wait_until(lambda: drawn(far, "#file-body img") == [True], "the large picture")


def test_a_message_with_large_pictures_outlives_the_server_and_the_tab(
    page: Page, serve: Serve, tmp_path: Path, script: Script
) -> None:
    server = serve("-demo", f"-session_dir={tmp_path}")
    page.open(server.url)
    page.ask("1+1")
    session = page.session
    give_large(page)
    server.kill()
    leave_unheard(page, "What are these?")
    again = serve("-demo", f"-session_dir={tmp_path}", f"-port={server.port}")
    page.open(again.url, session)
    page.wait_until(lambda: len(page.answers) == 2, "the answer")
    page.settle()
    _, sent = contents(again, session)
    assert [part["type"] for part in sent] == ["text", *["image"] * 3]


def test_the_first_message_of_a_session_is_back_at_the_box_with_its_pictures(
    far: Page, relay: Relay, model: ModelServer
) -> None:
    give(far, "drop", *PICTURES)
    relay.cut()
    leave_unheard(far, "What are these?")
    relay.mend()
    far.open(f"http://127.0.0.1:{relay.port}")
    far.wait_until(lambda: drawn(far, "#parts img") == [True] * 3, "the pictures")
    assert far.written == "What are these?"
    far.ask("")
    assert [part["type"] for part in parts(model)] == ["text", *["image_url"] * 3]
    await_none_kept(far)


def test_files_that_were_not_sent_are_there_after_a_reload(here: Page, server: Server, model: ModelServer) -> None:
    give(here, "drop", *PICTURES, ("notes.txt", "text/plain", b"Buy bread."))
    here.type("#message", "Half a thought")
    here.reload()
    here.wait_until(lambda: drawn(here, "#parts img") == [True] * 3, "the pictures")
    assert here.texts("#parts .attachment") == ["notes.txt"]
    assert here.written == "Half a thought"
    here.click("#parts li:last-child .remove-part")
    here.ask("")
    assert [part["type"] for part in parts(model)] == ["text", *["image_url"] * 3]
    await_none_kept(here)
    here.reload()
    here.settle()
    assert not here.shows("#parts")


def test_a_message_that_is_refused_keeps_its_files_over_a_reload(here: Page) -> None:
    give(here, "drop", ("one.png", "image/png", b"this is no picture"))
    here.send("Look")
    here.wait_until(lambda: here.notice and len(here.all("#parts li")) == 1, "the file at the box")
    here.reload()
    here.wait_until(lambda: len(here.all("#parts li")) == 1, "the file once more")
    assert here.written == "Look"
    here.click(".remove-part")
    await_none_kept(here)


def test_a_deleted_session_leaves_no_files(here: Page, script: Script) -> None:
    here.ask("First")
    give(here, "drop", PICTURE)
    here.reload()
    here.wait_until(lambda: drawn(here, "#parts img") == [True], "the picture")
    here.choose("delete")
    await_none_kept(here)


LOSE_ANSWER = """
const ask = window.fetch;
window.fetch = async (path, settings) => {
  const response = await ask(path, settings);
  if (!settings?.body?.includes('"if_busy"')) return response;
  window.accepted = response.status;
  return new Promise(() => {});
};
"""


def send_without_hearing(page: Page, text: str) -> None:
    """Sends a message while an answer is written, and loads the page again before it hears that the server has it."""
    page.run(LOSE_ANSWER)
    page.send(text)
    page.wait_until(lambda: page.run("return window.accepted") == 202, "the server to have it")
    page.reload()
    page.wait_until(lambda: waiting(page) == [text], "its place in the line")
    assert page.written == text


def test_a_message_that_was_sent_meanwhile_is_the_same_after_a_reload(
    here: Page, server: Server, script: Script
) -> None:
    go = threading.Event()
    script(answer("one", wait(go)), answer("two"), answer("three"))
    begin(here)
    give(here, "drop", PICTURE)
    send_without_hearing(here, "second")
    here.wait_until(lambda: drawn(here, "#parts img") == [True], "the picture")
    here.type("#message", Keys.ENTER)
    here.wait_until(lambda: here.written == "" and not here.shows("#parts"), "the empty box")
    assert waiting(here) == ["second"]
    go.set()
    here.wait_until(lambda: here.answers == ["one", "two"], "both answers")
    here.settle()
    assert here.questions == ["Count", "second"]
    assert len(contents(server, here.session)) == 2
    await_none_kept(here)


def test_a_message_that_was_sent_meanwhile_is_the_same_when_it_is_answered_already(
    here: Page, server: Server, script: Script
) -> None:
    go = threading.Event()
    script(answer("one", wait(go)), answer("two"), answer("three"))
    begin(here)
    send_without_hearing(here, "second")
    go.set()
    here.wait_until(lambda: here.answers == ["one", "two"], "both answers")
    here.settle()
    here.type("#message", Keys.ENTER)
    here.wait_until(lambda: here.written == "", "the empty box")
    here.settle()
    assert here.questions == ["Count", "second"]
    assert contents(server, here.session) == ["Count", "second"]


def test_the_same_words_are_another_message_when_the_box_was_emptied(here: Page, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go)), answer("two"), answer("three"))
    begin(here)
    send_without_hearing(here, "second")
    here.type("#message", *[Keys.BACKSPACE] * len("second"))
    here.send("second")
    here.wait_until(lambda: waiting(here) == ["second", "second"], "both in the line")
    go.set()
    here.wait_until(lambda: here.answers == ["one", "two", "three"], "all answers")


HOLD_ANSWER = """
const ask = window.fetch;
window.fetch = async (path, settings) => {
  const response = await ask(path, settings);
  if (settings?.body?.includes('"if_busy"')) await new Promise((go) => (window.go = go));
  return response;
};
"""


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_message_that_was_sent_meanwhile_is_no_draft_when_another_session_was_looked_at(
    here: Page, script: Script, comes_back: bool
) -> None:
    go = threading.Event()
    script(answer("one", wait(go)), answer("two"))
    begin(here)
    session = here.session
    give(here, "drop", PICTURE)
    here.run(HOLD_ANSWER)
    here.send("second")
    here.wait_until(lambda: here.run("return Boolean(window.go)"), "the server to have it")
    here.click("#new")
    here.type("#message", "Something else")
    if comes_back:
        here.click(f"#list a[href='#{session}']")
        here.wait_until(lambda: here.written == "second" and here.answers == ["one"], "the draft")
    here.run("go()")
    if not comes_back:
        here.wait_until(lambda: here.run("return !localStorage.getItem(given[0])", draft_of(session)), "its end")
        assert here.written == "Something else"
        here.click(f"#list a[href='#{session}']")
    here.wait_until(lambda: waiting(here) == ["second"], "its place in the line")
    assert here.written == ""
    assert not here.shows("#parts")
    go.set()
    here.wait_until(lambda: here.answers == ["one", "two"], "both answers")
    here.settle()
    assert here.questions == ["Count", "second"]
    await_none_kept(here)


def test_a_message_that_is_sent_meanwhile_without_a_connection_goes_when_there_is_one(
    far: Page, relay: Relay, server: Server, script: Script
) -> None:
    go = threading.Event()
    script(answer("one", wait(go)), answer("two"))
    begin(far)
    relay.cut()
    far.send("second")
    far.wait_until(lambda: "connection is lost" in far.notice, "the words")
    assert far.written == "second"
    relay.mend()
    far.wait_until(lambda: waiting(far) == ["second"], "its place in the line")
    assert far.written == ""
    go.set()
    far.wait_until(lambda: far.answers == ["one", "two"], "both answers")
    far.settle()
    assert contents(server, far.session) == ["Count", "second"]


def draft_of(session: str) -> str:
    return f"session_server.draft.{session}"


def test_who_signs_out_leaves_neither_drafts_nor_files(page: Page, serve: Serve) -> None:
    page.open(serve("-demo", "-auth_token=correct-horse").url)
    page.type("#token-field", "correct-horse", Keys.ENTER)
    page.wait_until(lambda: not page.shows("#token-dialog"), "the end of the question")
    page.ask("Hello")
    page.type("#message", "A secret")
    give(page, "drop", PICTURE)
    page.wait_until(lambda: kept(page) == 1, "the picture to be kept")
    page.click("#page-menu")
    page.click("#sign-out")
    page.wait_until(lambda: page.shows("#token-dialog"), "the question again")
    assert page.run("return JSON.stringify(localStorage)") == "{}"
    assert kept(page) == 0


CACHED = """
const headers = { Authorization: "Bearer correct-horse" };
const asked = { headers, cache: "only-if-cached", mode: "same-origin" };
return fetch(given[0], asked).then(({ ok }) => ok, () => false);
"""


def test_who_signs_out_leaves_no_pictures_and_nothing_that_was_deleted(page: Page, serve: Serve) -> None:
    server = serve("-demo", "-auth_token=correct-horse")
    page.open(server.url)
    page.type("#token-field", "correct-horse", Keys.ENTER)
    page.wait_until(lambda: not page.shows("#token-dialog"), "the end of the question")
    give(page, "drop", PICTURE)
    page.ask("What is this?")
    page.wait_until(lambda: drawn(page, ".question img") == [True], "the picture")
    page.reload()
    page.wait_until(lambda: drawn(page, ".question img") == [True], "the picture from the server")
    address = f"sessions/{page.session}/files/{hashlib.sha256(PICTURE[2]).hexdigest()}"
    page.choose("delete")
    page.click("#page-menu")
    page.click("#sign-out")
    page.wait_until(lambda: page.shows("#token-dialog"), "the question again")
    assert page.run(CACHED, address) is False
    authorized = {"Authorization": "Bearer correct-horse"}
    page.wait_until(
        lambda: server.request("GET", "/sessions", headers=authorized).json == {"sessions": []}, "its end"
    )


@pytest.fixture
def refusing(driver: Driver) -> Iterator[None]:
    """A browser that refuses a page all storage, as some do with cookies blocked."""
    script = """
    for (const name of ["localStorage", "sessionStorage", "indexedDB"])
      Object.defineProperty(window, name, { get() { throw new DOMException("refused", "SecurityError"); } });
    """
    made = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    yield
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", made)


@pytest.mark.usefixtures("refusing")
def test_who_signs_out_leaves_nothing_where_there_is_no_storage(page: Page, serve: Serve) -> None:
    page.open(serve("-demo", "-auth_token=correct-horse").url)
    page.type("#token-field", "correct-horse", Keys.ENTER)
    page.wait_until(lambda: not page.shows("#token-dialog"), "the end of the question")
    page.ask("Hello")
    page.click("#page-menu")
    page.click("#sign-out")
    page.wait_until(lambda: page.shows("#token-dialog") and not page.questions, "the page as it was at first")
    page.driver.get("about:blank")


def test_a_failed_turn_keeps_its_files_until_it_has_ended_well(
    here: Page, model: ModelServer, script: Script
) -> None:
    script(status(401, {"error": {"message": "bad key"}}), answer("Now."))
    give(here, "drop", PICTURE)
    here.ask("What is this?")
    assert kept(here) == 1
    here.reload()
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Now."], "the answer")
    here.settle()
    assert [part["type"] for part in parts(model)] == ["text", "image_url"]
    await_none_kept(here)


def test_a_message_whose_files_the_browser_has_lost_is_back_with_words(
    far: Page, relay: Relay, script: Script
) -> None:
    script(answer("One."))
    far.ask("First")
    session = far.session
    give(far, "drop", PICTURE)
    relay.cut()
    leave_unheard(far, "What is this?")
    relay.mend()
    far.open(f"http://127.0.0.1:{relay.port}/health")
    far.run("indexedDB.deleteDatabase('session_server')")
    far.open(f"http://127.0.0.1:{relay.port}", session)
    far.wait_until(lambda: "no longer has the files" in far.notice, "the words")
    assert far.written == "What is this?"


@pytest.fixture
def bare(driver: Driver) -> Iterator[None]:
    """A browser that has no database for a page, as some have in private windows."""
    script = "Object.defineProperty(window, 'indexedDB', { value: undefined })"
    made = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    yield
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", made)


@pytest.mark.usefixtures("bare")
def test_without_a_database_files_go_all_the_same_and_the_page_says_what_may_be_lost(
    here: Page, model: ModelServer, script: Script
) -> None:
    give(here, "drop", *PICTURES)
    here.wait_until(lambda: "keeps no files" in here.notice, "the words")
    here.ask("What are these?")
    assert [part["type"] for part in parts(model)] == ["text", *["image_url"] * 3]
    give(here, "drop", PICTURE)
    here.reload()
    here.wait_until(lambda: drawn(here, "#parts img") == [True], "a small one, which is kept as text")
