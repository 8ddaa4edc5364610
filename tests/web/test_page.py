"""The chat page in a real browser, against a real server process."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import BREAK, STALL, ModelServer, answer, frames, status, tool_call, wait
from tests.support.server import Server
from tests.support.session_files import write_numbered
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED


def exists(server: Server, session: str) -> bool:
    reply = server.request("GET", f"/sessions/{session}")
    reply.close()
    return reply.status == 200


# The conversation


def test_a_message_is_answered_and_both_are_shown(here: Page, script: Script) -> None:
    script(answer("Good ", "morning."))
    here.ask("Hello")
    assert (here.questions, here.answers) == (["Hello"], ["Good morning."])


def test_a_conversation_is_there_again_after_a_reload(here: Page, script: Script) -> None:
    script(answer("One."), answer("Two."))
    here.ask("First")
    here.ask("Second")
    here.reload()
    here.wait_until(lambda: (here.questions, here.answers) == (["First", "Second"], ["One.", "Two."]), "both turns")


def test_the_answer_is_shown_while_the_model_writes_it(here: Page, script: Script) -> None:
    first, second = threading.Event(), threading.Event()
    script(answer("one", wait(first), " two", wait(second), " three"))
    here.send("Count")
    here.wait_until(lambda: here.answers == ["one"], "the first word")
    first.set()
    here.wait_until(lambda: here.answers == ["one two"], "the second word")
    second.set()
    here.settle()
    assert here.answers == ["one two three"]


def test_tool_calls_are_shown_closed_and_open_to_a_click(here: Page, script: Script) -> None:
    script(tool_call("calculator", {"expression": "15 * 23"}, text="Let me see."), answer("It is 345."))
    here.ask("What is 15 * 23?")
    assert here.answers == ["Let me see.", "It is 345."]
    assert here.texts("summary") == ["calculator 15 * 23 → 345"]
    assert not here.shows(".tool pre")
    here.click("summary")
    assert here.texts(".tool pre") == ['{"expression": "15 * 23"}', "345"]


def test_a_stored_tool_call_looks_as_it_did_live(here: Page, script: Script) -> None:
    script(tool_call("calculator", {"expression": "1/0"}), answer("That has no value."))
    here.ask("What is 1/0?")
    live = here.texts(".answer")
    here.reload()
    here.wait_until(lambda: here.texts(".answer") == live, "the same answer")


def thought(words: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"reasoning_content": words}}]}


def said(words: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": words}, "finish_reason": "stop"}]}


def test_reasoning_is_open_while_it_comes_and_folded_after(here: Page, script: Script) -> None:
    more, text = threading.Event(), threading.Event()
    script(frames(thought("Let me "), wait(more), thought("think."), wait(text), said("Hello"), "[DONE]"))
    here.send("Hi")
    here.wait_until(lambda: here.texts(".thinking pre") == ["Let me "], "the first words")
    assert here.texts(".thinking summary") == ["Thinking …"]
    more.set()
    here.wait_until(lambda: here.texts(".thinking pre") == ["Let me think."], "the others")
    text.set()
    here.settle()
    assert here.answers == ["Hello"]
    assert not here.shows(".thinking pre")
    assert re.fullmatch(r"Thinking, \d+ s", here.texts(".thinking summary")[0])
    here.click(".thinking summary")
    assert here.texts(".thinking pre") == ["Let me think."]


def test_stored_reasoning_is_shown_folded_and_as_plain_text(here: Page, script: Script) -> None:
    script(frames(thought("<b>bold</b> *and* so on"), said("Hello"), "[DONE]"))
    here.ask("Hi")
    here.reload()
    here.wait_until(lambda: here.answers == ["Hello"], "the answer")
    assert here.texts(".thinking summary") == ["Thinking"]
    here.click(".thinking summary")
    assert here.texts(".thinking pre") == ["<b>bold</b> *and* so on"]


def test_a_conversation_leaves_no_complaint_in_the_console(here: Page, script: Script) -> None:
    script(answer("```python\nprint(1)\n```\n[a link](https://example.org) and <b>no</b> bold"))
    here.ask("Show me")
    assert here.driver.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_the_page_loads_nothing_from_elsewhere(here: Page, server: Server) -> None:
    here.ask("Hello")
    names = here.driver.execute_script("return performance.getEntriesByType('resource').map(({ name }) => name)")
    assert names
    assert all(name.startswith((f"{server.url}/", "data:")) for name in names)


# Stopping, and what does not end well


def test_stop_keeps_what_was_written_and_says_so(here: Page, server: Server, script: Script) -> None:
    script(answer("Half an", STALL))
    here.send("Write")
    here.wait_until(lambda: here.answers == ["Half an"], "the beginning")
    here.click("#stop")
    here.settle()
    assert here.answers == ["Half an"]
    assert "Stopped" in here.note
    assert server.messages(here.session)[-1]["status"] == "cancelled"


def test_escape_stops_before_the_first_word(here: Page, server: Server, script: Script) -> None:
    script(answer(STALL))
    here.send("Write")
    here.wait_until(lambda: here.shows("#stop") and here.session, "the turn")
    here.press(Keys.ESCAPE)
    here.settle()
    assert "Stopped" in here.note
    assert server.messages(here.session)[-1]["status"] == "cancelled"


def test_a_stopped_answer_is_tried_again_in_its_place(here: Page, server: Server, script: Script) -> None:
    script(answer("Half", STALL), answer("Whole."))
    here.send("Write")
    here.wait_until(lambda: here.answers == ["Half"], "the beginning")
    here.click("#stop")
    here.settle()
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Whole."], "the second answer")
    here.settle()
    assert here.questions == ["Write"]
    assert [message["content"] for message in server.messages(here.session)] == ["Write", "Whole."]


def test_an_answer_at_the_limit_of_length_says_so_and_is_tried_again_in_its_place(here: Page, script: Script) -> None:
    script(answer("Half", finish_reason="length"), answer("Whole."))
    here.ask("Write")
    assert "limit of length" in here.note
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Whole."], "the new turn")
    here.settle()
    assert here.questions == ["Write"]


def test_a_failed_turn_is_tried_again_as_the_same_turn(here: Page, server: Server, script: Script) -> None:
    script(status(401, {"error": {"message": "bad key"}}), answer("Now."))
    here.ask("Write")
    assert here.answers == []
    assert "key" in here.note
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Now."], "the answer")
    here.settle()
    assert (here.questions, here.note) == (["Write"], "")
    assert [message["role"] for message in server.messages(here.session)] == ["user", "assistant"]


def test_what_a_failed_turn_has_written_stays_shown(here: Page, server: Server, script: Script) -> None:
    script(answer("Half", BREAK), answer("Whole."))
    here.ask("Write")
    assert here.answers == ["Half"]
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Half", "Whole."], "the answer")
    here.settle()
    here.reload()
    here.wait_until(lambda: here.answers == ["Half", "Whole."], "the same after a reload")
    assert here.questions == ["Write"]
    assert len(server.messages(here.session)) == 3


def test_a_failed_turn_can_be_tried_again_after_a_reload(here: Page, server: Server, script: Script) -> None:
    script(status(401, {"error": {"message": "bad key"}}), answer("Now."))
    here.ask("Write")
    here.reload()
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Now."], "the answer")
    here.settle()
    assert [message["role"] for message in server.messages(here.session)] == ["user", "assistant"]


def test_a_message_that_was_refused_goes_back_into_the_box(here: Page) -> None:
    text = "\n".join([15 * "words "] * 12_000).strip()
    here.driver.execute_script("document.getElementById('message').value = arguments[0]", text)
    here.click("#send")
    here.wait_until(lambda: here.notice, "the words")
    assert here.questions == []
    assert here.written == text


def test_a_session_that_is_busy_shows_its_running_turn_and_gives_the_message_back(
    here: Page, server: Server, script: Script
) -> None:
    go = threading.Event()
    script(answer("First."), answer("For another", wait(go), " program."))
    here.ask("Hello")
    # The page does not look while it is hidden, so that it does not know of the other's turn.
    here.driver.execute_script("Object.defineProperty(document, 'hidden', { value: true })")
    other = server.say(here.session, "From another program")
    next(other.events())
    here.send("Mine")
    here.wait_until(lambda: here.answers == ["First.", "For another"], "the other's turn")
    assert "back in the box" in here.notice
    assert here.written == "Mine"
    go.set()
    here.settle()
    here.click("#send")
    here.wait_until(lambda: here.answers == ["First.", "For another program.", "OK"], "the answer to mine")
    assert here.questions == ["Hello", "From another program", "Mine"]
    other.close()


def test_a_server_with_too_much_to_do_says_when_to_try_again(
    page: Page, serve: Serve, model: ModelServer, script: Script
) -> None:
    script(answer(STALL))
    server = serve(f"-base_url={model.base_url}", "-max_streams=1")
    other = server.say(server.create(), "First come")
    next(other.events())
    page.open(server.url)
    page.send("Me too")
    page.wait_until(lambda: page.notice, "the words")
    page.settle()
    assert page.questions == []
    assert page.written == "Me too"
    other.close()


# The list


def test_a_new_session_stands_first_in_the_list_under_its_first_message(here: Page) -> None:
    here.ask("The first one")
    here.click("#new")
    here.ask("The second one")
    here.wait_until(lambda: here.texts("#list .name")[:2] == ["The second one", "The first one"], "both")
    assert here.texts("#list [aria-current] .name") == ["The second one"]


def test_a_click_in_the_list_shows_that_session(here: Page, script: Script) -> None:
    script(answer("One."), answer("Two."))
    here.ask("The first one")
    first = here.session
    here.click("#new")
    here.ask("The second one")
    here.click(f'#list a[href="#{first}"]')
    here.wait_until(lambda: here.answers == ["One."], "the first session")
    here.driver.back()
    here.wait_until(lambda: here.answers == ["Two."], "the second session")


def test_a_running_turn_goes_on_while_another_session_is_shown(here: Page, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go), " two"))
    here.send("Count")
    here.wait_until(lambda: here.answers == ["one"], "the beginning")
    first = here.session
    here.click("#new")
    here.wait_until(lambda: here.answers == [], "a new session")
    here.ask("Meanwhile")
    assert here.answers == ["OK"]
    go.set()
    here.click(f'#list a[href="#{first}"]')
    here.wait_until(lambda: here.answers == ["one two"], "the first session")
    assert here.questions == ["Count"]


def test_a_title_has_no_marks_and_keeps_its_arithmetic(here: Page) -> None:
    here.ask("## What is **two** times `x`, or 2 * 3, or 2**8?")
    here.wait_until(lambda: here.text("#title") == "What is two times x, or 2 * 3, or 2**8?", "the title")


def test_a_session_is_renamed(here: Page, server: Server) -> None:
    here.ask("Hello")
    here.wait_until(lambda: here.text("#title") == "Hello", "the title")
    here.choose("rename")
    here.type("#rename-text", "A better title", Keys.ENTER)
    here.wait_until(lambda: here.text("#title") == "A better title", "the new title")
    listed = server.request("GET", "/sessions?details=true&limit=1").json["sessions"]
    assert [(one["id"], one["title"]) for one in listed] == [(here.session, "A better title")]
    assert here.texts("#list .name")[0] == "A better title"


def test_a_deleted_session_can_be_brought_back_for_some_seconds(here: Page, server: Server) -> None:
    here.ask("Hello")
    session = here.session
    here.choose("delete")
    here.wait_until(lambda: here.questions == [], "the new session")
    assert not here.all(f'#list a[href="#{session}"]')
    assert exists(server, session)
    assert here.text("#deleted-name") == "Hello"
    here.click("#undo")
    here.wait_until(lambda: here.questions == ["Hello"], "the session again")
    here.wait_until(lambda: here.all(f'#list a[href="#{session}"]'), "its line in the list")
    here.choose("delete")
    here.wait_until(lambda: not exists(server, session), "the end of the seconds")
    assert not here.shows("#deleted")


def test_a_reload_ends_the_time_to_bring_a_session_back(here: Page, server: Server) -> None:
    here.ask("Hello")
    session = here.session
    here.choose("delete")
    here.wait_until(lambda: here.shows("#deleted"), "the offer to undo")
    here.reload()
    here.wait_until(lambda: not exists(server, session), "the deletion")
    here.settle()
    assert not here.all(f'#list a[href="#{session}"]')


def test_a_long_list_comes_in_pages(page: Page, serve: Serve, tmp_path: Path) -> None:
    for number in range(120):
        write_numbered(tmp_path, f"session-{number}", 2)
    page.open(serve("-demo", f"-session_dir={tmp_path}").url)
    page.wait_until(lambda: len(page.all("#list li")) == 50, "the first page")
    page.click("#more")
    page.wait_until(lambda: len(page.all("#list li")) == 100, "the second page")
    page.click("#more")
    page.wait_until(lambda: len(page.all("#list li")) == 120, "the third page")
    assert not page.shows("#more")


def test_a_thousand_messages_come_in_pages_and_can_be_added_to(page: Page, serve: Serve, tmp_path: Path) -> None:
    write_numbered(tmp_path, "session-long", 1000)
    page.open(serve("-demo", f"-session_dir={tmp_path}").url, "session-long")
    page.wait_until(lambda: page.answers[-1:] == ["number 999"], "the newest")
    assert len(page.questions) < 50
    while page.shows("#earlier"):
        shown = len(page.questions)
        page.click("#earlier")
        page.wait_until(lambda shown=shown: len(page.questions) > shown, "earlier ones")  # type: ignore[misc]
    assert page.questions == [f"number {index}" for index in range(0, 1000, 2)]
    page.ask("What is 15 * 23?")
    assert page.answers[-1] == "15 * 23 is 345."
    assert len(page.questions) == 501


# For everybody


def test_everything_is_done_with_the_keyboard(here: Page, server: Server, script: Script) -> None:
    script(answer("Half", STALL))
    here.wait_until(lambda: here.focused == "message", "the focus in the box")
    here.press("Two", Keys.SHIFT + Keys.ENTER, Keys.NULL, "lines", Keys.ENTER)
    here.wait_until(lambda: here.answers == ["Half"], "the answer")
    here.press(Keys.ESCAPE)
    here.settle()
    assert here.questions == ["Two\nlines"]
    assert here.focused == "message"

    def tab_to(name: str, *held: str) -> None:
        for _ in range(20):
            if here.focused == name:
                return
            here.press(*held, Keys.TAB)
        raise AssertionError(f"Tab does not reach {name}")

    tab_to("Try again", Keys.SHIFT)
    here.press(Keys.ENTER)
    here.wait_until(lambda: here.answers == ["OK"], "the second answer")
    here.settle()
    tab_to("menu", Keys.SHIFT)
    here.press(Keys.ENTER)
    assert here.focused == "rename"
    here.press(Keys.ENTER)
    here.press("By keyboard", Keys.ENTER)
    here.wait_until(lambda: here.text("#title") == "By keyboard", "the new title")
    assert here.focused == "menu"
    session = here.session
    here.press(Keys.ENTER)
    here.press(Keys.ARROW_UP)
    assert here.focused == "delete"
    here.press(Keys.ENTER)
    here.wait_until(lambda: here.questions == [], "a new session")
    tab_to("undo", Keys.SHIFT)
    here.press(Keys.ENTER)
    here.wait_until(lambda: here.questions == ["Two\nlines"], "the session again")
    assert exists(server, session)


def test_a_screen_reader_hears_the_finished_answer_and_not_each_word(here: Page, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go), " two"))
    here.send("Count")
    here.wait_until(lambda: here.answers == ["one"], "the beginning")
    heard = "return document.getElementById('announcer').textContent"
    assert "one" not in here.driver.execute_script(heard)
    assert here.all("#conversation[aria-busy=true]")
    go.set()
    here.settle()
    assert here.driver.execute_script(heard) == "one two"


def test_every_control_has_a_name(here: Page) -> None:
    here.ask("Hello")
    here.choose("rename")
    controls = [one for one in here.all("button, input, textarea, a, [role=region], nav") if one.is_displayed()]
    assert controls
    assert [one.get_attribute("outerHTML") for one in controls if not one.accessible_name] == []


def test_on_a_phone_the_list_is_a_drawer(page: Page, server: Server, script: Script) -> None:
    browser.resize(page.driver, 390, 780)
    page.open(server.url)
    page.ask("On the phone")
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == 390
    assert not page.shows("#new")
    page.click("#open-list")
    page.wait_until(lambda: page.focused == "new", "the list")
    page.press(Keys.ESCAPE)
    page.wait_until(lambda: not page.shows("#new"), "the end of the list")
    assert page.focused == "open-list"


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_a_new_session_is_one_press_away_where_the_list_is_not_in_view(
    page: Page, server: Server, width: int
) -> None:
    browser.resize(page.driver, width, 800)
    page.open(server.url)
    page.ask("Hello")
    if width > 390:
        assert not page.shows("#new-here")
        page.click("#open-list")
    assert page.run("return document.documentElement.scrollWidth") == width
    page.click("#new-here")
    page.wait_until(lambda: page.shows("#empty") and not page.session, "the new session")
    assert not page.shows("#new-here")


def test_it_is_dark_where_the_reader_wants_that(page: Page, server: Server, script: Script) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    page.open(server.url)
    light = page.driver.execute_script(background)
    browser.resize(page.driver, 1200, 800, dark=True)
    assert page.driver.execute_script(background) != light
