"""The chat page: messages that are sent while an answer is written."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.letters import Letters
from tests.support.model_server import STALL, ModelServer, ReplyTo, answer, frames, tool_call, wait
from tests.support.server import Server
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED


def begin(page: Page, text: str = "Count") -> None:
    """Asks, and waits for the first word, and for the page to know that messages may wait."""
    before = len(page.questions)
    page.send(text)
    page.wait_until(lambda: page.answers[-1:] == ["one"] and len(page.questions) > before, "the beginning")
    page.wait_until(lambda: page.shows("#send") and page.shows("#stop"), "the way to go on typing")


def waiting(page: Page) -> list[str]:
    return page.texts("#queue li bdi")


def put_in_line(page: Page, *texts: str) -> None:
    for text in texts:
        page.send(text)
        page.wait_until(lambda text=text: waiting(page)[-1:] == [text], "its place in the line")  # type: ignore[misc]


def test_messages_wait_their_turn_and_are_asked_in_order(here: Page, server: Server, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go)), answer("two"), answer("three"))
    begin(here)
    put_in_line(here, "second", "third")
    assert here.written == ""
    go.set()
    here.wait_until(lambda: here.answers == ["one", "two", "three"], "all answers")
    here.settle()
    assert here.questions == ["Count", "second", "third"]
    assert not here.shows("#queue")
    assert [message["content"] for message in server.messages(here.session)][::2] == ["Count", "second", "third"]


HOLD_READ = """
const [ask, held] = [window.fetch, given[0]];
let reads = 0;
window.fetch = async (path, settings) => {
  if (path.endsWith("?limit=50") && (reads += 1) === held) await new Promise((go) => (window.go = go));
  return ask(path, settings);
};
"""


def test_each_answer_is_shown_once_however_late_the_session_is_read(
    here: Page, server: Server, script: Script
) -> None:
    first, second = threading.Event(), threading.Event()
    script(answer("one", wait(first)), answer("two", wait(second)), answer("three"))
    begin(here)
    put_in_line(here, "second", "third")
    here.run(HOLD_READ, 2)
    first.set()
    here.wait_until(lambda: here.run("return Boolean(window.go)"), "the read")
    time.sleep(1 - time.time() % 1)  # all in one second, which the times of messages are told in
    second.set()
    path = f"/sessions/{here.session}"
    here.wait_until(lambda: len(server.messages(here.session)) == 6, "all answers at the server")
    here.wait_until(lambda: not server.request("GET", path).json["running"], "the end")
    here.run("go()")
    here.wait_until(lambda: "three" in here.answers, "all answers")
    here.settle()
    assert here.questions == ["Count", "second", "third"]
    assert here.answers == ["one", "two", "three"]


def test_the_answer_to_what_waited_is_shown_as_it_grows_however_soon_it_began(
    here: Page, server: Server, script: Script
) -> None:
    first, second = threading.Event(), threading.Event()
    script(answer("one", wait(first)), answer("two", wait(second), " too"), answer("three"))
    begin(here)
    put_in_line(here, "second", "third")
    here.run(HOLD_READ, 1)
    first.set()
    here.wait_until(lambda: len(server.messages(here.session)) == 3, "the next turn")
    here.wait_until(lambda: here.run("return Boolean(window.go)"), "the read")
    here.run("go()")
    here.wait_until(lambda: here.answers == ["one", "two"], "the answer as it grows")
    assert waiting(here) == ["third"]
    second.set()
    here.wait_until(lambda: here.answers == ["one", "two too", "three"], "all answers")
    here.settle()
    assert here.questions == ["Count", "second", "third"]


def test_what_waits_is_taken_back_into_the_box(here: Page, server: Server, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go)))
    begin(here)
    here.send("second")
    here.wait_until(lambda: waiting(here) == ["second"], "its place in the line")
    here.click(".take-back")
    here.wait_until(lambda: not here.shows("#queue"), "its end")
    assert here.written == "second"
    go.set()
    here.settle()
    assert here.questions == ["Count"]
    assert len(server.messages(here.session)) == 2


def test_now_goes_into_the_running_turn(here: Page, model: ModelServer, script: Script) -> None:
    go = threading.Event()
    script(answer_and_call("one", go), answer("As you like."))
    begin(here)
    here.type("#message", "In French, please")
    here.click("#now")
    here.wait_until(lambda: waiting(here) == ["In French, please"] or len(here.questions) == 2, "the message")
    go.set()
    here.wait_until(lambda: here.answers[-1:] == ["As you like."], "the answer")
    here.settle()
    assert here.questions == ["Count", "In French, please"]
    assert [message["role"] for message in model.requests[-1]["messages"]][-3:] == ["assistant", "tool", "user"]
    assert not here.shows("#queue")


def answer_and_call(text: str, go: threading.Event) -> ReplyTo:
    """A text, and when it is time a call of the calculator."""
    call = {"index": 0, "id": "call_1", "type": "function"}
    function = {"name": "calculator", "arguments": '{"expression": "1+1"}'}
    return frames(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]},
        wait(go),
        {"choices": [{"index": 0, "delta": {"tool_calls": [{**call, "function": function}]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        "[DONE]",
    )


def test_instead_ends_the_answer_and_begins_another(here: Page, script: Script) -> None:
    script(answer("one", STALL), answer("Bonjour."))
    begin(here)
    here.type("#message", "In French, please")
    here.click("#instead")
    here.wait_until(lambda: here.answers == ["one", "Bonjour."], "the other answer")
    here.settle()
    assert here.questions == ["Count", "In French, please"]
    assert "Stopped" in here.note


def test_the_focus_is_in_the_box_after_the_press_of_a_button_that_goes(here: Page, script: Script) -> None:
    script(answer("one", STALL), answer("two", STALL))
    begin(here)
    here.type("#message", "second")
    for name, said in (("instead", "one"), ("stop", "two")):
        here.wait_until(lambda said=said: here.answers[-1:] == [said], "the answer")  # type: ignore[misc]
        here.run("document.getElementById(given[0]).focus()", name)
        here.press(Keys.SPACE)
        here.wait_until(lambda name=name: not here.shows(f"#{name}"), "its end")  # type: ignore[misc]
        assert here.focused == "message"
    here.settle()


def test_what_waits_is_there_after_a_reload_and_in_a_second_tab(here: Page, server: Server, script: Script) -> None:
    go = threading.Event()
    script(answer("one", wait(go)), answer("two"))
    begin(here)
    here.send("second")
    here.wait_until(lambda: waiting(here) == ["second"], "its place in the line")
    here.reload()
    here.wait_until(lambda: waiting(here) == ["second"], "the same after a reload")
    first, session = here.driver.current_window_handle, here.session
    here.driver.switch_to.new_window("tab")
    here.open(server.url, session)
    here.wait_until(lambda: waiting(here) == ["second"], "the same in a second tab")
    go.set()
    here.wait_until(lambda: here.answers == ["one", "two"], "both answers")
    here.driver.switch_to.window(first)
    here.wait_until(lambda: here.answers == ["one", "two"], "both answers in the first tab")


def test_stop_ends_this_answer_and_the_next_begins(here: Page, script: Script) -> None:
    script(answer("one", STALL), answer("two"))
    begin(here)
    here.send("second")
    here.wait_until(lambda: waiting(here) == ["second"], "its place in the line")
    here.click("#stop")
    here.wait_until(lambda: here.answers == ["one", "two"], "the next answer")
    here.settle()
    assert here.questions == ["Count", "second"]


def test_what_waits_is_asked_after_the_server_was_killed(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    flags = [f"-session_dir={tmp_path}/sessions", f"-base_url={model.base_url}"]
    script(answer("one", STALL))
    first = serve(*flags)
    page.open(first.url)
    begin(page)
    page.send("second")
    page.wait_until(lambda: waiting(page) == ["second"], "its place in the line")
    first.kill()
    script(answer("two"))
    serve(*flags, f"-port={first.port}")
    page.wait_until(lambda: "connection" not in page.notice, "the server")
    page.wait_until(lambda: page.questions == ["Count", "second"], "both questions")
    page.wait_until(lambda: page.answers[-1:] == ["two"], "the answer")
    page.settle()
    assert not page.shows("#queue")


def test_while_somebody_is_asked_the_line_holds(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    go = threading.Event()
    letters = Letters(tmp_path)
    script(answer_and_call("one", go), tool_call("send", {"to": "Ann"}, id="call_2"), answer("Sent."), answer("two"))
    page.open(serve(letters.flag, f"-base_url={model.base_url}").url)
    begin(page)
    page.send("second")
    page.wait_until(lambda: waiting(page) == ["second"], "its place in the line")
    go.set()
    page.wait_until(lambda: page.shows(".approval"), "the question")
    assert waiting(page) == ["second"]
    page.click(".allow")
    page.wait_until(lambda: page.answers == ["one", "Sent.", "two"], "all answers")
    page.settle()
    assert letters.sent == ["Ann"]


def test_a_message_with_a_line_that_is_full_stays_in_the_box(here: Page, script: Script) -> None:
    script(answer("one", STALL))
    begin(here)
    for number in range(16):
        here.send(f"number {number}")
        here.wait_until(lambda number=number: len(waiting(here)) == number + 1, "its place")  # type: ignore[misc]
    here.send("One too many")
    here.wait_until(lambda: here.notice, "the words")
    assert here.written == "One too many"
    here.driver.execute_script("document.getElementById('message').value = ''")


def test_on_a_phone_all_buttons_have_their_place(
    page: Page, serve: Serve, model: ModelServer, script: Script
) -> None:
    script(answer("one", STALL))
    browser.resize(page.driver, 390, 780)
    page.open(serve(f"-base_url={model.base_url}", "-models=a-large-model-with-a-long-name").url)
    begin(page)
    page.type("#message", "Something else")
    page.wait_until(lambda: page.shows("#now") and page.shows("#instead"), "the buttons")
    ends = page.run(
        "return ['attach', 'now', 'instead', 'stop', 'send'].map((id) => document.getElementById(id))"
        ".map((node) => node.getBoundingClientRect()).map(({ left, right }) => [left, right])"
    )
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(ends))
    assert ends[-1][1] <= 390
    page.press(Keys.ESCAPE)
    page.settle()


def test_the_end_stays_in_view_when_the_box_grows_and_shrinks(here: Page, script: Script) -> None:
    script(answer("line\n\n" * 60 + "one"), answer("one", STALL))
    here.ask("A long one")
    begin(here)
    left = "const s = document.getElementById('scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"
    for _ in range(3):
        here.type("#message", "Two", Keys.SHIFT + Keys.ENTER, Keys.NULL, "lines", Keys.ENTER)
        here.wait_until(lambda: here.written == "" and here.run(left) < 1, "the end in view")
        assert not here.shows("#latest")
    here.press(Keys.ESCAPE)
