"""Clients of OpenAI's API, with tools of their own, against a server process: `python -m tests.real_clients`.

Each client is installed from the package index into an environment of its own below `--environments` (a temporary
directory where none is given), and says what it makes of what a scripted model server answers: whole and streamed, in
a session and one-shot. Checked is what the client has in the end, what reached the model, and what is stored. With
names of clients it tries these alone. It prints a line for each client, and ends with 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from session_core.model.demo import ScriptedReply
from tests.support.model_server import (
    BREAK,
    STALL,
    ModelServer,
    ReplyTo,
    answer,
    frames,
    status,
    tool_call,
    tool_calls,
)
from tests.support.server import ROOT, Server, wait_until

PROGRAMS = ROOT / "tests" / "support" / "real_clients"
PATIENCE = 120.0  # seconds that one question may take
QUESTION = "What is the weather?"


@dataclass(frozen=True)
class Client:
    """A client: its program, and what pip installs for it, of which the first is shown with its version. Of several
    calls in one answer it gets so many."""

    program: str
    requirements: tuple[str, ...]
    calls: int = 2


CLIENTS = {
    "openai": Client("use_openai.py", ("openai",)),
    "openai-1.6": Client("use_openai.py", ("openai==1.6.0", "httpx<0.28")),
    "openai-before-1": Client("use_old_openai.py", ("openai==0.28.0",), calls=1),
    "llm": Client("use_llm.py", ("llm",)),
    "langchain": Client("use_langchain.py", ("langchain-openai",)),
    "litellm": Client("use_litellm.py", ("litellm",)),
    "pydantic-ai": Client("use_pydantic_ai.py", ("pydantic-ai-slim[openai]",)),
    "agents": Client("use_agents.py", ("openai-agents",)),
}


class Program:
    """The running program of a client, in the environment of that client."""

    def __init__(self, client: Client, environment: Path, log: Path) -> None:
        self.client = client
        self._text = (PROGRAMS / client.program).read_text()
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [environment / "bin" / "python", PROGRAMS / client.program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def can(self, name: str) -> bool:
        """Whether the client's program has that method."""
        return f"def {name}(" in self._text

    def do(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """The outcome of a command."""
        assert self._process.stdin and self._process.stdout
        watchdog = threading.Timer(PATIENCE, self._process.kill)
        watchdog.start()
        print(json.dumps({"do": kind, **arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        watchdog.cancel()
        watchdog.join()
        assert line, f"the client did not come to an end with {kind}"
        outcome: dict[str, Any] = json.loads(line)
        return outcome

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


@dataclass
class Trial:
    """One way of one client: `talk` opens a conversation of its own, in a session where there is one."""

    program: Program
    server: Server
    model: ModelServer
    session: str | None
    stream: bool

    def open(self) -> None:
        self.model.forget()
        self.program.do("open", url=f"{self.server.url}/v1", session=self.session, stream=self.stream)

    def ask(self, *replies: ReplyTo, text: str = QUESTION, kind: str = "ask", **more: Any) -> dict[str, Any]:
        """What the client has, where the model answers with these."""
        self.model.then(*replies)
        return self.program.do(kind, text=text, **more)

    def results(self, request: int = -1) -> list[str]:
        """The results of tools in one of the requests that reached the model."""
        return [one["content"] for one in self.model.requests[request]["messages"] if one["role"] == "tool"]

    def sent(self) -> list[tuple[str, str]]:
        """The texts of the conversation in the last request."""
        messages = self.model.requests[-1]["messages"]
        return [(one["role"], one["content"]) for one in messages if one["role"] in ("user", "assistant")]

    def stored(self) -> list[dict[str, Any]]:
        """The messages of the session that was used last."""
        [session, *_] = self.server.request("GET", "/sessions").json["sessions"]
        wait_until(lambda: not self.server.request("GET", f"/sessions/{session}").json["running"])
        return self.server.messages(session)


Scenario = Callable[[Trial], None]


def two_turns(trial: Trial) -> None:
    assert trial.ask(answer("It is ", "345."), text="What is 15 * 23?")["text"] == "It is 345."
    assert trial.ask(answer("Still 345."), text="And now?")["text"] == "Still 345."
    conversation = [("user", "What is 15 * 23?"), ("assistant", "It is 345."), ("user", "And now?")]
    assert trial.sent() == conversation
    if trial.session:
        stored = [(one["role"], one["content"]) for one in trial.stored()]
        assert stored == [*conversation, ("assistant", "Still 345.")]


def own_tool(trial: Trial) -> None:
    found = trial.ask(tool_call("weather", {"city": "Bern"}), answer("Take a coat."))
    assert (found["text"], found["called"]) == ("Take a coat.", ["Bern"])
    assert trial.results() == ["rain in Bern"]
    assert trial.ask(answer("Yes."), text="Sure?")["text"] == "Yes."
    assert trial.results() == ["rain in Bern"]
    if trial.session:
        roles = "user assistant tool assistant user assistant"
        assert " ".join(one["role"] for one in trial.stored()) == roles


def beside_the_calculator(trial: Trial) -> None:
    both = (("calculator", {"expression": "6*7"}), ("weather", {"city": "Bern"}))
    found = trial.ask(tool_calls(*both), answer("42 coats."))
    assert (found["text"], found["called"]) == ("42 coats.", ["Bern"])
    assert trial.results() == (["42", "rain in Bern"] if trial.session else ["rain in Bern"])


def the_calculator_alone(trial: Trial) -> None:
    found = trial.ask(tool_call("calculator", {"expression": "6*7"}), answer("42."))
    assert (found["text"], found["called"], trial.results()) == ("42.", [], ["42"])


def parallel_calls(trial: Trial) -> None:
    """A client of old functions gets the first call alone."""
    calls = tool_calls(("weather", {"city": "Bern"}), ("weather", {"city": "Rome"}))
    found = trial.ask(calls, answer("Both wet."))
    cities = ["Bern", "Rome"][: trial.program.client.calls]
    assert (found["text"], sorted(found["called"])) == ("Both wet.", cities)
    assert trial.results()[: len(cities)] == [f"rain in {city}" for city in cities]


def several_rounds(trial: Trial) -> None:
    first = tool_call("weather", {"city": "Bern"}, id="call_1", text="Let me see. ")
    sums, second = (
        tool_call("calculator", {"expression": "6*7"}, id="call_2"),
        tool_call("weather", {"city": "Rome"}, id="call_3"),
    )
    found = trial.ask(first, sums, second, answer("Both wet."))
    assert (found["text"].removeprefix("Let me see. "), found["called"]) == ("Both wet.", ["Bern", "Rome"])
    every = ["rain in Bern", "42", "rain in Rome"]
    assert trial.results() == (every if trial.session else [every[0], every[2]])


def failing_tool(trial: Trial) -> None:
    found = trial.ask(tool_call("weather", {"city": "Atlantis"}), answer("Nowhere."))
    assert (found["text"], found["called"]) == ("Nowhere.", ["Atlantis"])
    assert "no such city" in trial.results()[0] or "error" in trial.results()[0]


def refusals(trial: Trial) -> None:
    """What fails before the first event is an HTTP status, which the client tries again where that can help."""
    found = trial.ask(*[status(429, {"error": {"message": "slow"}}, {"Retry-After": "0"})] * 20)
    assert (found["status"], "RateLimit" in found["error"] or "HTTP" in found["error"]) == (429, True), found
    trial.open()
    found = trial.ask(
        status(401, {"error": {"message": "bad key"}}), status(401, {}), status(401, {}), status(401, {})
    )
    assert found["status"] == 502, found
    if trial.program.can("choose"):
        trial.open()
        found = trial.ask(kind="choose", model="gpt-9")
        assert (found["status"], trial.model.requests) == (404, []), found


def broken_answers(trial: Trial) -> None:
    """A stream that fails after its first text raises; nothing is taken for a whole answer."""
    found = trial.ask(*[answer("Hel", BREAK)] * 20)
    assert "error" in found, found
    trial.model.forget()
    trial.open()
    assert trial.ask(answer("Hello."))["text"] == "Hello."


def forced_tool(trial: Trial) -> None:
    if trial.program.can("probabilities"):
        found = trial.ask(tool_call("weather", {"city": "Bern"}), answer("Wet."), tool_choice="required")
        assert found["text"] == "Wet."
        assert [one.get("tool_choice") for one in trial.model.requests] == ["required", None]


def structured(trial: Trial) -> None:
    """An answer that keeps to a schema: by `response_format`, or by a tool that must be called."""

    def reply(request: dict[str, Any]) -> ScriptedReply:
        named = '{"name": "Bern"}'
        return (answer(named) if "response_format" in request else tool_call("City", named))(request)

    if trial.program.can("structured"):
        assert trial.ask(reply, kind="structured")["text"] == "Bern"
        asked = trial.model.requests[-1]
        assert "response_format" in asked or asked["tool_choice"]["function"]["name"] == "City"


def probabilities(trial: Trial) -> None:
    if trial.program.can("probabilities"):
        token = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
        choice = {"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop", "logprobs": {"content": [token]}}
        assert trial.ask(frames({"choices": [choice]}, "[DONE]"), kind="probabilities")["text"] == "Hi"
        assert trial.model.requests[-1]["top_logprobs"] == 2


def left_alone(trial: Trial) -> None:
    if trial.program.can("leave"):
        trial.model.closed.clear()
        assert trial.ask(answer("Hel", STALL), kind="leave")["text"] == "Hel"
        assert trial.model.closed.wait(PATIENCE)
        if trial.session:
            assert [trial.stored()[-1][name] for name in ("content", "status")] == ["Hel", "cancelled"]


SCENARIOS: list[Scenario] = [
    two_turns,
    own_tool,
    beside_the_calculator,
    the_calculator_alone,
    parallel_calls,
    several_rounds,
    failing_tool,
    refusals,
    broken_answers,
    forced_tool,
    structured,
    probabilities,
    left_alone,
]


def trials(program: Program, directory: Path) -> Iterator[tuple[Scenario, Trial]]:
    """Each scenario in each way, in a session of its own."""
    with ModelServer() as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={directory / 'sessions'}", "-log_level=error")
        with Server(*flags, log=directory / "log") as server:
            for number, (scenario, stream, kept) in enumerate(
                itertools.product(SCENARIOS, (False, True), (False, True))
            ):
                yield scenario, Trial(program, server, model, f"chat-{number}" if kept else None, stream)


def try_client(name: str, client: Client, environment: Path) -> list[str]:
    """What is wrong."""
    faults = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = stack.enter_context(Program(client, environment, directory / "client.log"))
        for scenario, trial in trials(program, directory):
            way = f"{'streamed' if trial.stream else 'whole'}, {'in a session' if trial.session else 'one-shot'}"
            try:
                trial.open()
                scenario(trial)
            except Exception as error:  # noqa: BLE001 - whatever is wrong is told
                sent = [{**one, "tools": "…"} for one in trial.model.requests[-1:]]
                faults.append(f"{name}: {scenario.__name__}, {way}: {type(error).__name__} {error}; last: {sent}")
    return faults


def install(name: str, client: Client, environments: Path) -> Path:
    """The environment of a client, made where it does not exist."""
    environment = environments / name
    if not (environment / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", *client.requirements]
        subprocess.run(pip, check=True)
        (environment / "installed").touch()
    return environment


def version(client: Client, environment: Path) -> str:
    package = client.requirements[0].partition("=")[0].partition("[")[0]
    script = f"import importlib.metadata; print(importlib.metadata.version('{package}'))"
    python = environment / "bin" / "python"
    found = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    return f"{package} {found}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Real clients of OpenAI's API against this server.")
    parser.add_argument("clients", nargs="*", choices=[*CLIENTS, []], help="all of them where none is named")
    parser.add_argument("--environments", type=Path, help="a directory to install the clients in, and to use again")
    given = parser.parse_args(arguments)
    faults = []
    with tempfile.TemporaryDirectory() as temporary:
        environments = given.environments or Path(temporary)
        for name in given.clients or CLIENTS:
            environment = install(name, CLIENTS[name], environments)
            found = try_client(name, CLIENTS[name], environment)
            print(
                f"{version(CLIENTS[name], environment):30} {'as it should be' if not found else 'WRONG'}", flush=True
            )
            faults += found
    print("\n".join(faults))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
