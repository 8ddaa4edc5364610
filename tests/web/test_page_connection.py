"""The chat page: reloads, tabs, other programs, broken connections, servers that end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import STALL, ModelServer, answer, status, tool_call, wait
from tests.support.relay import Relay
from tests.support.server import Server, wait_until
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED


@pytest.fixture
def hasty(page: Page) -> Iterator[Page]:
    """The page with a clock that is fast."""
    made = page.hasten()
    yield page
    page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": made})


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


def test_a_turn_that_another_program_starts_appears_by_itself(hasty: Page, server: Server, script: Script) -> None:
    here = hasty
    go = threading.Event()
    script(answer("First."), answer("one", wait(go), " two"))
    here.open(server.url)
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
    list(other.events())
    page.come_back()
    page.wait_until(lambda: page.answers == ["one two"], "the answer")


def test_a_session_that_ended_with_its_server_is_said_to_be_gone(
    page: Page, serve: Serve, model: ModelServer, script: Script
) -> None:
    first = serve(f"-base_url={model.base_url}")
    page.open(first.url)
    page.ask("Hello")
    first.kill()
    serve(f"-base_url={model.base_url}", f"-port={first.port}")
    page.come_back()
    page.wait_until(lambda: "no longer on the server" in page.notice, "the words")
    page.ask("Hello again")
    assert (page.questions, page.answers) == (["Hello again"], ["OK"])
