"""`useChat` of the AI SDK 5 to 7, and assistant-ui, in a real browser: `python -m tests.react_pages`.

Each page is installed from npm below `--modules` (a temporary directory where none is given), bundled by esbuild, and
used on an origin of its own against a server process with a scripted model. Checked is what the page shows, and what
reaches the model. It needs node and npm, and the Debian packages chromium-headless-shell and chromium-driver. With
names of pages it tries these alone. It prints a line for each, and ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from tests.support import browser
from tests.support.browser import Page
from tests.support.model_server import ModelServer, ReplyTo, answer, tool_call, tool_calls, wait
from tests.support.server import ROOT, Server

PAGES = ROOT / "tests" / "support" / "pages"
REACT = {"react": "^19", "react-dom": "^19", "esbuild": "^0.28"}
USE_CHAT, ASSISTANT_UI = "use_chat.jsx", "assistant_ui.jsx"
TOOLS = '''
import pathlib
from agent import tool


@tool(needs_approval=True)
def send(to: str) -> str:
    """Sends a letter."""
    with pathlib.Path({path!r}).open("a") as file:
        file.write(to + "\\n")
    return f"sent to {{to}}"


TOOLS = [send]
'''
SEND = tool_call("send", {"to": "Ann"}, text="Shall I?", id="call_send")
ASK = tool_call("weather", {"city": "Bern"}, id="call_weather")
TWO = ["One", "First.", "Two", "Second."]


@dataclass(frozen=True)
class Kind:
    """A page: its source, what npm installs for it, of which the first is shown with its version, and whether its
    client knows approval."""

    source: str
    packages: dict[str, str]
    approves: bool = True


KINDS = {
    "useChat-7": Kind(USE_CHAT, {"ai": "^7", "@ai-sdk/react": "^4"}),
    "useChat-6": Kind(USE_CHAT, {"ai": "^6", "@ai-sdk/react": "^3"}),
    "useChat-5": Kind(USE_CHAT, {"ai": "^5", "@ai-sdk/react": "~2.0"}, approves=False),
    "assistant-ui": Kind(
        ASSISTANT_UI,
        {"@assistant-ui/react": "^0.15", "@assistant-ui/react-ai-sdk": "^1.4", "ai": "^7", "@ai-sdk/react": "^4"},
    ),
}


class Files(SimpleHTTPRequestHandler):
    """The files of a page."""

    def log_message(self, format: str, *args: object) -> None:
        pass


class World:
    """A page in the browser, a server process on one port, and the model behind it."""

    def __init__(self, page: Page, origin: str, model: ModelServer, directory: Path) -> None:
        self.page = page
        self.model = model
        self.origin = origin
        self._directory = directory
        (directory / "tools.py").write_text(TOOLS.format(path=str(directory / "sent")))
        self.server = self._serve(0)

    def begin(self, *turns: str) -> None:
        """The page with a session of its own, and these questions and answers."""
        self.model.forget()
        (self._directory / "sent").unlink(missing_ok=True)
        self.page.driver.get("about:blank")
        self.page.driver.get(f"{self.origin}/?server={self.server.url}#{self.server.create()}")
        self.settle()
        for at in range(0, len(turns), 2):
            self.model.then(answer(turns[at + 1]))
            self.ask(turns[at])
            self.settle()
        assert not turns or self.texts == list(turns)

    def reload(self, *, crash: bool = False) -> None:
        """Loads the page anew, where wanted after a crash of the server."""
        if crash:
            self.server.kill()
            self.server = self._serve(self.server.port)
        self.page.reload()
        self.settle()

    def settle(self) -> None:
        self.page.wait_until(lambda: self.page.text("output") == "ready", "the end")

    def told(self, *texts: str) -> None:
        """Waits until the page shows just these texts of questions and answers, and nothing is written any more."""
        self.page.wait_until(lambda: self.texts == list(texts), f"{texts}, not {self.texts}")
        self.settle()

    @property
    def texts(self) -> list[str]:
        return [text for text in self.page.texts("article p, .user > p, .user > span, .assistant > p") if text]

    def sent(self) -> list[str]:
        """The texts of the last request that reached the model."""
        return [one["content"] for one in self.model.requests[-1]["messages"][1:]]

    @property
    def letters(self) -> list[str]:
        """What the tool that needs approval has done."""
        path = self._directory / "sent"
        return path.read_text().split() if path.exists() else []

    def ask(self, text: str) -> None:
        if self.page.all(".composer"):
            self.page.type(".composer textarea", text, Keys.ENTER)
        else:
            self.do("chat.sendMessage({text: given[0]})", text)

    def do(self, script: str, *given: object) -> None:
        """Runs a script with `chat`, what `useChat` gives."""
        self.page.driver.execute_script(f"const given = [...arguments], chat = window.chat; {script}", *given)

    def press(self, text: str, at: int = -1) -> None:
        """Clicks a button by its text."""
        script = "return [...document.querySelectorAll('button')].filter((one) => one.textContent === arguments[0])"
        self.page.wait_until(lambda: self.page.driver.execute_script(script, text), f"the button {text}")
        self.page.driver.execute_script("arguments[0].click()", self.page.driver.execute_script(script, text)[at])

    def _serve(self, port: int) -> Server:
        flags = (f"-session_dir={self._directory / 'sessions'}", f"-tools={self._directory / 'tools.py'}")
        more = (f"-base_url={self.model.base_url}", f"-cors_origin={self.origin}")
        return Server(*flags, *more, port=port, log=self._directory / "log")


Scenario = Callable[[World], None]


def a_reload_shows_the_same(world: World) -> None:
    world.begin(*TWO)
    world.reload()
    world.told(*TWO)


def an_edit_by_id(world: World) -> None:
    world.begin(*TWO)
    world.do("chat.sendMessage({text: 'Three', messageId: chat.messages[2].id})")
    world.told("One", "First.", "Three", "OK")
    assert world.sent() == ["One", "First.", "Three"]
    world.reload()
    world.told("One", "First.", "Three", "OK")


def an_edit_by_messages(world: World) -> None:
    world.begin(*TWO)
    world.do("chat.setMessages(chat.messages.slice(0, 2)); chat.sendMessage({text: 'Three'})")
    world.told("One", "First.", "Three", "OK")
    assert world.sent() == ["One", "First.", "Three"]
    world.reload()
    world.told("One", "First.", "Three", "OK")


def an_edit_by_messages_and_regenerate(world: World) -> None:
    """As Vercel's template edits: the message keeps its id, and has another text."""
    world.begin(*TWO)
    edited = "{...chat.messages[2], parts: [{type: 'text', text: 'Three'}]}"
    world.do(f"chat.setMessages([...chat.messages.slice(0, 2), {edited}]); chat.regenerate()")
    world.told("One", "First.", "Three", "OK")
    assert world.sent() == ["One", "First.", "Three"]
    world.reload()
    world.told("One", "First.", "Three", "OK")


def an_edit_after_a_reload(world: World) -> None:
    world.begin(*TWO)
    world.reload()
    world.do("chat.sendMessage({text: 'Three', messageId: chat.messages[0].id})")
    world.told("Three", "OK")
    assert world.sent() == ["Three"]
    world.do("chat.setMessages([]); chat.sendMessage({text: 'Four'})")
    world.told("Four", "OK")
    assert world.sent() == ["Four"]


def tried_again(world: World) -> None:
    world.begin(*TWO)
    world.do("chat.regenerate()")
    world.told("One", "First.", "Two", "OK")
    assert world.sent() == ["One", "First.", "Two"]
    world.do("chat.regenerate({messageId: chat.messages[1].id})")
    world.told("One", "OK")
    assert world.sent() == ["One"]
    world.reload()
    world.told("One", "OK")


def back_to_an_older_version(world: World) -> None:
    world.begin(*TWO)
    world.do("window.older = chat.messages; chat.regenerate()")
    world.told("One", "First.", "Two", "OK")
    world.do("chat.setMessages(window.older); chat.sendMessage({text: 'Three'})")
    world.told(*TWO, "Three", "OK")
    assert world.sent() == [*TWO, "Three"]
    world.reload()
    world.told(*TWO, "Three", "OK")


def taken_up_after_a_reload(world: World) -> None:
    go = threading.Event()
    world.begin()
    world.model.then(answer("It ", wait(go), "goes on."))
    world.ask("One")
    world.page.wait_until(lambda: world.texts == ["One", "It"], "the beginning")
    world.page.reload()
    world.page.wait_until(lambda: world.texts == ["One", "It"], "the beginning")
    go.set()
    world.told("One", "It goes on.")


def waits(world: World, reply: ReplyTo, **reload: bool) -> None:
    """A session that waits, of which the page was loaded anew."""
    world.begin()
    world.model.then(reply, answer("Done."))
    world.ask("Go")
    world.page.wait_until(lambda: world.page.texts("pre"), "the call")
    if reload:
        world.reload(**reload)
        world.page.wait_until(lambda: world.page.texts("pre"), "the call")


def approved(world: World) -> None:
    for reload in ({}, {"crash": False}, {"crash": True}):
        waits(world, SEND, **reload)
        world.do("chat.addToolApprovalResponse({id: 'call_send', approved: true})")
        world.told("Go", "Shall I?", "Done.")
        assert (world.letters, world.sent()[-1]) == (["Ann"], "sent to Ann")
        world.reload()
        world.told("Go", "Shall I?", "Done.")


def denied(world: World) -> None:
    for reload in ({}, {"crash": True}):
        waits(world, SEND, **reload)
        world.do("chat.addToolApprovalResponse({id: 'call_send', approved: false, reason: 'not to Ann'})")
        world.told("Go", "Shall I?", "Done.")
        assert (world.letters, world.sent()[-1]) == ([], "not executed: not to Ann")


def overtaken(world: World) -> None:
    """A new message denies what waits."""
    waits(world, SEND)
    world.ask("Never mind")
    world.told("Go", "Shall I?", "Never mind", "Done.")
    assert world.letters == []
    assert world.sent()[2] == "not executed: the user went on"


def approval_that_is_not_known(world: World) -> None:
    """Version 5 shows an error, and the next message goes on."""
    world.begin()
    world.model.then(SEND, answer("Done."))
    world.ask("Go")
    world.page.wait_until(lambda: world.page.text("[role=alert]"), "the error")
    world.reload()
    world.ask("Never mind")
    world.page.wait_until(lambda: "Done." in world.texts, "the answer")
    assert world.letters == []


def a_tool_of_the_page(world: World) -> None:
    for reload in ({}, {"crash": False}, {"crash": True}):
        waits(world, ASK, **reload)
        output = "{tool: 'weather', toolCallId: 'call_weather', output: {sky: 'grey'}}"
        world.do(f"(chat.addToolOutput ?? chat.addToolResult)({output})")
        world.told("Go", "Done.")
        assert world.sent()[-1] == '{"sky":"grey"}'
        world.reload()
        world.told("Go", "Done.")
        assert world.page.texts("pre") == ['weather output-available {"sky":"grey"}']


def a_tool_of_the_page_that_fails(world: World) -> None:
    waits(world, ASK)
    failed = "{tool: 'weather', toolCallId: 'call_weather', state: 'output-error', errorText: 'no sky'}"
    world.do(f"chat.addToolOutput({failed})")
    world.told("Go", "Done.")
    assert world.sent()[-1] == "error: no sky"


def both_at_once(world: World) -> None:
    waits(world, tool_calls(("send", {"to": "Ann"}), ("weather", {}), ids=["call_send", "call_weather"]))
    world.do("chat.addToolApprovalResponse({id: 'call_send', approved: true})")
    world.do("chat.addToolOutput({tool: 'weather', toolCallId: 'call_weather', output: 'rain'})")
    world.told("Go", "Done.")
    assert world.sent()[-2:] == ["sent to Ann", "rain"]


def edited_in_the_page(world: World) -> None:
    world.begin(*TWO)
    world.press("Edit")
    world.page.wait_until(lambda: world.page.all(".edit textarea"), "the text to edit")
    world.page.type(".edit textarea", Keys.CONTROL + "a" + Keys.NULL, "Three")
    world.press("Send edit")
    world.told("One", "First.", "Three", "OK")
    assert world.sent() == ["One", "First.", "Three"]
    world.press("Previous")
    world.told(*TWO)
    world.ask("Four")
    world.told(*TWO, "Four", "OK")
    assert world.sent() == [*TWO, "Four"]
    world.reload()
    world.told(*TWO, "Four", "OK")


def reloaded_in_the_page(world: World) -> None:
    world.begin(*TWO)
    world.press("Reload")
    world.told("One", "First.", "Two", "OK")
    assert world.sent() == ["One", "First.", "Two"]
    world.press("Previous")
    world.told(*TWO)
    world.ask("Three")
    world.told(*TWO, "Three", "OK")
    assert world.sent() == [*TWO, "Three"]


def approved_in_the_page(world: World) -> None:
    for reload in ({}, {"crash": False}, {"crash": True}):
        waits(world, SEND, **reload)
        world.press("Approve")
        world.told("Go", "Shall I?", "Done.")
        assert (world.letters, world.sent()[-1]) == (["Ann"], "sent to Ann")


def denied_in_the_page(world: World) -> None:
    waits(world, SEND, crash=True)
    world.press("Deny")
    world.told("Go", "Shall I?", "Done.")
    assert (world.letters, world.sent()[-1]) == ([], "not executed: not to Ann")


def a_tool_that_runs_in_the_page(world: World) -> None:
    """assistant-ui tells the server its tools, runs them by itself, and sends their results on."""
    waits(world, ASK)
    world.told("Go", "Done.")
    assert world.sent()[-1] == '{"sky":"grey over Bern"}'


BY_SCRIPT: list[Scenario] = [
    a_reload_shows_the_same,
    an_edit_by_id,
    an_edit_by_messages,
    an_edit_by_messages_and_regenerate,
    an_edit_after_a_reload,
    tried_again,
    back_to_an_older_version,
    taken_up_after_a_reload,
    a_tool_of_the_page,
    a_tool_of_the_page_that_fails,
]
WITH_APPROVAL: list[Scenario] = [approved, denied, overtaken, both_at_once]
BY_HAND: list[Scenario] = [
    a_reload_shows_the_same,
    edited_in_the_page,
    reloaded_in_the_page,
    approved_in_the_page,
    denied_in_the_page,
    overtaken,
    a_tool_that_runs_in_the_page,
]


def scenarios(kind: Kind) -> list[Scenario]:
    if kind.source == ASSISTANT_UI:
        return BY_HAND
    return BY_SCRIPT + (WITH_APPROVAL if kind.approves else [approval_that_is_not_known])


def bundle(kind: Kind, modules: Path) -> Path:
    """The directory of the page's files, which is made where it does not exist."""
    if not (modules / "node_modules").exists():
        modules.mkdir(parents=True, exist_ok=True)
        manifest = {"private": True, "dependencies": {**kind.packages, **REACT}}
        (modules / "package.json").write_text(json.dumps(manifest))
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=modules, check=True)
    site = modules / "site"
    site.mkdir(exist_ok=True)
    shutil.copy(PAGES / "index.html", site)
    shutil.copy(PAGES / kind.source, modules / "page.jsx")
    flags = ["--bundle", "--format=esm", "--jsx=automatic", f"--outfile={site / 'page.js'}", "--log-level=error"]
    subprocess.run([modules / "node_modules" / ".bin" / "esbuild", "page.jsx", *flags], cwd=modules, check=True)
    return site


def versions(kind: Kind, modules: Path) -> str:
    found = {
        name: json.loads((modules / "node_modules" / name / "package.json").read_text()) for name in kind.packages
    }
    return ", ".join(f"{name} {manifest['version']}" for name, manifest in found.items())


def try_page(name: str, modules: Path, driver: browser.Driver) -> list[str]:
    """What is wrong."""
    kind, faults = KINDS[name], []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = functools.partial(Files, directory=str(bundle(kind, modules)))
        site = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), files))
        threading.Thread(target=site.serve_forever, daemon=True).start()
        stack.callback(site.shutdown)
        model = stack.enter_context(ModelServer())
        world = World(Page(driver), f"http://127.0.0.1:{site.server_address[1]}", model, directory)
        stack.callback(lambda: world.server.close())
        for scenario in scenarios(kind):
            try:
                scenario(world)
            except Exception as error:  # noqa: BLE001 - whatever is wrong is told
                where = [
                    frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == __file__
                ]
                shown = f"{world.texts} {world.page.texts('pre, [role=alert]')}"
                asked = [one["content"] for one in model.requests[-1]["messages"][1:]] if model.requests else None
                faults.append(f"{name}: {scenario.__name__}: {type(error).__name__} at {where[1:]}; {shown}; {asked}")
    return faults


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pages with useChat and assistant-ui against this server.")
    parser.add_argument("pages", nargs="*", choices=[*KINDS, []], help="all of them where none is named")
    parser.add_argument("--modules", type=Path, help="a directory to install the packages in, and to use again")
    given = parser.parse_args(arguments)
    if not (browser.CHROMIUM and browser.DRIVER and shutil.which("npm")):
        print(f"This needs node and npm, and {browser.NEEDS}.", file=sys.stderr)
        return 2
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        modules = given.modules or Path(temporary)
        driver = browser.start(Path(temporary) / "profile")
        try:
            for name in given.pages or KINDS:
                found = try_page(name, modules / name, driver)
                wrong = "as it should be" if not found else "WRONG"
                print(f"{name:14} {wrong} ({versions(KINDS[name], modules / name)})", flush=True)
                faults += found
        finally:
            driver.quit()
    print("\n".join(faults))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
