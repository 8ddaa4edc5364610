"""The chat page where something is in the way: narrow screens, no connection, a server that refuses."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import BREAK, STALL, ModelServer, answer, frames, wait
from tests.support.relay import Relay
from tests.support.server import Server
from tests.web.conftest import Script, Serve
from tests.web.test_page_edit import edit

pytestmark = browser.NEEDED

WIDTHS = [320, 390, 768, 1280]


def write_session(directory: Path, name: str, **fields: object) -> None:
    at = "2026-01-31T12:34:56Z"
    messages = [
        {"id": "msg-1", "role": "user", "content": "First question", "created_at": at},
        {"id": "msg-2", "role": "assistant", "content": "First answer", "created_at": at},
    ]
    data = {"id": name, "created_at": at, "updated_at": at, "messages": messages, **fields}
    (directory / f"{name}.json").write_text(json.dumps(data))


def width_of(page: Page, selector: str) -> float:
    return float(page.run("return document.querySelector(given[0]).getBoundingClientRect().width", selector))


def set_hidden(page: Page, hidden: bool) -> None:
    """Has the page think that its tab is, or is not, in front."""
    page.driver.execute_script(
        "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'))",
        hidden,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_title_is_read_and_renamed_at_every_width(page: Page, server: Server, script: Script, width: int) -> None:
    browser.resize(page.driver, width, 800)
    page.open(server.url)
    page.ask("A question that is long enough to have a title as long as a phone is wide")
    assert width_of(page, "#title") >= 200
    page.choose("rename")
    page.wait_until(lambda: page.shows("#rename-text"), "the box")
    assert width_of(page, "#rename-text") >= 150
    assert page.run("return document.documentElement.scrollWidth") <= width
    page.type("#rename-text", "Short", Keys.ENTER)
    page.wait_until(lambda: page.text("#title") == "Short", "the new title")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_text_has_one_left_edge(page: Page, server: Server, script: Script, width: int) -> None:
    browser.resize(page.driver, width, 800)
    script(answer("One.\n\n```\ncode\n```"))
    page.open(server.url)
    page.ask("Hello")
    edges = page.run(
        "return ['.question .body', '.answer .text > p', '.answer .code', '#conversation .label'].map("
        "(one) => Math.round(document.querySelector(one).getBoundingClientRect().left))"
    )
    assert len(set(edges[:3])) == 1
    assert edges[3] <= edges[0]


def test_a_session_that_cannot_be_read_says_so(page: Page, serve: Serve, tmp_path: Path) -> None:
    write_session(tmp_path, "session-good")
    (tmp_path / "session-bad.json").write_text("{ this is no session")
    page.open(serve("-demo", f"-session_dir={tmp_path}").url, "session-bad")
    page.wait_until(lambda: "cannot be understood" in page.text("#failure"), "the words")
    assert not page.shows("#empty")
    assert page.all("#send:disabled")
    write_session(tmp_path, "session-bad")
    page.click("#reopen")
    page.wait_until(lambda: page.answers == ["First answer"], "the session")


def test_a_session_that_is_not_there_says_so(here: Page, server: Server) -> None:
    here.open(server.url, "session-that-never-was")
    here.wait_until(lambda: "no longer on the server" in here.notice, "the words")
    assert here.session == ""


def test_a_session_that_loads_says_so_until_it_is_there(page: Page, serve: Serve, tmp_path: Path) -> None:
    write_session(tmp_path, "session-one")
    server = serve("-demo", f"-session_dir={tmp_path}")
    with Relay(server.port) as relay:
        page.open(f"http://127.0.0.1:{relay.port}")
        page.wait_until(lambda: page.all("#list a"), "the list")
        relay.cut()
        page.driver.execute_script("location.hash = 'session-one'")
        page.wait_until(lambda: page.shows("#loading") and "connection is lost" in page.notice, "the words")
        assert not page.shows("#empty")
        relay.mend()
        page.wait_until(lambda: page.answers == ["First answer"], "the session")
        page.driver.get("about:blank")


def test_a_message_sent_without_connection_stays_where_it_belongs(page: Page, server: Server, script: Script) -> None:
    script(answer("One."), answer("Two."), answer("Three."))
    with Relay(server.port) as relay:
        page.open(f"http://127.0.0.1:{relay.port}")
        page.ask("First")
        first = page.session
        page.click("#new")
        page.ask("Other")
        other = page.session
        relay.cut()
        page.send("Second")
        page.wait_until(lambda: page.questions == ["Other", "Second"], "the message")
        page.driver.execute_script("location.hash = arguments[0]", first)
        page.wait_until(lambda: page.shows("#loading"), "the other session")
        page.driver.execute_script("location.hash = arguments[0]", other)
        page.wait_until(lambda: page.questions == ["Other", "Second"], "the message at once")
        relay.mend()
        page.wait_until(lambda: page.answers == ["Two.", "Three."], "its answer")
        page.driver.get("about:blank")
    assert [message["content"] for message in server.messages(other)] == ["Other", "Two.", "Second", "Three."]


def test_a_message_that_was_on_its_way_is_sent_after_a_reload(page: Page, server: Server, script: Script) -> None:
    script(answer("One."), answer("Two."))
    with Relay(server.port) as relay:
        page.open(f"http://127.0.0.1:{relay.port}")
        page.ask("First")
        session = page.session
        relay.cut()
        page.send("Second")
        page.wait_until(lambda: "connection is lost" in page.notice, "the words")
        relay.mend()
        page.reload()
        page.wait_until(lambda: page.answers == ["One.", "Two."], "the answer")
        page.driver.get("about:blank")
    assert [message["content"] for message in server.messages(session)] == ["First", "One.", "Second", "Two."]


def test_a_session_far_down_the_list_has_its_title(page: Page, serve: Serve, tmp_path: Path) -> None:
    for number in range(60):
        write_session(tmp_path, f"session-{number}")
    write_session(tmp_path, "session-far", title="Far down")
    write_session(tmp_path, "session-untitled")
    for name in ("session-far", "session-untitled"):
        os.utime(tmp_path / f"{name}.json", (1, 1))
    server = serve("-demo", f"-session_dir={tmp_path}")
    page.open(server.url, "session-far")
    page.wait_until(lambda: page.text("#title") == "Far down", "the title")
    page.open(server.url, "session-untitled")
    page.wait_until(lambda: page.text("#title") == "First question", "the beginning of the first question")


def test_a_hidden_tab_lets_go_of_its_stream_and_takes_it_up_again(here: Page, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go), " two"))
    here.send("Count")
    here.wait_until(lambda: here.answers == ["one"], "the beginning")
    set_hidden(here, True)
    go.set()
    time.sleep(0.5)  # long enough for the rest to come if the stream were held
    assert here.answers == ["one"]
    set_hidden(here, False)
    here.wait_until(lambda: here.answers == ["one two"], "the rest")
    here.settle()


@pytest.mark.parametrize("dark", [False, True])
def test_paper_has_the_whole_conversation_alone(page: Page, server: Server, script: Script, dark: bool) -> None:
    script(answer("line\n\n" * 150))
    page.open(server.url)
    page.ask("A long one")
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [scheme]})
    try:
        assert not page.shows("#sessions")
        assert not page.shows("#composer")
        tall, whole = page.run(
            "return [document.documentElement.scrollHeight, document.querySelector('#conversation').scrollHeight]"
        )
        assert tall >= whole > 2000
        ink, paper = page.run(
            "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
        )
        assert (ink, paper) == ("rgb(32, 37, 43)", "rgb(255, 255, 255)")
        document = page.driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert len(document) > 10_000
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


COMPOSING = """
const [id, key, isComposing] = given;
const field = document.getElementById(id);
field.focus();
const event = new KeyboardEvent("keydown", { key, keyCode: 229, isComposing, bubbles: true, cancelable: true });
field.dispatchEvent(event);
"""


@pytest.mark.parametrize("composing", [True, False])
def test_enter_that_confirms_a_word_sends_nothing(here: Page, composing: bool) -> None:
    here.type("#message", "にほん")
    here.run(COMPOSING, "message", "Enter", composing)
    assert (here.questions, here.written) == ([], "にほん")


@pytest.mark.parametrize("composing", [True, False])
def test_escape_that_leaves_a_word_closes_nothing(here: Page, composing: bool) -> None:
    here.ask("Hello")
    here.choose("rename")
    here.run(COMPOSING, "rename-text", "Escape", composing)
    assert here.shows("#rename-text")


def test_a_draft_is_there_after_a_reload(here: Page) -> None:
    here.ask("Hello")
    here.type("#message", "Half a thought")
    here.reload()
    here.wait_until(lambda: here.written == "Half a thought", "the draft")
    here.click("#new")
    here.wait_until(lambda: here.written == "", "an empty box")
    here.driver.back()
    here.wait_until(lambda: here.written == "Half a thought", "the draft")
    here.send("")
    here.wait_until(lambda: here.questions == ["Hello", "Half a thought"], "the message")
    here.settle()
    here.reload()
    here.wait_until(lambda: here.questions == ["Hello", "Half a thought"], "the conversation")
    assert here.written == ""


def test_a_small_step_upwards_leaves_the_end(here: Page, script: Script) -> None:
    first, second = threading.Event(), threading.Event()
    script(answer("line\n\n" * 60, wait(first), "line\n\n" * 20, wait(second), "end"))
    here.send("A long one")
    here.wait_until(lambda: len(here.text(".answer .text").split()) == 60, "the first part")
    left = "const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"
    here.wait_until(lambda: here.run(left) < 1, "the end in view")
    top = here.run("const s = document.getElementById('scroller'); s.scrollTop -= 20; return s.scrollTop")
    here.wait_until(lambda: here.shows("#latest"), "the way back")
    first.set()
    here.wait_until(lambda: len(here.text(".answer .text").split()) == 80, "the second part")
    # What the page said of the silence is gone, which is a line.
    assert top - 30 < here.run("return document.getElementById('scroller').scrollTop") <= top
    second.set()
    here.settle()


def test_long_reasoning_is_followed_and_stays_open_for_its_reader(here: Page, script: Script) -> None:
    def thought(words: str) -> dict[str, object]:
        return {"choices": [{"index": 0, "delta": {"reasoning_content": words}}]}

    more, text = threading.Event(), threading.Event()
    done = {"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}
    script(frames(thought("thought\n" * 100), wait(more), thought("more\n" * 50), wait(text), done, "[DONE]"))
    here.send("Hi")
    rest = "const [p] = document.querySelectorAll('.thinking pre');"
    rest += "return p ? p.scrollHeight - p.scrollTop - p.clientHeight : -1"
    here.wait_until(lambda: 0 <= here.run(rest) < 2, "the end of the thought")
    more.set()
    here.wait_until(lambda: "more" in here.text(".thinking pre"), "more")
    assert here.run(rest) < 2
    here.click(".thinking pre")
    text.set()
    here.settle()
    assert here.shows(".thinking pre")


def test_what_is_said_of_a_running_answer_goes_with_it(here: Page, script: Script) -> None:
    go = threading.Event()
    script(answer("First."), answer("one", wait(go), " two"))
    here.ask("Hello")
    here.send("Count")
    here.wait_until(lambda: here.answers == ["First.", "one"], "the beginning")
    edit(here, 0, "Hello again")
    here.wait_until(lambda: "being written" in here.notice, "the words")
    go.set()
    here.settle()
    here.wait_until(lambda: here.notice == "", "no words")


def test_a_refused_setting_is_told_in_the_dialog(here: Page, script: Script) -> None:
    here.ask("Hello")
    here.choose("settings")
    here.click("#own-prompt")
    here.run("document.getElementById('system-prompt').value = 'é'.repeat(40000)")
    here.click("#settings-form button:not([type])")
    here.wait_until(lambda: "64 KiB" in here.text("#settings-error"), "the words in the dialog")
    assert here.shows("#settings-dialog")


def test_a_turn_after_an_edited_question_does_not_read_the_session_anew(here: Page, script: Script) -> None:
    here.ask("first")
    edit(here, 0, "FIRST")
    here.wait_until(lambda: here.text(".place") == "2 / 2", "the versions")
    here.settle()
    here.run("performance.clearResourceTimings()")
    here.ask("second")
    names = here.run("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert [name for name in names if "replaced=true" in name] == []


def test_who_asks_is_told_and_can_leave(page: Page, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "users").write_text("ann secret-of-ann\nbob secret-of-bob\n")
    page.open(serve("-demo", f"-users={tmp_path}/users").url)
    page.wait_until(lambda: page.shows("#token-dialog"), "the question")
    assert "Whoever runs this server" in page.text("#token-hint")
    page.click("#token-cancel")
    page.wait_until(lambda: "who you are" in page.notice, "the words")
    time.sleep(0.5)
    assert not page.shows("#token-dialog")
    page.click(".sign-in")
    page.type("#token-field", "secret-of-ann", Keys.ENTER)
    page.wait_until(lambda: page.text("#user") == "ann", "the name")
    page.click("#page-menu")
    page.click("#sign-out")
    page.wait_until(lambda: page.shows("#token-dialog"), "the question again")


def test_an_export_is_markdown_as_the_model_wrote_it(here: Page, script: Script, tmp_path: Path) -> None:
    here.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    script(answer("## Plan\n\n- one\n- two"))
    here.ask("What now?")
    here.wait_until(lambda: here.text("#title") == "What now?", "the title")
    here.choose("export")
    path = tmp_path / "What-now.md"
    here.wait_until(path.exists, "the file")
    here.wait_until(lambda: "\n## Plan\n\n- one\n- two\n" in path.read_text(), "the answer")
    assert "> What now?" in path.read_text()


def test_an_exported_session_is_imported(here: Page, server: Server, script: Script, tmp_path: Path) -> None:
    here.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    script(answer("One."))
    here.ask("Take me along")
    first = here.session
    here.wait_until(lambda: here.text("#title") == "Take me along", "the title")
    here.choose("export-json")
    path = tmp_path / "Take-me-along.json"
    here.wait_until(path.exists, "the file")
    here.wait_until(lambda: path.read_text().endswith("}"), "all of it")
    here.all("#import-file")[0].send_keys(str(path))
    here.wait_until(lambda: here.session not in ("", first) and here.answers == ["One."], "the copy")


def test_what_waits_says_for_what_and_for_how_long(here: Page, script: Script) -> None:
    script(answer(STALL))
    here.send("Write")
    here.wait_until(lambda: here.text(".waiting").startswith("Waiting for the model"), "the words")
    here.wait_until(lambda: " 2 s" in here.text(".waiting"), "the seconds")
    here.click("#stop")
    here.settle()
    assert not here.all(".waiting")


def test_failure_alone_has_the_colour_of_failure(here: Page, script: Script) -> None:
    script(answer("Half", finish_reason="length"), answer("Half", BREAK))
    here.ask("Write")
    assert not here.all(".note.failure")
    here.ask("Again")
    assert len(here.all(".note.failure")) == 1


def test_a_first_visit_helps(page: Page, serve: Serve) -> None:
    page.open(serve("-demo").url)
    page.wait_until(lambda: "only calculates" in page.text("#facts"), "the words")
    assert page.shows("#greeting")
    page.click(".example")
    page.wait_until(lambda: page.answers == ["15 * 23 is 345."], "the answer")
    assert not page.shows("#greeting")


def test_an_answer_is_tried_with_another_model(page: Page, model: ModelServer, serve: Serve, script: Script) -> None:
    page.open(serve(f"-base_url={model.base_url}", "-models=large").url)
    page.ask("Hello")
    page.driver.execute_script("arguments[0].click()", page.all(".again-with")[0])
    page.wait_until(lambda: page.shows(".message-actions [role=menuitem]"), "the models")
    page.all(".message-actions [role=menuitem]")[1].click()
    page.wait_until(lambda: model.requests[-1]["model"] == "large", "the other model")
    page.settle()


def test_what_an_edit_hides_can_be_shown_again(here: Page, script: Script) -> None:
    script(*map(answer, ("One.", "Two.", "ONE.")))
    here.ask("first")
    here.ask("second")
    edit(here, 0, "FIRST")
    here.wait_until(lambda: here.answers == ["ONE."], "the new answer")
    here.settle()
    assert "hidden" in here.notice
    here.click("#notice .notice-action")
    here.wait_until(lambda: here.questions == ["first", "second"], "what was hidden")
    here.reload()
    here.wait_until(lambda: here.questions == ["first", "second"], "the same after a reload")
