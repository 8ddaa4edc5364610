"""The chat page for everybody: axe finds nothing in any state, nothing is cut off, and it comes soon."""

from __future__ import annotations

import re
import time

import pytest

from tests import gallery
from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import answer
from tests.support.server import ROOT, Server
from tests.web.conftest import Script, Serve

pytestmark = browser.NEEDED

AXE = ROOT / "tests" / "npm" / "node_modules" / "axe-core" / "axe.min.js"
needs_axe = pytest.mark.skipif(
    not AXE.exists(), reason="needs the npm package axe-core: npm install --prefix tests/npm"
)
TEXT = "# Plan\n\n1. **one**\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nx = 1 # one\n```\n\nSee https://example.org"


def findings(page: Page) -> list[str]:
    """What axe finds on the page as it is now, when what moves into its place stands there."""
    if page.run("return !window.axe"):
        page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text()})
    found = page.run(
        """
        const moving = document.getAnimations().filter((one) => isFinite(one.effect.getComputedTiming().endTime));
        await Promise.allSettled(moving.map((one) => one.finished));
        const { violations } = await axe.run(document, { resultTypes: ["violations"] });
        return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" ")}`);
        """
    )
    return [str(one) for one in found]


@needs_axe
@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (768, False), (1280, True)])
def test_axe_finds_nothing_in_any_state(page: Page, width: int, dark: bool) -> None:
    browser.resize(page.driver, width, 900, dark=dark)
    with gallery.world() as world:
        found = {name: findings(page) for name in gallery.states(page, world)}
    assert {state: names for state, names in found.items() if names} == {}
    assert len(found) >= 24


@pytest.mark.parametrize("width", [320, 1280 // 4])
def test_at_320_pixels_and_at_400_percent_nothing_is_cut_off(
    page: Page, server: Server, script: Script, width: int
) -> None:
    browser.resize(page.driver, width, 256)
    script(answer(TEXT))
    page.open(server.url)
    page.ask("A rather long question about many things, thankyouverymuchforyourhelpinadvance")
    assert page.run("return document.documentElement.scrollWidth") <= width
    outside = page.run(
        "return [...document.querySelectorAll('button, textarea, select, h1')].filter((node) => node.offsetParent"
        " && !node.closest('.wide, .code, #sessions') && (node.getBoundingClientRect().right > innerWidth + 1"
        " || node.getBoundingClientRect().left < -1)).map((node) => node.outerHTML)"
    )
    assert outside == []
    assert page.shows("#message")


def slow_visit(page: Page, url: str) -> float:
    """Seconds until the page can be used, over a line of 50 kB/s and 400 ms."""
    conditions = {"offline": False, "latency": 400, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)
    try:
        begun = time.monotonic()
        page.driver.get(url)
        page.wait_until(lambda: page.text("#facts"), "the page in use")
        return time.monotonic() - begun
    finally:
        page.driver.execute_cdp_cmd(
            "Network.emulateNetworkConditions", {**conditions, "latency": 0, "downloadThroughput": -1}
        )


def test_on_a_slow_line_it_is_there_in_three_seconds_and_again_in_one(page: Page, serve: Serve) -> None:
    server = serve("-demo")
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    first = slow_visit(page, f"{server.url}/")
    page.driver.get("about:blank")
    again = slow_visit(page, f"{server.url}/")
    assert (first < 3.5, again < 1.5) == (True, True)


def test_what_is_sent_is_small(serve: Serve) -> None:
    server = serve("-demo")
    sizes = {}
    for path in ("/", *re.findall(r'"(page-[^"]*/all\.\w+)"', server.request("GET", "/").text)):
        reply = server.request("GET", f"/{path.lstrip('/')}", headers={"Accept-Encoding": "gzip"})
        sizes[path.rpartition(".")[2]] = int(reply.headers["Content-Length"])
    assert len(sizes) == 3
    assert sum(sizes.values()) < 49_000, sizes


def test_the_files_are_compressed_kept_for_good_and_asked_for_by_their_digest(serve: Serve) -> None:
    server = serve("-demo")
    page = server.request("GET", "/", headers={"Accept-Encoding": "gzip"})
    assert page.headers["Content-Encoding"] == "gzip"
    assert page.headers["Cache-Control"] == "no-cache"
    again = server.request("GET", "/", headers={"If-None-Match": page.headers["ETag"]})
    assert (again.status, again.text) == (304, "")
    text = server.request("GET", "/").text
    path = text.partition('src="')[2].partition('"')[0]
    script = server.request("GET", f"/{path}")
    assert script.status == 200
    assert "immutable" in script.headers["Cache-Control"]
    old = server.request("GET", "/page-0000000000000000/page.js")
    assert (old.status, old.headers["Cache-Control"]) == (200, "no-cache")
