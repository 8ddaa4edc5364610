"""The states of the chat page, for whoever looks at them.

`python -m tests.gallery DIRECTORY` makes a picture of each, at three widths, in light and dark. Needs the Debian
packages chromium-headless-shell and chromium-driver.
"""

from __future__ import annotations

import base64
import contextlib
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from tests.screenshots import write, write_sessions
from tests.support import browser
from tests.support.browser import Page
from tests.support.letters import Letters
from tests.support.model_server import BREAK, STALL, ModelServer, answer, frames, tool_call
from tests.support.server import Server

WIDTHS = (390, 768, 1280)
TEXT = """# A plan for the garden

Start with **what is there**: the old pear tree, the wall, and two hours of sun in the morning.

1. Dig in compost, about 3 kg for each m².
2. Sow in rows:
   - spinach, which does not mind the shade
   - ~~tomatoes~~ they need more sun
3. Water in the evening.

| Bed | Plant | Litres |
|:----|:-----:|-------:|
| North | spinach | 4 |
| South | beans | 6.5 |

> Nobody has ever regretted a pear tree.

```python
def water(beds: dict[str, float]) -> float:
    return sum(beds.values())  # litres a day
```

So it takes $4 + 6.5 = 10.5$ litres a day. See <https://example.org/garden> for more."""
DAY = "It was dry, so that the beans had water. "
QUESTION = "How shall I plan a small garden that has a wall to the south?"
GIVE = """
const data = new DataTransfer();
for (const [name, type, text] of given[0])
  data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
document.getElementById("main").dispatchEvent(drop);
"""


def picture(width: int = 320, height: int = 200) -> bytes:
    """A PNG of a slope in two colours."""
    rows = b"".join(
        b"\0" + b"".join(bytes((90 + 120 * x // width, 110 + 60 * y // height, 140)) for x in range(width))
        for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def attach(page: Page) -> None:
    """Drops a picture and a text on the page."""
    files = [("garden.png", "image/png", picture()), ("notes.txt", "text/plain", b"Spinach\nBeans\nA pear tree\n")]
    page.run(GIVE, [(name, kind, base64.b64encode(data).decode()) for name, kind, data in files])
    page.wait_until(lambda: len(page.all("#parts li")) == 2, "the files")


class World:
    """A model server with replies in line, and a server over it with some sessions and a tool that asks."""

    def __init__(self, home: Path, model: ModelServer, server: Server) -> None:
        self.model = model
        self.server = server
        self.home = home

    def new(self, page: Page) -> None:
        page.open(self.server.url)
        page.wait_until(lambda: page.text("#facts") and page.all("#list li"), "the page")


@contextlib.contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as directory, ModelServer() as model:
        home = Path(directory)
        write_sessions(home / "sessions")
        roles = ["user", "assistant"]
        long = [{"role": roles[number % 2], "content": f"Day {number}. " + 20 * DAY} for number in range(12)]
        write(home / "sessions", "session-long", long, 9)
        flags = [f"-session_dir={home}/sessions", f"-base_url={model.base_url}", Letters(home).flag, "-models=large"]
        with Server(*flags, log=home / "log") as server:
            yield World(home, model, server)


def states(page: Page, world: World) -> Iterator[str]:
    """Brings the page into one state after the other, and names each. Leaves a state when the next is asked for."""
    model = world.model
    model.forget()
    yield from _token(page, world)
    world.new(page)
    yield "empty"
    yield from _dialogs(page)
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "The wall keeps the warmth."}}]}
    said = {"choices": [{"index": 0, "delta": {"content": TEXT}, "finish_reason": "stop"}]}
    model.then(tool_call("calculator", {"expression": "4 + 6.5"}), frames(thought, said, "[DONE]"))
    page.ask(QUESTION)
    page.run("document.getElementById('scroller').scrollTop = 0")
    page.wait_until(lambda: page.all(".code .keyword"), "the colours")
    yield "talk"
    page.run("document.getElementById('scroller').scrollTop = 1e9")
    yield "talk-end"
    yield from _menus(page)
    yield from _files(page, model)
    yield from _ends(page, model)
    yield from _running(page, model)
    yield from _approval(page, world)
    yield from _search(page, world)
    yield from _versions(page)
    yield from _summary(page, world)
    yield from _deleted(page)
    yield from _drawer(page)


def _token(page: Page, world: World) -> Iterator[str]:
    with Server("-demo", "-auth_token=secret", log=world.home / "token-log") as server:
        page.open(server.url)
        page.wait_until(lambda: page.shows("#token-dialog"), "the question")
        yield "token"
        page.click("#token-cancel")
        page.wait_until(lambda: page.shows(".sign-in"), "the words")
        yield "signed-out"


def _dialogs(page: Page) -> Iterator[str]:
    page.press(Keys.ESCAPE)
    page.driver.execute_script("document.getElementById('shortcuts-dialog').showModal()")
    yield "shortcuts"
    page.driver.execute_script("document.getElementById('shortcuts-dialog').close()")


def _menus(page: Page) -> Iterator[str]:
    page.click("#menu")
    yield "menu"
    page.click("#settings")
    page.wait_until(lambda: page.shows("#settings-dialog"), "the dialog")
    yield "settings"
    page.click("#settings-cancel")
    page.choose("rename")
    yield "rename"
    page.click("#rename-cancel")


def _files(page: Page, model: ModelServer) -> Iterator[str]:
    attach(page)
    yield "files-at-the-box"
    model.then(answer("A slope in two colours, and a list of three things to plant."))
    page.ask("What do you see?")
    page.wait_until(lambda: page.run("return document.querySelector('.question .picture img').naturalWidth"), "it")
    yield "files"
    page.click(".question .picture")
    page.wait_until(lambda: page.shows("#file-dialog"), "the picture")
    yield "picture"
    page.click("#file-close")
    page.click(".question .attachment")
    page.wait_until(lambda: page.shows("#file-dialog"), "the text")
    yield "file"
    page.click("#file-close")


def _ends(page: Page, model: ModelServer) -> Iterator[str]:
    model.then(answer("Half of an ans", BREAK), answer("As I said, it", finish_reason="length"))
    page.ask("And then?")
    yield "failed"
    page.ask("And now?")
    yield "cut-off"


def _running(page: Page, model: ModelServer) -> Iterator[str]:
    model.then(answer("One word, and", STALL))
    page.send("Tell me more")
    page.wait_until(lambda: "One word" in page.answers[-1], "the beginning")
    yield "running"
    page.type("#message", "In French, please", Keys.ENTER)
    page.wait_until(lambda: page.shows("#queue"), "the line")
    page.type("#message", "Or in Italian, with the names of the plants in Latin")
    yield "queue"
    page.click(".take-back")
    page.wait_until(lambda: not page.shows("#queue"), "its end")
    page.all("#message")[0].clear()
    page.click("#stop")
    page.settle()


def _approval(page: Page, world: World) -> Iterator[str]:
    page.click("#new" if page.shows("#new") else "#message")
    world.model.then(tool_call("send", {"to": "Ann"}, text="I have written the letter. Shall I send it?"))
    page.ask("Write to Ann that we come on Sunday")
    page.wait_until(lambda: page.shows(".approval"), "the question")
    yield "approval"


def _search(page: Page, world: World) -> Iterator[str]:
    world.new(page)
    if not page.shows("#filter"):
        page.click("#open-list")
    page.wait_until(lambda: page.shows("#filter"), "the list")
    page.type("#filter", "owes tip")
    page.wait_until(lambda: page.shows("#list .snippet"), "what is found")
    yield "search"
    page.click("#list a")
    page.wait_until(lambda: page.all(".found"), "the place")
    yield "found"


def _versions(page: Page) -> Iterator[str]:
    page.driver.execute_script("document.querySelector('.again').click()")
    page.wait_until(lambda: page.all(".place") and page.shows("#send"), "another answer")
    page.settle()
    yield "undo"
    page.driver.execute_script("document.querySelector('.older').click()")
    page.wait_until(lambda: page.all(".newest"), "the older version")
    yield "earlier-version"
    page.driver.execute_script("document.querySelector('.edit').click()")
    yield "edit"
    page.press(Keys.ESCAPE)


def _summary(page: Page, world: World) -> Iterator[str]:
    page.open(world.server.url, "session-long")
    page.wait_until(lambda: len(page.questions) == 6, "the session")
    world.model.then(answer("They planned a **garden**: spinach and beans, in the evening water."))
    page.choose("compact")
    page.wait_until(lambda: page.all(".summary"), "the summary")
    page.run(
        "const one = document.querySelector('.summary'); one.open = true; one.scrollIntoView({ block: 'center' })"
    )
    yield "summary"


def _deleted(page: Page) -> Iterator[str]:
    page.choose("delete")
    page.wait_until(lambda: page.shows("#deleted"), "the offer")
    yield "deleted"
    page.click("#undo")


def _drawer(page: Page) -> Iterator[str]:
    if page.shows("#open-list") and page.run("return innerWidth") < 737:
        page.click("#open-list")
        page.wait_until(lambda: page.focused == "new", "the list")
        yield "drawer"


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        driver = browser.start(Path(profile) / "profile")
        try:
            page = Page(driver)
            for width in WIDTHS:
                for dark in (False, True):
                    browser.resize(driver, width, 844, dark=dark)
                    kind = "dark" if dark else "light"
                    with world() as made:
                        for name in states(page, made):
                            picture = driver.get_screenshot_as_png()
                            (target / f"{name}-{width}-{kind}.png").write_bytes(picture)
        finally:
            driver.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
