"""The chat page: settings, edited questions, versions, branches, export, filter, going on."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import BREAK, STALL, ModelServer, answer, pause, tool_calls, wait
from tests.support.server import TIMEOUT, Server
from tests.web.conftest import Script

pytestmark = browser.NEEDED


def edit(here: Page, number: int, text: str) -> None:
    """Edits a question, and sends it."""
    field = ".edit-form textarea"
    article = here.all(".question")[number]
    here.driver.execute_script("arguments[0].scrollIntoView()", article)
    here.driver.execute_script("arguments[0].click()", article.find_element(By.CSS_SELECTOR, ".edit"))
    here.wait_until(lambda: here.shows(field), "the box to edit in")
    here.all(field)[0].clear()
    here.type(field, text, Keys.ENTER)


def act(here: Page, article: str, name: str, number: int = -1) -> None:
    """Clicks an action of a message. Its row is there to a pointer that is over the message."""
    here.wait_until(lambda: here.all(f"{article} .{name}"), name)
    here.driver.execute_script("arguments[0].click()", here.all(f"{article} .{name}")[number])


def test_a_question_is_edited_and_its_versions_are_stepped_through(
    here: Page, server: Server, script: Script
) -> None:
    script(*map(answer, ("One.", "Two.", "ONE.", "Three.")))
    here.ask("first")
    here.ask("second")
    edit(here, 0, "FIRST")
    here.wait_until(lambda: here.answers == ["ONE."], "the new answer")
    here.settle()
    assert here.questions == ["FIRST"]
    here.wait_until(lambda: here.text(".place") == "2 / 2", "the number of the version")
    act(here, ".question", "older")
    here.wait_until(lambda: here.questions == ["first", "second"], "the older version")
    assert here.answers == ["One.", "Two."]
    assert here.text(".place") == "1 / 2"
    assert "earlier version" in here.note
    assert here.focused == "Newer version"  # the way back, since there is nothing older
    here.press(Keys.ENTER)
    here.wait_until(lambda: here.questions == ["FIRST"], "the newest")
    act(here, ".question", "older")
    here.wait_until(lambda: here.questions == ["first", "second"], "the older version")
    here.send("third")
    here.wait_until(lambda: here.answers == ["One.", "Two.", "Three."], "the answer to the version that is shown")
    here.settle()
    assert here.questions == ["first", "second", "third"]
    here.wait_until(lambda: here.text(".place") == "1 / 2", "the number of the version")
    stored = [message["content"] for message in server.messages(here.session)]
    assert stored == ["first", "One.", "second", "Two.", "third", "Three."]
    here.reload()
    here.wait_until(lambda: here.text(".place") == "1 / 2", "the number after a reload")
    assert here.questions == ["first", "second", "third"]


def test_a_reload_while_an_edited_question_is_answered_loses_nothing(here: Page, script: Script) -> None:
    go = threading.Event()
    script(answer("One."), answer("Be", wait(go), "tter."))
    here.ask("first")
    edit(here, 0, "FIRST")
    here.wait_until(lambda: here.answers == ["Be"], "the beginning")
    here.reload()
    here.wait_until(lambda: here.answers == ["Be"], "the beginning again")
    assert here.questions == ["FIRST"]
    go.set()
    here.wait_until(lambda: here.answers == ["Better."], "the answer")
    here.settle()
    here.wait_until(lambda: here.text(".place") == "2 / 2", "the number of the version")


def test_a_second_tab_sees_the_edited_question(here: Page, server: Server, script: Script) -> None:
    script(answer("One."), answer("ONE."))
    here.ask("first")
    first = here.driver.current_window_handle
    session = here.session
    here.driver.switch_to.new_window("tab")
    second = here.driver.current_window_handle
    other = Page(here.driver)
    other.open(server.url, session)
    other.wait_until(lambda: other.answers == ["One."], "the conversation")
    here.driver.switch_to.window(first)
    edit(here, 0, "FIRST")
    here.wait_until(lambda: here.answers == ["ONE."], "the new answer")
    here.settle()
    here.driver.switch_to.window(second)
    other.wait_until(lambda: other.questions == ["FIRST"] and other.answers == ["ONE."], "the edited question")


def test_escape_leaves_a_question_as_it_was(here: Page, script: Script) -> None:
    here.ask("first")
    act(here, ".question", "edit")
    here.wait_until(lambda: here.focused == "" or here.shows(".edit-form textarea"), "the box")
    here.press("x", Keys.ESCAPE)
    here.wait_until(lambda: not here.shows(".edit-form"), "the end of editing")
    assert here.questions == ["first"]
    assert here.focused == "Edit"


def test_an_answer_is_tried_again(here: Page, server: Server, script: Script) -> None:
    script(answer("One."), answer("Another."))
    here.ask("first")
    act(here, ".answer", "again")
    here.wait_until(lambda: here.answers == ["Another."], "another answer")
    here.settle()
    assert here.questions == ["first"]
    assert len(server.messages(here.session)) == 2


def test_going_on_keeps_the_partial_answer_and_calls_no_tool_again(
    here: Page, server: Server, script: Script
) -> None:
    script(tool_calls(("calculator", {"expression": "1+1"})), answer("It ", BREAK), answer("It is 2."))
    here.ask("How much?")
    assert here.answers == ["It "]
    here.click(".note .continue")
    here.wait_until(lambda: here.answers == ["It ", "It is 2."], "the whole answer")
    here.settle()
    assert not here.all(".continue")
    roles = [message["role"] for message in server.messages(here.session)]
    assert roles == ["user", "assistant", "tool", "assistant", "assistant"]
    here.reload()
    here.wait_until(lambda: here.answers == ["It ", "It is 2."], "the same after a reload")


def test_a_stopped_answer_offers_both_ways_on(here: Page, script: Script) -> None:
    script(answer("Half", STALL), answer("Whole."))
    here.send("Write")
    here.wait_until(lambda: here.answers == ["Half"], "the beginning")
    here.click("#stop")
    here.settle()
    assert here.texts(".note button") == ["Try again", "Continue"]
    here.click(".note .continue")
    here.wait_until(lambda: here.answers == ["Half", "Whole."], "the rest")


def test_a_branch_is_a_session_of_its_own(here: Page, server: Server, script: Script) -> None:
    script(answer("One."), answer("Two."))
    here.ask("first")
    here.ask("second")
    session = here.session
    act(here, ".answer", "branch", 0)
    here.wait_until(lambda: here.session != session and here.questions == ["first"], "the copy")
    assert here.answers == ["One."]
    here.settle()
    here.ask("third")
    assert [message["content"] for message in server.messages(session)] == ["first", "One.", "second", "Two."]


def test_a_message_is_copied_as_it_was_write_numbered(here: Page, script: Script) -> None:
    here.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    script(answer("*One* `two`\n\n- three"))
    here.ask("# first")
    read = "return navigator.clipboard.readText()"
    act(here, ".answer", "copy")
    here.wait_until(lambda: here.run(read) == "*One* `two`\n\n- three", "the answer on the clipboard")
    act(here, ".question", "copy")
    here.wait_until(lambda: here.run(read) == "# first", "the question on the clipboard")


def test_a_session_is_exported_as_a_file(here: Page, script: Script, tmp_path: Path) -> None:
    here.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    here.ask("What is it?")
    here.wait_until(lambda: here.text("#title") == "What is it?", "the title")
    here.choose("export")
    path = tmp_path / "What-is-it.md"
    here.wait_until(path.exists, "the file")
    here.wait_until(lambda: "What is it?" in path.read_text() and "OK" in path.read_text(), "what is in it")


def test_model_and_instructions_are_chosen_before_and_after_the_first_message(
    page: Page, model: ModelServer, script: Script, tmp_path: Path
) -> None:
    flags = (f"-base_url={model.base_url}", "-models=large,small")
    with Server(*flags, log=tmp_path / "log") as server:
        page.open(server.url)
        page.choose("settings")
        page.wait_until(lambda: page.shows("#model"), "the models")
        Select(page.all("#model")[0]).select_by_value("large")
        page.click("#own-prompt")
        page.type("#system-prompt", "Be brief.")
        page.click("#settings-form button:not([type])")
        page.wait_until(lambda: not page.shows("#settings-dialog"), "the end of the dialog")
        page.ask("Hi")
        request = model.requests[-1]
        assert (request["model"], request["messages"][0]["content"]) == ("large", "Be brief.")
        page.reload()
        page.wait_until(lambda: page.answers == ["OK"], "the conversation")
        page.choose("settings")
        page.wait_until(lambda: page.shows("#model"), "the models")
        assert page.run("return document.getElementById('model').value") == "large"
        assert page.run("return document.getElementById('system-prompt').value") == "Be brief."
        page.click("#own-prompt")
        Select(page.all("#model")[0]).select_by_value("gpt-3.5-turbo")
        page.click("#settings-form button:not([type])")
        page.wait_until(lambda: not page.shows("#settings-dialog"), "the end of the dialog")
        page.ask("Again")
        assert model.requests[-1]["model"] == "gpt-3.5-turbo"
        assert model.requests[-1]["messages"][0]["content"] != "Be brief."


def test_where_there_is_one_model_it_is_not_asked_for(here: Page) -> None:
    here.choose("settings")
    here.wait_until(lambda: here.shows("#own-prompt"), "the dialog")
    assert not here.shows("#model")
    here.press(Keys.ESCAPE)
    here.wait_until(lambda: not here.shows("#settings-dialog"), "the end of the dialog")


def test_the_list_is_filtered_by_words_of_all_titles(page: Page, tmp_path: Path) -> None:
    at = "2026-01-31T12:34:56Z"
    for number in range(120):
        name = f"session-{number}"
        title = f"Bread and {'Butter' if number == 7 else 'salt'} {number}"
        value = {"id": name, "created_at": at, "updated_at": at, "title": title, "messages": []}
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    with Server("-demo", f"-session_dir={tmp_path}", log=tmp_path / "log") as server:
        page.open(server.url)
        page.wait_until(lambda: len(page.all("#list li")) == 50, "the first page")
        page.type("#filter", "butter BREAD")
        page.wait_until(lambda: page.texts("#list .name") == ["Bread and Butter 7"], "the match")
        page.type("#filter", " jam")
        page.wait_until(lambda: page.shows("#no-match"), "the words that there is none")
        page.driver.execute_script("document.getElementById('filter').value = ''")
        page.type("#filter", " ")
        page.wait_until(lambda: len(page.all("#list li")) == 50, "the first page again")


def test_the_tokens_of_a_session_are_shown(here: Page, script: Script) -> None:
    script(answer("One.", usage={"total_tokens": 1200}), answer("Two.", usage={"total_tokens": 34}))
    here.ask("first")
    here.wait_until(lambda: here.text("#tokens") == "1,200 tokens", "the tokens")
    here.ask("second")
    here.wait_until(lambda: here.text("#tokens") == "1,234 tokens", "the sum")


def test_calls_that_failed_are_seen_without_unfolding(here: Page, script: Script) -> None:
    script(tool_calls(("calculator", {"expression": "1/0"}), ("calculator", {"expression": "1+1"})), answer("Done."))
    here.ask("How much?")
    for _ in range(2):
        here.wait_until(lambda: here.answers == ["Done."], "the answer")
        failed = [tool.get_attribute("class") for tool in here.all(".tool")]
        assert [("failed" in str(one)) for one in failed] == [True, False]
        assert "error: " in here.texts(".tool summary")[0]
        here.reload()


def test_on_a_phone_the_sessions_buttons_are_in_a_menu(page: Page, server: Server, script: Script) -> None:
    browser.resize(page.driver, 390, 780)
    page.open(server.url)
    page.ask("Hello")
    assert not page.shows("#rename")
    page.choose("rename")
    page.type("#rename-text", "On a phone", Keys.ENTER)
    page.wait_until(lambda: page.text("#title") == "On a phone", "the new title")
    wide = page.driver.execute_script("return document.documentElement.scrollWidth")
    assert wide <= 390
    assert TIMEOUT > 0


def test_every_new_control_has_a_name(here: Page, script: Script) -> None:
    script(answer("One."), answer("ONE."))
    here.ask("first")
    edit(here, 0, "FIRST")
    here.wait_until(lambda: here.text(".place") == "2 / 2", "the versions")
    here.settle()
    act(here, ".question", "edit")
    here.wait_until(lambda: here.shows(".edit-form"), "the box")
    unnamed = here.driver.execute_script(
        "const named = (node) => node.ariaLabel || node.labels?.length || node.textContent.trim();"
        "return [...document.querySelectorAll('button, input, textarea, select')]"
        ".filter((node) => !named(node)).map((node) => node.outerHTML)"
    )
    assert unnamed == []


def forget_choices(page: Page) -> None:
    """As another browser would be: nothing of this session was kept."""
    page.run("localStorage.clear()")
    page.reload()


def test_another_browser_can_undo_an_edit(here: Page, script: Script) -> None:
    script(*map(answer, ("One.", "Two.", "ONE.", "Three.")))
    here.ask("first")
    here.ask("second")
    edit(here, 0, "FIRST")
    here.wait_until(lambda: here.answers == ["ONE."], "the new answer")
    here.settle()
    forget_choices(here)
    act(here, ".question", "older")
    here.wait_until(lambda: here.questions == ["first", "second"], "what the edit has hidden")
    here.ask("third")
    assert here.answers == ["One.", "Two.", "Three."]
    forget_choices(here)
    here.wait_until(lambda: here.text(".place") == "1 / 2", "the version that stands behind no other")
    act(here, ".question", "newer")
    here.wait_until(lambda: here.questions == ["FIRST"], "the other one")


def test_what_another_program_has_put_in_the_middle_can_be_undone(here: Page, server: Server, script: Script) -> None:
    script(*map(answer, ("One.", "Two.", "Between.")))
    here.ask("first")
    here.ask("second")
    between = {"message": "between", "after": server.messages(here.session)[1]["id"]}
    assert server.request("POST", f"/sessions/{here.session}/run", between).status == 200
    forget_choices(here)
    here.wait_until(lambda: here.questions == ["first", "between"], "the other's question")
    here.wait_until(lambda: here.text(".place") == "2 / 2", "the number of the version")
    act(here, ".question", "older")
    here.wait_until(lambda: here.questions == ["first", "second"], "what was hidden")


def test_what_another_browser_hides_meanwhile_is_told_and_can_be_undone(
    here: Page, server: Server, script: Script
) -> None:
    script(*map(answer, ("One.", "Two.", "ONE.")))
    here.ask("first")
    here.ask("second")
    edited = {"message": "FIRST", "replaces": server.messages(here.session)[0]["id"]}
    assert server.request("POST", f"/sessions/{here.session}/run", edited).status == 200
    here.come_back()
    here.wait_until(lambda: here.questions == ["FIRST"], "the other's question")
    assert "hidden" in here.notice
    here.click("#notice .notice-action")
    here.wait_until(lambda: here.questions == ["first", "second"], "what was hidden")


def test_an_answer_tells_its_seconds_and_tokens(here: Page, server: Server, script: Script) -> None:
    script(answer("One.", pause(2.1), usage={"prompt_tokens": 5, "completion_tokens": 1234, "total_tokens": 1239}))
    here.ask("first")
    for _ in range(2):
        facts = here.texts(".answer .facts")
        assert re.search(r"[23] s · 1,234 tokens$", facts[0]), facts
        here.reload()
        here.wait_until(lambda: here.texts(".answer .facts"), "the same after a reload")
