"""The chat page: pictures and files are dropped, pasted and attached, shown small and large, and run nothing."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import ModelServer, answer, status
from tests.support.pictures import png
from tests.support.server import Server
from tests.web.conftest import Script, Serve
from tests.web.test_page_edit import act, edit

pytestmark = browser.NEEDED

GIVE = """
const [kind, target, ...files] = given;
const data = new DataTransfer();
for (const [name, type, text] of files.slice(0, -1))
  data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
const settings = { bubbles: true, cancelable: true };
const event = kind === "drop"
  ? new DragEvent(kind, { ...settings, dataTransfer: data })
  : new ClipboardEvent(kind, { ...settings, clipboardData: data });
document.getElementById(target).dispatchEvent(event);
"""
PICTURE = ("one.png", "image/png", png(120))
EVIL = b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.pwned = 1</script></svg>"


def give(page: Page, kind: str, *files: tuple[str, str, bytes]) -> None:
    """Drops files on the page, or pastes them into the message box."""
    encoded = [(name, media_type, base64.b64encode(data).decode()) for name, media_type, data in files]
    target = "main" if kind == "drop" else "message"
    page.run(GIVE, kind, target, *encoded)
    page.wait_until(lambda: len(page.all("#parts li")) == len(files), "the files at the message box")


def drawn(page: Page, selector: str) -> list[bool]:
    """Whether each picture has been drawn."""
    script = "return [...document.querySelectorAll(given[0])].map((one) => one.complete && one.naturalWidth > 0)"
    found: list[bool] = page.run(script, selector)
    return found


def parts(model: ModelServer) -> list[dict[str, Any]]:
    """What the model got with its last question."""
    content: list[dict[str, Any]] = model.requests[-1]["messages"][-1]["content"]
    return content


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_goes_with_the_message_and_is_shown_in_it(
    here: Page, model: ModelServer, kind: str, script: Script
) -> None:
    give(here, kind, PICTURE)
    here.wait_until(lambda: drawn(here, "#parts img") == [True], "the small picture at the box")
    here.ask("What is this?")
    assert [part["type"] for part in parts(model)] == ["text", "image_url"]
    assert not here.shows("#parts")
    for state in ("live", "stored"):
        here.wait_until(lambda: drawn(here, ".question .picture img") == [True], state)
        here.reload()
    here.wait_until(lambda: here.questions == ["What is this?"], "the stored question")


def test_a_file_is_chosen_with_the_button(here: Page, model: ModelServer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Buy bread.")
    here.all("#attach-files")[0].send_keys(str(tmp_path / "notes.txt"))
    here.wait_until(lambda: here.texts("#parts .attachment") == ["notes.txt"], "the file at the box")
    here.ask("What shall I do?")
    assert "Buy bread." in json.dumps(parts(model))
    assert here.texts(".question .attachment") == ["notes.txt"]
    here.reload()
    here.wait_until(lambda: here.texts(".question .attachment"), "the file in the message")
    assert here.texts(".question .attachment") == ["notes.txt\n10 B"] or "notes.txt" in here.text(
        ".question .attachment"
    )


def test_a_picture_is_large_on_a_press_and_escape_goes_back(here: Page, script: Script) -> None:
    give(here, "drop", PICTURE)
    here.ask("Look")
    here.reload()
    here.click(".question .picture")
    here.wait_until(lambda: drawn(here, "#file-body img") == [True], "the large picture")
    here.press(Keys.ESCAPE)
    here.wait_until(lambda: not here.shows("#file-dialog"), "the end of it")
    assert here.run("return document.activeElement.className") == "picture"


@pytest.mark.parametrize("name", ["evil.svg", "evil.html"])
def test_what_could_run_is_shown_as_text(here: Page, script: Script, name: str) -> None:
    give(here, "drop", (name, "image/svg+xml" if name.endswith("svg") else "text/html", EVIL))
    here.ask("Look")
    here.reload()
    here.click(".question .attachment")
    here.wait_until(lambda: here.text("#file-body pre") == EVIL.decode(), "the text")
    assert not here.all("#file-body :is(svg, script, iframe, img)")
    assert here.run("return window.pwned ?? null") is None


def test_a_file_is_saved_under_its_name(here: Page, script: Script, tmp_path: Path) -> None:
    here.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    give(here, "drop", ("evil.html", "text/html", EVIL))
    here.ask("Look")
    here.click(".question .attachment")
    here.wait_until(lambda: here.shows("#file-dialog"), "the text")
    here.click("#file-save")
    here.wait_until(lambda: (tmp_path / "evil.html").exists(), "the file")
    here.wait_until(lambda: (tmp_path / "evil.html").read_bytes() == EVIL, "all of it")


def test_a_file_that_is_removed_does_not_go(here: Page, model: ModelServer, script: Script) -> None:
    give(here, "drop", PICTURE)
    here.click(".remove-part")
    here.wait_until(lambda: not here.shows("#parts"), "its end")
    here.ask("Hello")
    assert parts(model) == "Hello"


def test_a_file_of_another_kind_is_refused_in_words(here: Page) -> None:
    data = base64.b64encode(bytes(range(256))).decode()
    here.run(GIVE, "drop", "main", ("one.bin", "application/octet-stream", data))
    here.wait_until(lambda: "cannot be sent: one.bin" in here.notice, "the words")


def test_a_file_that_the_server_refuses_is_back_at_the_box_with_its_words(here: Page) -> None:
    give(here, "drop", ("one.png", "image/png", b"this is no picture"))
    here.send("Look")
    here.wait_until(lambda: here.notice, "the words")
    here.wait_until(lambda: len(here.all("#parts li")) == 1, "the file")
    assert here.written == "Look"


def test_files_stay_with_the_session_that_they_were_given_to(here: Page, script: Script) -> None:
    here.ask("First")
    first = here.session
    give(here, "drop", PICTURE)
    here.click("#new")
    here.wait_until(lambda: not here.shows("#parts"), "a new session without files")
    here.driver.back()
    here.wait_until(lambda: here.session == first and drawn(here, "#parts img") == [True], "its picture")


def test_a_question_with_a_picture_is_edited_and_keeps_it(here: Page, model: ModelServer, script: Script) -> None:
    script(answer("One."), answer("Two."), answer("Three."))
    give(here, "drop", PICTURE)
    here.ask("What is this?")
    edit(here, 0, "And what is this?")
    here.wait_until(lambda: here.answers == ["Two."], "the new answer")
    here.settle()
    assert [part["type"] for part in parts(model)] == ["text", "image_url"]
    here.wait_until(lambda: drawn(here, ".question .picture img") == [True], "the picture")
    act(here, ".answer", "again")
    here.wait_until(lambda: here.answers == ["Three."], "another answer")
    here.settle()
    assert [part["type"] for part in parts(model)] == ["text", "image_url"]


def test_a_failed_question_with_a_picture_is_asked_again_after_a_reload(
    here: Page, model: ModelServer, script: Script
) -> None:
    script(status(401, {"error": {"message": "bad key"}}), answer("Now."))
    give(here, "drop", PICTURE)
    here.ask("What is this?")
    here.reload()
    here.click(".retry")
    here.wait_until(lambda: here.answers == ["Now."], "the answer")
    here.settle()
    assert [part["type"] for part in parts(model)] == ["text", "image_url"]
    assert here.questions == ["What is this?"]


def test_pictures_are_had_with_the_token(page: Page, serve: Serve, model: ModelServer, script: Script) -> None:
    page.open(serve(f"-base_url={model.base_url}", "-auth_token=correct-horse").url)
    page.type("#token-field", "correct-horse", Keys.ENTER)
    page.wait_until(lambda: not page.shows("#token-dialog"), "the end of the question")
    give(page, "drop", PICTURE)
    page.ask("Look")
    page.reload()
    page.wait_until(lambda: drawn(page, ".question .picture img") == [True], "the picture")


def test_an_export_has_the_picture_and_an_import_shows_it(
    here: Page, server: Server, script: Script, tmp_path: Path
) -> None:
    here.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    give(here, "drop", PICTURE)
    here.ask("Look")
    first = here.session
    here.wait_until(lambda: here.text("#title") == "Look", "the title")
    here.choose("export-json")
    path = tmp_path / "Look.json"
    here.wait_until(lambda: path.exists() and path.read_text().endswith("}"), "the file")
    assert server.request("DELETE", f"/sessions/{first}").status == 200
    here.all("#import-file")[0].send_keys(str(path))
    here.wait_until(lambda: here.session not in ("", first) and here.questions == ["Look"], "the copy")
    here.wait_until(lambda: drawn(here, ".question .picture img") == [True], "the picture")
