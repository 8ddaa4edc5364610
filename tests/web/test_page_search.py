"""The chat page: searching the texts, and coming to the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import answer, tool_call
from tests.support.server import Server
from tests.support.session_files import write_numbered
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED

MARKED = "return [...(CSS.highlights.get('found') ?? [])].map(String)"
IN_VIEW = """
const [range] = CSS.highlights.get("found") ?? [];
const [place, seen] = [range, document.getElementById("scroller")].map((one) => one.getBoundingClientRect());
return place.top >= seen.top && place.bottom <= seen.bottom;
"""


def search(page: Page, words: str) -> None:
    page.type("#filter", words)
    page.wait_until(lambda: page.shows("#list .snippet"), "what is found")


def test_words_of_a_text_are_found_and_the_place_is_opened_with_the_words_marked(here: Page, script: Script) -> None:
    script(answer("line\n\n" * 80 + "A *rare* Bird sings.\n\n" + "line\n\n" * 80))
    here.ask("Tell me of birds")
    here.click("#new")
    here.ask("Something else")
    search(here, '"bird sings"')
    assert here.texts("#list .snippet mark") == ["Bird sings"]
    here.click("#list a")
    here.wait_until(lambda: here.run(MARKED) == ["Bird sings"], "the marked words")
    here.wait_until(lambda: here.run(IN_VIEW), "the place in view")
    assert here.all(".answer.found")


def test_marks_stay_when_the_server_has_drawn_the_text(here: Page, script: Script) -> None:
    script(answer("A rare bird.\n\n```python\ndef bird():\n    return 1\n```"))
    here.ask("Code of it")
    here.click("#new")
    search(here, "bird")
    here.click("#list a")
    here.wait_until(lambda: here.all(".code .keyword"), "the colours")
    here.wait_until(lambda: here.run(MARKED) == ["bird", "bird"], "the marks")


def test_a_place_in_the_result_of_a_tool_is_opened(here: Page, script: Script) -> None:
    script(tool_call("calculator", {"expression": "987 * 654"}), answer("There."))
    here.ask("How much?")
    here.click("#new")
    search(here, "645498")
    here.click("#list a")
    here.wait_until(lambda: here.shows(".tool pre"), "the open call")
    here.wait_until(lambda: "645498" in here.run(MARKED), "the mark")


def test_a_place_far_back_is_opened(page: Page, serve: Serve, tmp_path: Path) -> None:
    write_numbered(tmp_path, "session-long", 300)
    page.open(serve("-demo", f"-session_dir={tmp_path}").url)
    search(page, "17")
    page.type("#filter", Keys.BACKSPACE * 2, '"number 17"')
    page.wait_until(lambda: "number 17" in page.text("#list .snippet"), "the place")
    page.click("#list a")
    page.wait_until(lambda: page.all(".found"), "the message")


def test_enter_opens_the_first_and_escape_ends_the_search(here: Page, server: Server, script: Script) -> None:
    script(answer("A rare bird."))
    here.ask("Tell me")
    here.click("#new")
    search(here, "rare")
    here.press(Keys.ENTER)
    here.wait_until(lambda: here.run(MARKED) == ["rare"], "the place")
    here.type("#filter", Keys.ESCAPE)
    here.wait_until(lambda: here.run(MARKED) == [], "no marks")
    assert here.run("return document.getElementById('filter').value") == ""


@pytest.mark.parametrize("words", ["no such words", '"'])
def test_what_is_nowhere_is_said(here: Page, script: Script, words: str) -> None:
    here.ask("Hello")
    here.type("#filter", words)
    if words == '"':
        here.wait_until(lambda: here.shows("#list a"), "the list, since these are no words")
    else:
        here.wait_until(lambda: here.shows("#no-match"), "the words")


def test_words_are_marked_as_they_stand_and_not_as_a_pattern(here: Page, script: Script) -> None:
    script(answer("What is (a+b)*c?"))
    here.ask("Tell me")
    here.click("#new")
    search(here, "(a+b)*c")
    here.click("#list a")
    here.wait_until(lambda: here.run(MARKED) == ["(a+b)*c"], "the mark")
