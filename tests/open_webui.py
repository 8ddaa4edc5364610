"""Open WebUI as it comes from PyPI, set up by the README's words, in a real browser: `python -m tests.open_webui`.

It installs Open WebUI (several gigabytes, Python 3.11 or 3.12) below `--environment`, or into a temporary directory,
starts it beside a server process with a scripted model, and uses its page as a person does. Checked is what the page
shows, what reaches the model, and what is stored. It needs the Debian packages chromium-headless-shell and
chromium-driver. Nothing is fetched from Hugging Face, see `OFFLINE` in tests/support/open_webui.py. With names of
scenarios it tries these alone. It prints a line for each, and ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from session_core.model.demo import ScriptedReply
from tests.support import browser
from tests.support.model_server import STALL, ModelServer, answer, tool_call, tool_calls
from tests.support.open_webui import OpenWebui, Script, Window
from tests.support.pictures import png
from tests.support.server import TIMEOUT, Server, wait_until

Turn = tuple[str, str]


@dataclass(frozen=True)
class World:
    """Open WebUI's page, the model, and the server between them."""

    page: Window
    model: ModelServer
    script: Script
    server: Server
    directory: Path

    def sent(self, request: int = -1) -> list[Turn]:
        """The conversation in one of the requests that reached the model, without the instructions."""
        messages = self.script.requests[request]["messages"]
        return [(one["role"], one["content"]) for one in messages if one["role"] != "system"]

    @property
    def session(self) -> str:
        """The id of the session that was used last."""
        found: str = self.sessions[0]["id"]
        return found

    @property
    def sessions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.server.request("GET", "/sessions?details=true").json["sessions"]
        return found

    def stored(self, query: str = "") -> list[dict[str, Any]]:
        """The messages of the session that was used last, when no turn runs there."""
        wait_until(lambda: not self.sessions[0]["running"])
        found: list[dict[str, Any]] = self.server.request("GET", f"/sessions/{self.session}{query}").json["messages"]
        return found

    def texts(self, query: str = "") -> list[Turn]:
        return [(one["role"], one["content"]) for one in self.stored(query)]

    def begin(self, *turns: Turn) -> None:
        """A new chat with these questions and answers."""
        self.page.new_chat(models="gpt-3.5-turbo")
        for question, text in turns:
            self.script.on(question, answer(text))
            self.page.ask(question)


def conversation(*turns: Turn) -> list[Turn]:
    """The messages of these questions and answers. Of a question alone the answer is empty."""
    messages = [message for question, text in turns for message in (("user", question), ("assistant", text))]
    return [message for message in messages if message[1]]


TWO = (("The first", "One."), ("The second", "Two."))


def three_turns(world: World) -> None:
    world.begin(*TWO, ("The third", "Three."))
    assert world.page.questions == ["The first", "The second", "The third"]
    assert world.page.answers == ["One.", "Two.", "Three."]
    assert world.sent() == conversation(*TWO, ("The third", ""))
    assert world.texts("?replaced=true") == conversation(*TWO, ("The third", "Three."))
    assert {one["title"] for one in world.sessions[:1]} == {"The first"}


def the_servers_calculator(world: World) -> None:
    world.page.new_chat(models="gpt-3.5-turbo")
    world.script.on("How much", tool_call("calculator", {"expression": "15*23"}), answer("It is ", "345."))
    world.page.ask("How much?")
    assert world.page.answers == ["It is 345."]
    world.page.ask("And now?")
    expected = [("user", "How much?"), ("assistant", ""), ("tool", "345"), ("assistant", "It is 345.")]
    assert world.sent() == [*expected, ("user", "And now?")]


def an_edited_question(world: World) -> None:
    world.begin(*TWO, ("The third", "Three."))
    world.script.on("changed", answer("Changed."))
    world.page.edit_question(1, "The changed")
    world.page.wait_until(lambda: world.page.answers == ["One.", "Changed."], "the new answer")
    assert world.sent() == conversation(TWO[0], ("The changed", ""))
    assert world.texts() == conversation(TWO[0], ("The changed", "Changed."))


def another_version(world: World) -> None:
    """Back to the first version of an edited question, and on from there."""
    an_edited_question(world)
    world.page.switch("Previous")
    world.page.wait_until(lambda: world.page.answers == ["One.", "Two.", "Three."], "the older version")
    world.page.ask("The fourth")
    assert world.sent() == conversation(*TWO, ("The third", "Three."), ("The fourth", ""))
    assert world.texts() == conversation(*TWO, ("The third", "Three."), ("The fourth", "OK"))


def regenerated(world: World) -> None:
    world.begin(*TWO)
    world.script.on("The second", answer("Again."))
    world.page.regenerate()
    world.page.wait_until(lambda: world.page.answers == ["One.", "Again."], "the new answer")
    assert world.sent() == conversation(TWO[0], ("The second", ""))
    world.page.ask("The third")
    assert world.sent() == conversation(TWO[0], ("The second", "Again."), ("The third", ""))
    world.page.switch("Previous", 0)
    world.page.wait_until(lambda: world.page.answers == ["One.", "Two."], "the older answer")
    world.page.ask("The fourth")
    assert world.sent() == conversation(*TWO, ("The fourth", ""))


def made_more_concise(world: World) -> None:
    """The order to write an answer anew is sent behind that answer, and is not part of the conversation later."""
    world.begin(*TWO)
    world.script.on("Concise", answer("Short."))
    world.page.regenerate("More Concise")
    world.page.wait_until(lambda: world.page.answers == ["One.", "Short."], "the new answer")
    assert world.sent()[:4] == conversation(*TWO) and world.sent()[4] == ("user", "More Concise")
    world.page.ask("The third")
    assert world.sent() == conversation(TWO[0], ("The second", "Short."), ("The third", ""))


def an_edited_answer(world: World) -> None:
    world.begin(*TWO)
    world.page.edit_answer(0, "By hand.")
    world.page.ask("The third")
    assert world.sent() == conversation(("The first", "By hand."), TWO[1], ("The third", ""))


def stopped_and_continued(world: World) -> None:
    world.begin(TWO[0])
    world.model.closed.clear()
    world.script.on("The second", answer("Hel", STALL), answer("lo."))
    world.page.send("The second")
    world.page.wait_until(lambda: "Hel" in world.page.answers, "the beginning")
    world.page.press("[aria-label=Stop]")
    assert world.model.closed.wait(TIMEOUT)
    assert [world.stored()[-1][name] for name in ("content", "status")] == ["Hel", "cancelled"]
    world.page.wait_until(lambda: world.page.idle, "the end")
    world.page.press("#continue-response-button")
    world.page.wait_until(lambda: world.page.answers == ["One.", "Hello."], "the rest")
    assert world.sent() == conversation(TWO[0], ("The second", "Hel"))
    world.page.ask("The third")
    assert world.sent() == conversation(TWO[0], ("The second", "Hello."), ("The third", ""))


def its_own_tools(world: World) -> None:
    """Alone, and beside the server's in one answer. The results stay in the conversation."""
    world.page.new_chat(models="gpt-3.5-turbo")
    clock = ("get_current_timestamp", {})
    world.script.on("clock", tool_call(*clock), answer("Late."))
    world.page.ask("The clock")
    assert world.page.answers[0].endswith("Late.")
    both = tool_calls(("calculator", {"expression": "6*7"}), clock, ids=["call_a", "call_b"])
    world.script.on("both", both, answer("Both."))
    world.page.ask("The both")
    assert world.page.answers[1].endswith("Both.")
    world.page.ask("The third")
    roles = "user assistant tool assistant user assistant tool tool assistant"
    assert " ".join(role for role, _ in world.sent()) == f"{roles} user"
    results = [text for role, text in world.sent() if role == "tool"]
    assert results[1] == "42" and all("current_timestamp" in results[at] for at in (0, 2))
    assert " ".join(one["role"] for one in world.stored("?replaced=true")) == f"{roles} user assistant"


def two_models(world: World) -> None:
    """Each answers for itself; the next question has before it what the page has chosen."""

    def by_name(request: dict[str, Any]) -> ScriptedReply:
        return answer(f"From {request['model']}")(request)

    world.script.on("The first", by_name, by_name)
    world.page.new_chat(models="gpt-3.5-turbo,gpt-4")
    world.page.send("The first")
    both = ["From gpt-3.5-turbo", "From gpt-4"]
    world.page.wait_until(lambda: world.page.answers == both, "both answers")
    world.page.settle()
    world.page.send("The second")
    world.page.wait_until(lambda: world.page.answers == [*both, "OK", "OK"], "both answers")
    world.page.settle()
    later = [one for one in world.script.requests if one["messages"][-1]["content"] == "The second"]
    assert sorted(one["model"] for one in later) == ["gpt-3.5-turbo", "gpt-4"]
    assert {one["messages"][2]["content"] for one in later} == {"From gpt-4"}
    assert world.texts() == conversation(("The first", "From gpt-4"), ("The second", "OK"))


def a_temporary_chat(world: World) -> None:
    before = world.sessions
    for texts in (("The first", "The second"), ("The other",)):
        world.page.new_chat(models="gpt-3.5-turbo", temporary_chat="true")
        for text in texts:
            world.page.ask(text)
    assert world.sent() == [("user", "The other")]
    assert world.sent(-2) == conversation(("The first", "OK"), ("The second", ""))
    assert world.sessions == before


def a_file(world: World) -> None:
    """Each question stands with the file before it, and the title is the question."""
    notes = world.directory / "notes.txt"
    notes.write_text("The password of the tower is hummingbird.\n")
    world.page.new_chat(models="gpt-3.5-turbo")
    world.page.attach(notes)
    world.script.on("What of the tower", answer("One."))
    world.page.ask("What of the tower?")
    world.page.ask("And then?")
    (first, question), (_, text), (_, second) = world.sent()
    assert (first, text) == ("user", "One.")
    assert all("hummingbird" in one for one in (question, second))
    assert question.endswith("What of the tower?") and second.endswith("And then?")
    assert len(world.stored("?replaced=true")) == 4
    assert world.sessions[0]["title"] == "What of the tower?"


def a_picture(world: World) -> None:
    """It is kept with the question, and reaches the model with each later one too."""
    picture = world.directory / "picture.png"
    picture.write_bytes(png())
    world.page.new_chat(models="gpt-3.5-turbo")
    world.page.attach(picture)
    world.script.on("What is on it", answer("One."))
    world.page.ask("What is on it?")
    world.page.ask("And then?")
    question: Any = world.sent()[0][1]
    assert [part["type"] for part in question] == ["text", "text", "image_url"]  # a list of files, and the question
    assert question[1]["text"] == "What is on it?"
    assert world.sent()[1:] == [("assistant", "One."), ("user", "And then?")]
    assert len(world.stored("?replaced=true")) == 4
    assert world.sessions[0]["title"] == "What is on it?"


def titles(world: World) -> None:
    """What Open WebUI asks for itself is answered, and stands in no session."""
    world.begin(TWO[0])
    world.page.wait_until(lambda: "A short title" in world.page.text("#sidebar, nav"), "the title")
    world.page.wait_until(lambda: "And then?" in world.page.text("main"), "what might be asked next")
    assert world.script.tasks
    assert world.texts("?replaced=true") == conversation(TWO[0])


SCENARIOS: list[Callable[[World], None]] = [
    three_turns,
    the_servers_calculator,
    an_edited_question,
    another_version,
    regenerated,
    made_more_concise,
    an_edited_answer,
    stopped_and_continued,
    its_own_tools,
    two_models,
    a_temporary_chat,
    a_file,
    a_picture,
    titles,
]


def install(environment: Path) -> Path:
    """The program of Open WebUI, installed where it is not."""
    program = environment / "bin" / "open-webui"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "python", "-m", "pip", "install", "--quiet", "open-webui"], check=True)
    return program


def try_all(program: Path, directory: Path, scenarios: Sequence[Callable[[World], None]]) -> int:
    """How many scenarios went wrong."""
    wrong = 0
    with ExitStack() as stack:
        model = stack.enter_context(ModelServer())
        flags = (f"-base_url={model.base_url}", f"-session_dir={directory / 'sessions'}", "-models=gpt-4")
        server = stack.enter_context(Server(*flags, log=directory / "log"))
        front_end = stack.enter_context(OpenWebui(program, server.url, directory))
        print(f"Open WebUI {front_end.version}", flush=True)
        driver = browser.start(directory / "profile")
        stack.callback(driver.quit)
        page = Window(driver, front_end.url)
        for scenario in scenarios:
            model.forget()
            try:
                scenario(World(page, model, Script(model), server, directory))
            except Exception as error:  # noqa: BLE001 - whatever is wrong is told
                wrong += 1
                where = traceback.extract_tb(error.__traceback__)[1]
                fault = f"{type(error).__name__} at {where.line}; it shows {page.questions} {page.answers}"
                print(f"{scenario.__name__:24} WRONG: {fault}", flush=True)
            else:
                print(f"{scenario.__name__:24} as it should be", flush=True)
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Open WebUI in a browser against this server.")
    parser.add_argument("scenarios", nargs="*", help="all of them where none is named")
    parser.add_argument("--environment", type=Path, help="a directory to install Open WebUI in, and to use again")
    given = parser.parse_args(arguments)
    if not (browser.CHROMIUM and browser.DRIVER):
        print(f"This {browser.NEEDS}.", file=sys.stderr)
        return 2
    named = [one for one in SCENARIOS if one.__name__ in given.scenarios] if given.scenarios else SCENARIOS
    with tempfile.TemporaryDirectory() as temporary:
        program = install(given.environment or Path(temporary) / "environment")
        return bool(try_all(program, Path(temporary), named))


if __name__ == "__main__":
    sys.exit(main())
