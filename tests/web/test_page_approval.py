"""The chat page: calls that wait until somebody allows or denies them."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.letters import Letters
from tests.support.model_server import ModelServer, answer, tool_call, tool_calls
from tests.support.server import Server
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED
SEND = tool_call("send", {"to": "Ann"}, text="Shall I?")


@pytest.fixture
def letters(tmp_path: Path) -> Letters:
    return Letters(tmp_path)


@pytest.fixture
def flags(letters: Letters, tmp_path: Path, model: ModelServer) -> list[str]:
    return [letters.flag, f"-session_dir={tmp_path}/sessions", f"-base_url={model.base_url}"]


@pytest.fixture
def asking(page: Page, serve: Serve, flags: list[str]) -> Server:
    """The page, open at a server with the tool."""
    server = serve(*flags)
    page.open(server.url)
    return server


def ask(page: Page, text: str = "Write to Ann") -> None:
    page.ask(text)
    page.wait_until(lambda: page.shows(".approval"), "the question")


def test_a_call_that_waits_is_shown_with_what_it_would_do(
    page: Page, asking: Server, letters: Letters, script: Script
) -> None:
    script(SEND)
    ask(page)
    assert page.texts(".pending .tool-name") == ["send"]
    assert '"to": "Ann"' in page.text(".pending pre")
    assert page.texts(".pending button") == ["Allow", "Deny"]
    assert page.answers == ["Shall I?"]
    assert letters.sent == []


def test_a_call_that_is_allowed_runs_and_the_answer_goes_on(
    page: Page, asking: Server, letters: Letters, script: Script
) -> None:
    script(SEND, answer("It is on its way."))
    ask(page)
    page.click(".allow")
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the answer")
    page.settle()
    assert letters.sent == ["Ann"]
    assert not page.all(".approval")
    assert page.texts(".tool summary") == ["send Ann → sent to Ann"]
    page.reload()
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the same after a reload")
    assert page.texts(".tool summary") == ["send Ann → sent to Ann"]


def test_a_call_that_is_denied_does_not_run_and_the_model_is_told(
    page: Page, asking: Server, letters: Letters, model: ModelServer, script: Script
) -> None:
    script(SEND, answer("Then not."))
    ask(page)
    page.click(".deny")
    page.wait_until(lambda: page.answers == ["Shall I?", "Then not."], "the answer")
    page.settle()
    assert letters.sent == []
    assert model.requests[-1]["messages"][-1]["content"].startswith("not executed")


def test_each_of_several_calls_has_its_answer_before_anything_runs(
    page: Page, asking: Server, letters: Letters, script: Script
) -> None:
    script(tool_calls(("send", {"to": "Ann"}), ("send", {"to": "Bob"})), answer("Done."))
    ask(page)
    assert len(page.all(".pending")) == 2
    page.all(".allow")[1].click()
    page.wait_until(lambda: page.all(".pending[data-chosen=allowed]"), "the first answer")
    assert letters.sent == []
    page.all(".deny")[0].click()
    page.wait_until(lambda: page.answers == ["Done."], "the answer")
    page.settle()
    assert letters.sent == ["Bob"]


def test_what_waits_is_there_after_a_reload(page: Page, asking: Server, letters: Letters, script: Script) -> None:
    script(SEND, answer("It is on its way."))
    ask(page)
    page.reload()
    page.click(".allow")
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the answer")
    page.settle()
    assert letters.sent == ["Ann"]


def test_what_waits_is_there_after_the_server_was_killed(
    page: Page, asking: Server, letters: Letters, serve: Serve, flags: list[str], script: Script
) -> None:
    script(SEND, answer("It is on its way."))
    ask(page)
    asking.kill()
    again = serve(*flags, f"-port={asking.port}")
    page.click(".allow")
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the answer")
    page.settle()
    assert letters.sent == ["Ann"]
    assert [message["role"] for message in again.messages(page.session)] == ["user", "assistant", "tool", "assistant"]


def test_a_page_that_is_opened_after_the_server_was_killed_asks(
    page: Page, asking: Server, letters: Letters, serve: Serve, flags: list[str], script: Script
) -> None:
    script(SEND, answer("It is on its way."))
    ask(page)
    session = page.session
    page.driver.get("about:blank")
    asking.kill()
    page.open(serve(*flags).url, session)
    page.click(".deny")
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the answer")
    assert letters.sent == []


def test_a_second_tab_sees_that_it_was_answered(page: Page, asking: Server, letters: Letters, script: Script) -> None:
    script(SEND, answer("It is on its way."))
    ask(page)
    session, first = page.session, page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.open(asking.url, session)
    page.click(".allow")
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the answer")
    page.driver.switch_to.window(first)
    page.come_back()
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the answer in the first")
    page.wait_until(lambda: not page.all(".approval"), "the end of the question")
    assert letters.sent == ["Ann"]


def test_a_new_message_goes_on_without_the_call(page: Page, asking: Server, letters: Letters, script: Script) -> None:
    script(SEND, answer("As you like."))
    ask(page)
    page.ask("Never mind")
    assert page.answers == ["Shall I?", "As you like."]
    assert not page.all(".approval")
    assert letters.sent == []


def test_it_is_answered_with_the_keyboard(page: Page, asking: Server, letters: Letters, script: Script) -> None:
    script(SEND, answer("It is on its way."))
    ask(page)
    for _ in range(30):
        if page.focused == "Allow":
            break
        page.press(Keys.SHIFT + Keys.TAB)
    page.press(Keys.ENTER)
    page.wait_until(lambda: page.answers == ["Shall I?", "It is on its way."], "the answer")
    assert letters.sent == ["Ann"]
