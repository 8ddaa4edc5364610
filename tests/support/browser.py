"""Debian's Chromium, driven as a person at the page would drive it.

The one without windows, `chromium-headless-shell`, takes two thirds of the CPU time of `chromium --headless`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.server import TIMEOUT

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
NEEDS = "needs the Debian packages chromium-headless-shell and chromium-driver"
NEEDED = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=NEEDS)

Driver = webdriver.Chrome

# The first element that is displayed, as `is_displayed` tells it, at the cost of one short script.
SHOWN = """
return [...document.querySelectorAll(arguments[0])].find((node) => {
  const { width, height } = node.getBoundingClientRect();
  return width && height && node.checkVisibility({ opacityProperty: true, visibilityProperty: true });
});
"""


def start(profile: Path, *further: str) -> Driver:
    """A browser without a window, with its profile in that directory, and further flags. End it with `quit()`."""
    launcher = profile.with_name(f"{profile.name}-browser")
    # The small one opens no tab of its own, and the driver waits for one.
    launcher.write_text(f'#!/bin/sh\nexec {CHROMIUM} "$@" about:blank\n')
    launcher.chmod(0o700)
    options = webdriver.ChromeOptions()
    options.binary_location = str(launcher)
    flags = "--headless --disable-gpu --disable-dev-shm-usage --no-first-run --disable-sync --hide-scrollbars"
    quiet = "--disable-background-networking --disable-component-update --disable-default-apps"
    for flag in [*flags.split(), *quiet.split(), f"--user-data-dir={profile}", *further]:
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=DRIVER))
    driver.set_script_timeout(TIMEOUT)
    resize(driver, 1200, 800)
    return driver


def resize(driver: Driver, width: int, height: int, *, scale: int = 1, dark: bool = False) -> None:
    """A window of that size, in light or dark; up to 600 pixels a phone's."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width <= 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


class Page:
    """The chat page in the tab that is open now. Whatever is waited for must come within `TIMEOUT`."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def open(self, url: str, session: str = "") -> None:
        self.driver.get("about:blank")  # a new fragment alone would not load the page anew
        self.driver.get(f"{url}/#{session}" if session else f"{url}/")

    def reload(self) -> None:
        self.driver.refresh()

    def hasten(self) -> str:
        """Has whatever the page does every few seconds come fifty times as often, from the next time it is opened.
        Returns what the driver knows this by."""
        script = "const every = setInterval; window.setInterval = (act, wait) => every(act, wait / 50)"
        made = self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        return cast(str, made["identifier"])

    def come_back(self) -> None:
        """Does as when the reader comes back to the window."""
        self.driver.execute_script("dispatchEvent(new Event('focus'))")

    @property
    def session(self) -> str:
        """The id of the session that is shown, from the address."""
        return self.driver.current_url.partition("#")[2]

    def wait_until(self, condition: Callable[[], object], what: str = "") -> None:
        """Waits for something, which is named when it does not happen."""

        def holds(_: Driver) -> bool:
            return bool(condition())

        wait = WebDriverWait(self.driver, TIMEOUT, 0.05, [StaleElementReferenceException])
        try:
            wait.until(holds)
        except TimeoutException:
            raise AssertionError(f"{what or 'a condition'}; the page says: {self.text('body')}") from None

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def shows(self, selector: str) -> bool:
        return self._shown(selector) is not None

    def _shown(self, selector: str) -> WebElement | None:
        return cast(WebElement | None, self.driver.execute_script(SHOWN, selector))

    def texts(self, selector: str) -> list[str]:
        """What can be read in each element, all at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.innerText)"
        return cast(list[str], self.driver.execute_script(script, selector))

    def text(self, selector: str) -> str:
        return "\n".join(self.texts(selector))

    def run(self, script: str, *arguments: object) -> Any:
        """What a JavaScript module answers: the body of an async function."""
        wrapped = f"const done = arguments[arguments.length - 1]; (async (...given) => {{ {script} }})(...arguments)"
        reported = f"{wrapped}.then(done, (error) => done(`failed: ${{error.stack}}`))"
        return self.driver.execute_async_script(reported, *arguments)

    def click(self, selector: str) -> None:
        self._with_first(selector, lambda found: found.click())

    def choose(self, name: str) -> None:
        """Clicks an item of the session's menu."""
        self.click("#menu")
        self.click(f"#{name}")

    def type(self, selector: str, *keys: str) -> None:
        self._with_first(selector, lambda found: found.send_keys(*keys))

    def _with_first(self, selector: str, act: Callable[[WebElement], object]) -> None:
        """Does something with the first of these elements that is shown, once one is. The page may replace it
        meanwhile: then with what stands there next."""

        def done() -> bool:
            if (found := self._shown(selector)) is None:
                return False
            act(found)
            return True

        self.wait_until(done, selector)

    def press(self, *keys: str) -> None:
        """Types where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    @property
    def focused(self) -> str:
        """The id, or else the text, of the element that has the focus."""
        script = "const node = document.activeElement; return node.id || node.innerText"
        return cast(str, self.driver.execute_script(script))

    # The conversation

    def send(self, text: str) -> None:
        """Puts a text into the message box at once, as an input method does, and presses Enter."""

        def write(box: WebElement) -> None:
            self.driver.execute_script("arguments[0].focus()", box)
            self.driver.execute_cdp_cmd("Input.insertText", {"text": text})
            box.send_keys(Keys.ENTER)

        self._with_first("#message", write)

    def ask(self, text: str) -> None:
        """Sends and waits for the end of the answer."""
        before = len(self.questions)
        self.send(text)
        self.wait_until(lambda: len(self.questions) > before, "the question")
        self.settle()

    def settle(self) -> None:
        """Waits until nothing is loaded or answered any more."""
        self.wait_until(lambda: self.shows(":root:has(#conversation[aria-busy=false]) #send"), "the answer's end")

    @property
    def written(self) -> str:
        """What stands in the message box."""
        return str(self.run("return document.getElementById('message').value"))

    @property
    def questions(self) -> list[str]:
        return self.texts(".question .body")

    @property
    def answers(self) -> list[str]:
        """The texts of the answers, without their tool calls."""
        return self.texts(".answer .text")

    @property
    def note(self) -> str:
        """The words under the answers that are not simply complete."""
        return self.text(".note")

    @property
    def notice(self) -> str:
        return self.text("#notice")
