"""The chat page in a real browser, against a real server process."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import BREAK, STALL, ModelServer, answer, frames, status, tool_call, wait
from tests.support.relay import Relay
from tests.support.server import Server, wait_until

pytestmark = pytest.mark.skipif(not (browser.CHROMIUM and browser.DRIVER), reason=browser.NEEDS)

Script = Callable[..., None]
Serve = Callable[..., Server]


def written(directory: Path, session: str, count: int) -> None:
    """A session file with that many messages."""
    at = "2026-01-31T12:34:56Z"
    roles = ["user", "assistant"]
    messages = [
        {"id": f"msg-{index}", "role": roles[index % 2], "content": f"number {index}", "created_at": at}
        for index in range(count)
    ]
    data = {"id": session, "created_at": at, "updated_at": at, "messages": messages}
    (directory / f"{session}.json").write_text(json.dumps(data))


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
    assert here.driver.execute_script("return document.getElementById('message').value") == text


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
    assert here.driver.execute_script("return document.getElementById('message').value") == "Mine"
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
    assert page.all("#message")[0].get_attribute("value") == "Me too"
    other.close()


# A page that comes and goes


def test_a_reload_in_mid_answer_loses_and_doubles_nothing(here: Page, script: Script) -> None:
    go = threading.Event()
    call = tool_call("calculator", {"expression": "2**10"}, text="Let me see.")
    script(answer("Before."), call, answer("It is", wait(go), " 1024."))
    here.ask("Hello")
    here.send("What is 2**10?")
    here.wait_until(lambda: here.answers[-1:] == ["It is"], "the beginning")
    here.reload()
    here.wait_until(lambda: here.answers == ["Before.", "Let me see.", "It is"], "the running turn")
    assert here.questions == ["Hello", "What is 2**10?"]
    assert len(here.all(".tool")) == 1
    go.set()
    here.settle()
    assert here.answers == ["Before.", "Let me see.", "It is 1024."]
    assert here.questions == ["Hello", "What is 2**10?"]
    assert len(here.all(".tool")) == 1


def test_a_second_tab_shows_the_running_turn(here: Page, server: Server, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go), " two"))
    here.send("Count")
    here.wait_until(lambda: here.answers == ["one"], "the beginning")
    session, first = here.session, here.driver.current_window_handle
    here.driver.switch_to.new_window("tab")
    here.open(server.url, session)
    here.wait_until(lambda: here.answers == ["one"], "the same turn in the second tab")
    go.set()
    here.wait_until(lambda: here.answers == ["one two"], "its end in the second tab")
    here.driver.switch_to.window(first)
    here.wait_until(lambda: here.answers == ["one two"], "its end in the first tab")


def test_a_second_tab_can_try_a_failed_turn_again_as_the_same_turn(
    here: Page, server: Server, script: Script
) -> None:
    script(status(401, {"error": {"message": "bad key"}}), answer("Now."))
    here.ask("Write")
    session = here.session
    here.driver.switch_to.new_window("tab")
    here.open(server.url, session)
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Now."], "the answer")
    here.settle()
    assert [message["role"] for message in server.messages(session)] == ["user", "assistant"]


def test_a_turn_that_another_program_starts_appears(here: Page, server: Server, script: Script) -> None:
    go = threading.Event()
    script(answer("First."), answer("one", wait(go), " two"))
    here.ask("Hello")
    other = server.say(here.session, "From another program")
    here.wait_until(lambda: here.answers == ["First.", "one"], "the other's turn")
    assert here.questions == ["Hello", "From another program"]
    go.set()
    here.settle()
    assert here.answers == ["First.", "one two"]
    other.close()


def test_a_broken_connection_is_taken_up_after_the_last_event(page: Page, server: Server, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go), " two"))
    with Relay(server.port) as relay:
        page.open(f"http://127.0.0.1:{relay.port}")
        page.send("Count")
        page.wait_until(lambda: page.answers == ["one"], "the beginning")
        relay.cut()
        page.wait_until(lambda: "connection is lost" in page.notice, "the words")
        go.set()
        assert page.answers == ["one"]
        relay.mend()
        page.wait_until(lambda: page.answers == ["one two"], "the rest")
        page.settle()
        assert (page.questions, page.answers, page.notice) == (["Count"], ["one two"], "")
        page.driver.get("about:blank")


def test_a_message_that_finds_no_way_to_the_server_is_sent_when_there_is_one(
    page: Page, server: Server, script: Script
) -> None:
    script(answer("Hello."), answer("There."))
    with Relay(server.port) as relay:
        page.open(f"http://127.0.0.1:{relay.port}")
        page.ask("Hello")
        relay.cut()
        page.send("Are you there?")
        page.wait_until(lambda: "connection is lost" in page.notice, "the words")
        relay.mend()
        page.wait_until(lambda: page.answers == ["Hello.", "There."], "the answer")
        page.settle()
        assert [message["content"] for message in server.messages(page.session)][2:] == ["Are you there?", "There."]
        page.driver.get("about:blank")


def test_a_server_that_is_killed_in_mid_answer_is_found_again_and_asked_again(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    flags = [f"-session_dir={tmp_path}/sessions", f"-base_url={model.base_url}"]
    script(answer("Half", STALL), answer("Whole."))
    first = serve(*flags)
    page.open(first.url)
    page.send("Write")
    page.wait_until(lambda: page.answers == ["Half"], "the beginning")
    wait_until(
        lambda: any(b"Half" in file.read_bytes() for file in (tmp_path / "sessions").iterdir())
    )  # in the journal
    first.kill()
    page.wait_until(lambda: "connection is lost" in page.notice, "the words")
    second = serve(*flags, f"-port={first.port}")
    page.wait_until(lambda: page.shows(".retry"), "the way to ask again")
    page.click(".retry")
    page.wait_until(lambda: page.answers == ["Half", "Whole."], "the answer")
    page.settle()
    assert page.questions == ["Write"]
    assert [message["content"] for message in second.messages(page.session)] == ["Write", "Half", "Whole."]


def test_a_server_that_is_stopped_in_mid_answer_says_so_and_keeps_the_beginning(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    flags = [f"-session_dir={tmp_path}/sessions", f"-base_url={model.base_url}", "-grace=0"]
    script(answer("Half", STALL))
    first = serve(*flags)
    page.open(first.url)
    page.send("Write")
    page.wait_until(lambda: page.answers == ["Half"], "the beginning")
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0
    serve(*flags, f"-port={first.port}")
    page.wait_until(lambda: page.shows(".retry"), "the end of the turn")
    assert page.answers == ["Half"]
    page.reload()
    page.wait_until(lambda: "stopped" in page.note, "the reason")
    assert page.answers == ["Half"]


def test_the_answer_of_another_process_appears_when_it_is_complete(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    go = threading.Event()
    script(answer("one", wait(go), " two"))
    flags = [f"-session_dir={tmp_path}/sessions", f"-base_url={model.base_url}"]
    first, second = serve(*flags), serve(*flags)
    session = first.create()
    other = first.say(session, "Count")
    next(other.events())
    page.open(second.url, session)
    page.wait_until(lambda: page.notice, "the words")
    assert (page.questions, page.answers) == (["Count"], [])
    go.set()
    page.wait_until(lambda: page.answers == ["one two"], "the answer")
    other.close()


def test_a_session_that_ended_with_its_server_is_said_to_be_gone(
    page: Page, serve: Serve, model: ModelServer, script: Script
) -> None:
    first = serve(f"-base_url={model.base_url}")
    page.open(first.url)
    page.ask("Hello")
    first.kill()
    serve(f"-base_url={model.base_url}", f"-port={first.port}")
    page.driver.execute_script("dispatchEvent(new Event('focus'))")  # as when the reader comes back to the window
    page.wait_until(lambda: "no longer on the server" in page.notice, "the words")
    page.ask("Hello again")
    assert (page.questions, page.answers) == (["Hello again"], ["OK"])


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
        written(tmp_path, f"session-{number}", 2)
    page.open(serve("-demo", f"-session_dir={tmp_path}").url)
    page.wait_until(lambda: len(page.all("#list li")) == 50, "the first page")
    page.click("#more")
    page.wait_until(lambda: len(page.all("#list li")) == 100, "the second page")
    page.click("#more")
    page.wait_until(lambda: len(page.all("#list li")) == 120, "the third page")
    assert not page.shows("#more")


def test_a_thousand_messages_come_in_pages_and_can_be_added_to(page: Page, serve: Serve, tmp_path: Path) -> None:
    written(tmp_path, "session-long", 1000)
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


# Safety


HOSTILE = [
    '<img src=x onerror="window.pwned = 1">',
    "<script>window.pwned = 1</script>",
    "[click](javascript:window.pwned=1)",
    "[click](data:text/html,<script>window.pwned=1</script>)",
    '<a href="javascript:window.pwned=1">click</a>',
    "\u202etxet\u200b\ufeff\u2066",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_shown_as_they_are(here: Page, script: Script, text: str) -> None:
    script(tool_call("calculator", {"expression": text}, text=text), answer(text))
    here.ask(text)
    for state in ("live", "stored"):
        here.wait_until(lambda: len(here.answers) == 2, state)
        contents = here.driver.execute_script(
            "return [...document.querySelectorAll('.answer .text, .question .body')].map((node) => node.textContent)"
        )
        assert contents == [text] * 3
        assert not here.all("#conversation :is(a, img, script, iframe)")
        assert not here.driver.execute_script("return window.pwned")
        here.reload()


def test_links_lead_to_the_web_only_and_tell_it_nothing(here: Page, script: Script) -> None:
    script(answer("[docs](https://example.org/a?b=1) https://example.org/c. [mail](mailto:a@example.org)"))
    here.ask("Links")
    links = here.all("#conversation .text a")
    assert [link.get_attribute("href") for link in links] == [
        "https://example.org/a?b=1",
        "https://example.org/c",
        "mailto:a@example.org",
    ]
    assert {link.get_attribute("rel") for link in links} == {"noopener noreferrer"}
    assert {link.get_attribute("target") for link in links} == {"_blank"}


def test_an_image_is_a_link_and_is_not_loaded(here: Page, script: Script) -> None:
    script(answer("![a picture](https://example.org/x.png)"))
    here.ask("Show me")
    assert here.texts("#conversation .text a") == ["a picture"]
    assert not here.all("#conversation img")


def test_the_token_is_asked_for_and_kept_for_the_tab(
    page: Page, serve: Serve, model: ModelServer, script: Script
) -> None:
    server = serve(f"-base_url={model.base_url}", "-auth_token=correct-horse")
    page.open(server.url)
    page.type("#token-field", "wrong", Keys.ENTER)
    page.wait_until(lambda: "did not accept" in page.text("#token-hint"), "the words")
    page.type("#token-field", "correct-horse", Keys.ENTER)
    page.wait_until(lambda: not page.shows("#token-dialog"), "the end of the question")
    page.ask("Hello")
    assert page.answers == ["OK"]
    page.reload()
    page.wait_until(lambda: page.answers == ["OK"], "the session")
    assert not page.shows("#token-dialog")


# Text


MARKDOWN = """# Plan

1. **one**
   - _two_

> said

| a | b |
|---|---|
| 1 | `2` |

```py
x = 1 < 2
```
"""


@pytest.mark.parametrize(
    ("selector", "texts"),
    [
        ("h3", ["Plan"]),
        ("ol > li strong", ["one"]),
        ("li li em", ["two"]),
        ("blockquote", ["said"]),
        ("td", ["1", "2"]),
        ("td code", ["2"]),
        ("pre", ["x = 1 < 2"]),
    ],
)
def test_markdown_becomes_elements(here: Page, script: Script, selector: str, texts: list[str]) -> None:
    script(answer(MARKDOWN))
    here.ask("Show me")
    assert here.texts(f".text {selector}") == texts


def test_arithmetic_and_names_are_no_markdown(here: Page, script: Script) -> None:
    text = "2*3*4 is 24, 2**10 is 1024, a * b * c, and snake_case_name stays"
    script(answer(text))
    here.ask("Show me")
    assert here.answers == [text]


def test_code_is_copied_as_it_was_written(here: Page, script: Script) -> None:
    script(answer("```py\nif a < b:\n\treturn 1\n```"))
    here.ask("Show me")
    here.click(".code button")
    here.wait_until(lambda: here.text(".code button") == "Copied", "the copy")
    here.type("#message", Keys.CONTROL + "v")
    assert here.all("#message")[0].get_attribute("value") == "if a < b:\n\treturn 1"


def test_the_page_follows_the_answer_unless_the_reader_has_scrolled_up(here: Page, script: Script) -> None:
    first, second = threading.Event(), threading.Event()
    script(answer("line\n\n" * 50, wait(first), "line\n\n" * 50, wait(second), "line\n\n" * 50 + "last"))
    left = "const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"
    here.send("A long one")
    here.wait_until(lambda: len(here.text(".answer .text").split()) == 50, "the first part")
    here.wait_until(lambda: here.driver.execute_script(left) < 1, "the end in view")
    first.set()
    here.wait_until(lambda: len(here.text(".answer .text").split()) == 100, "the second part")
    here.wait_until(lambda: here.driver.execute_script(left) < 1, "the end in view")
    here.driver.execute_script("document.getElementById('scroller').scrollTop = 100")
    here.wait_until(lambda: here.shows("#latest"), "the way back to the end")
    second.set()
    here.settle()
    assert here.driver.execute_script("return document.getElementById('scroller').scrollTop") == 100
    here.click("#latest")
    here.wait_until(lambda: here.driver.execute_script(left) < 1, "the end in view")


def test_text_that_comes_in_pieces_is_drawn_like_text_that_comes_whole(here: Page) -> None:
    differing = here.run(
        r"""
        const { markdown } = await import("/markdown.js");
        const { Answer } = await import("/answer.js");
        const parts = ["# T\n", "word ", "**b** ", "- a\n", "  - b\n", "1. x\n", "\n", "```\n", "~~~\n", "> q\n",
          "* ", "| a | b |\n", "|---|---|\n", "---\n", "`c`", "[l](https://e.org)", "   in\n", "*i*", "\tt\n", "3) "];
        let seed = 1;
        const random = (below) => (seed = (seed * 48271) % 2147483647) % below;
        const differing = [];
        for (let round = 0; round < 500; round += 1) {
          const text = Array.from({ length: random(25) + 1 }, () => parts[random(parts.length)]).join("");
          const whole = document.createElement("div");
          whole.append(...markdown(text).map(({ node }) => node));
          const answer = new Answer(document.createElement("div"));
          for (let at = 0; at < text.length; ) {
            const next = at + 1 + random(9);
            answer.write(text.slice(at, next));
            answer.text.draw();
            at = next;
          }
          if (answer.text.node.innerHTML !== whole.innerHTML) differing.push(text);
        }
        return differing;
        """
    )
    assert differing == []


def test_no_text_holds_up_the_page(here: Page) -> None:
    slow = here.run(
        r"""
        const { markdown } = await import("/markdown.js");
        const parts = ["*a ", "**a __b ", "`", "`a``b```c", "[", "[a](", "[a](http://x", "](http://x \"", "http://a.b/((",
          ">", "> > \n", "- ", "- a\n", " - a\n", "# ", " #", "|", "|-", "a|b\n-|-\n", "```\n", " ", "\n", "*[_`~~**",
          "http://" + ".".repeat(999)];
        const slow = [];
        for (const part of parts) {
          const text = part.repeat(100_000 / part.length) + "x";
          const begun = performance.now();
          markdown(text);
          const took = performance.now() - begun;
          if (took > 3000) slow.push([part, took]);
        }
        return slow;
        """
    )
    assert slow == []


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


def test_it_is_dark_where_the_reader_wants_that(page: Page, server: Server, script: Script) -> None:
    background = "return getComputedStyle(document.body).backgroundColor"
    page.open(server.url)
    light = page.driver.execute_script(background)
    browser.resize(page.driver, 1200, 800, dark=True)
    assert page.driver.execute_script(background) != light
