"""The chat page: where older messages are summed up, and what the summary says."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import STALL, ModelServer, answer, status, wait
from tests.support.server import Server
from tests.support.session_files import write_numbered
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED
SUMMARY = "They **counted**."


def open_long(page: Page, serve: Serve, tmp_path: Path, model: ModelServer) -> Server:
    """A session of forty messages."""
    write_numbered(tmp_path, "session-long", 40)
    server = serve(f"-session_dir={tmp_path}", f"-base_url={model.base_url}")
    page.open(server.url, "session-long")
    page.wait_until(lambda: len(page.questions) == 20, "the messages")
    return server


def test_what_is_old_is_summed_up_on_request_and_shown_where_it_ends(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    script(answer(SUMMARY))
    server = open_long(page, serve, tmp_path, model)
    page.choose("compact")
    for _ in range(2):
        page.wait_until(lambda: page.all(".summary"), "the summary")
        until = server.request("GET", "/sessions/session-long").json["compacted"]["until"]
        assert page.run("return document.querySelector('.summary').previousSibling.dataset.ids").split()[-1] == until
        assert not page.shows(".summary .text")
        page.click(".summary summary")
        assert page.texts(".summary .text") == ["They counted."]
        assert page.texts(".summary strong") == ["counted"]
        assert page.notice == ""
        page.reload()
    page.wait_until(lambda: len(page.questions) == 20, "all messages, which are still there")


def test_the_page_says_that_the_model_sums_up(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    go = threading.Event()
    script(answer(wait(go), SUMMARY))
    open_long(page, serve, tmp_path, model)
    page.choose("compact")
    page.wait_until(lambda: "sums up" in page.notice, "the words")
    go.set()
    page.wait_until(lambda: page.all(".summary"), "the summary")
    page.wait_until(lambda: page.notice == "", "no words")


def test_a_summary_that_fails_says_so_and_changes_nothing(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    script(status(401, {"error": {"message": "bad key"}}))
    open_long(page, serve, tmp_path, model)
    page.choose("compact")
    page.wait_until(lambda: "key" in page.notice, "the words")
    assert not page.all(".summary")
    page.ask("Go on")
    assert page.answers[-1] == "OK"


def test_a_summary_is_stopped(page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script) -> None:
    script(answer(STALL))
    open_long(page, serve, tmp_path, model)
    page.choose("compact")
    page.wait_until(lambda: "sums up" in page.notice, "the words")
    page.wait_until(lambda: page.shows("#stop"), "the button")
    page.click("#stop")
    page.settle()
    page.wait_until(lambda: page.notice == "", "no words")
    assert not page.all(".summary")


def test_nothing_to_sum_up_is_said(here: Page, script: Script) -> None:
    here.ask("Hello")
    here.choose("compact")
    here.wait_until(lambda: "nothing to sum up" in here.notice, "the words")


def test_an_export_and_an_import_keep_the_summary(
    page: Page, serve: Serve, tmp_path: Path, model: ModelServer, script: Script
) -> None:
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    script(answer(SUMMARY))
    open_long(page, serve, tmp_path, model)
    page.choose("compact")
    page.wait_until(lambda: page.all(".summary"), "the summary")
    page.choose("export-json")
    path = tmp_path / "number-0.json"
    page.wait_until(lambda: path.exists() and path.read_text().endswith("}"), "the file")
    page.all("#import-file")[0].send_keys(str(path))
    page.wait_until(lambda: page.session not in ("", "session-long") and page.all(".summary"), "the copy")
