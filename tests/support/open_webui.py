"""Open WebUI as it comes from PyPI, in a process of its own, and its page in a browser."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from selenium.webdriver.common.keys import Keys

from session_core.model.demo import ScriptedReply
from tests.support.browser import Driver, Page
from tests.support.model_server import ModelServer, ReplyTo, answer
from tests.support.server import wait_until

# Nothing is fetched from elsewhere: no models for embeddings or speech, no news of versions. Files go to the model as
# they are, since what finds passages in them needs such a model.
OFFLINE = {
    "OFFLINE_MODE": "true",  # which sets HF_HUB_OFFLINE too
    "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
    "RAG_EMBEDDING_ENGINE": "openai",  # of which nothing is loaded at the start
    "ENABLE_OLLAMA_API": "false",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
}
STARTS_WITHIN = 400.0  # seconds
_EDITOR = "main textarea[id^=message-edit-], main textarea[placeholder^=Message]"  # of a question, of an answer
# What the README says of its connection.
HEADERS = {"X-OpenWebUI-Chat-Id": "{{CHAT_ID}}", "X-OpenWebUI-Task": "{{TASK}}"}


class OpenWebui:
    """A fresh Open WebUI without a login. Its one connection is to the server at that address, by README's words."""

    def __init__(self, program: Path, server_url: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        own = {"DATA_DIR": str(directory / "data"), "WEBUI_AUTH": "False", "WEBUI_SECRET_KEY": "of-these-tests"}
        with (directory / "open-webui.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "serve", "--host", "127.0.0.1", "--port", str(port)],
                env={**os.environ, **OFFLINE, **own},
                cwd=directory,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_up, STARTS_WITHIN)
        self._token = self.call("POST", "/api/v1/auths/signin", {"email": "", "password": ""})["token"]
        connection = {"OPENAI_API_BASE_URLS": [f"{server_url}/v1"], "OPENAI_API_KEYS": ["none"]}
        configs = {"OPENAI_API_CONFIGS": {"0": {"enable": True, "headers": HEADERS}}}
        news = {"ui": {"version": self.version, "showChangelog": False}}  # as after a first visit
        self.call("POST", "/api/v1/users/user/settings/update", news)
        self.call("POST", "/openai/config/update", {"ENABLE_OPENAI_API": True, **connection, **configs})

    @property
    def version(self) -> str:
        found: str = self.call("GET", "/api/config")["version"]
        return found

    def call(self, method: str, path: str, body: object = None) -> Any:
        """What its own API answers, as its page calls it."""
        headers = {"Content-Type": "application/json"}
        if hasattr(self, "_token"):
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
        with urllib.request.urlopen(asked, timeout=30) as answered:
            return json.loads(answered.read())

    def _is_up(self) -> bool:
        assert self._process.poll() is None, "Open WebUI did not start"
        try:
            return bool(self.call("GET", "/health"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)


class Script:
    """What the model answers: to a question what `on` says, to what Open WebUI asks for itself a title, tags, …"""

    def __init__(self, model: ModelServer) -> None:
        self.model = model
        self._answers: dict[str, list[ReplyTo]] = {}
        self._lock = threading.Lock()
        model.default = self._reply

    def on(self, words: str, *replies: ReplyTo) -> None:
        """The answers to requests whose last question holds these words, one after the other."""
        self._answers[words] = list(replies)

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The requests that reached the model, without those that Open WebUI makes for itself."""
        return [one for one in self.model.requests if not is_task(one)]

    @property
    def tasks(self) -> list[dict[str, Any]]:
        return [one for one in self.model.requests if is_task(one)]

    def _reply(self, request: dict[str, Any]) -> ScriptedReply:
        if is_task(request):
            text = json.dumps({"title": "A short title", "tags": ["One"], "follow_ups": ["And then?"]})
            return answer(text)(request)
        question = last_question(request)
        with self._lock:
            found = next((replies for words, replies in self._answers.items() if words in question and replies), None)
            reply = found.pop(0) if found else answer("OK")
        return reply(request)


def last_question(request: Mapping[str, Any]) -> str:
    """The text of the last message of the user."""
    return next(str(message["content"]) for message in reversed(request["messages"]) if message["role"] == "user")


def is_task(request: Mapping[str, Any]) -> bool:
    return "<chat_history>" in last_question(request)


class Window(Page):
    """Open WebUI's page, as a person uses it."""

    def __init__(self, driver: Driver, url: str) -> None:
        super().__init__(driver)
        self.url = url

    def new_chat(self, **parameters: str) -> None:
        """An empty chat. `models` and `temporary-chat` are among its parameters."""
        query = "&".join(f"{name.replace('_', '-')}={value}" for name, value in parameters.items())
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/?{query}")
        self.wait_until(lambda: self.all("#chat-input"), "the input")
        self.wait_until(lambda: "gpt-3.5-turbo" in self.text("main, #model-selector-model-button"), "the model")

    def ask(self, text: str) -> None:
        """Sends, and waits for the end of the answer."""
        self.send(text)
        self.settle()

    def send(self, text: str) -> None:
        before = len(self.questions)
        self.type("#chat-input", text)
        self.wait_until(lambda: self.all("#send-message-button:enabled"), "the button to send")
        self.all("#send-message-button")[0].click()
        self.wait_until(lambda: len(self.questions) > before, "the question")

    def settle(self) -> None:
        """Waits for the end of all answers, and of what Open WebUI asks for itself behind them."""
        self.wait_until(lambda: self.idle and self.all("[aria-label^='Follow up']"), "the answer's end")

    def attach(self, path: Path) -> None:
        """Puts a file to the question that is asked next."""
        self.all("input[type=file][multiple]")[0].send_keys(str(path))
        self.wait_until(lambda: path.name in self.driver.page_source, "the file")
        self.wait_until(lambda: not self.all("main [role=status], main .spinner_ajPY"), "the end of the upload")

    def edit_question(self, number: int, text: str) -> None:
        """Puts a text in place of a question, and asks that."""
        self._edit(".user-message", number, text)
        self.press("#confirm-edit-message-button")
        self.settle()

    def edit_answer(self, number: int, text: str) -> None:
        """Puts a text in place of an answer."""
        self._edit(".chat-assistant", number, text)
        self.press("#confirm-edit-message-button")
        self.wait_until(lambda: text in self.answers, "the edited answer")

    def regenerate(self, how: str = "Try Again") -> None:
        """Has the last answer written anew."""
        self.press("main [aria-label=Regenerate]")
        self.press_text(how)

    def switch(self, to: str, at: int = -1) -> None:
        """Goes to the `Previous` or the `Next` version of a message."""
        self.press(f"main [aria-label='{to} message'], main [aria-label='{to} response']", at)

    def press(self, selector: str, at: int = -1) -> None:
        """Clicks one of those, shown or not."""
        self.wait_until(lambda: self.all(selector), selector)
        script = "arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()"
        self.driver.execute_script(script, self.all(selector)[at])

    def press_text(self, text: str) -> None:
        """Clicks the button that bears this text alone."""
        script = (
            "return [...document.querySelectorAll('button')].filter((one) => one.innerText.trim() === arguments[0])"
        )
        self.wait_until(lambda: self.driver.execute_script(script, text), text)
        self.driver.execute_script("arguments[0].click()", self.driver.execute_script(script, text)[-1])

    @property
    def idle(self) -> bool:
        """Whether no answer is being written."""
        return bool(self.all("[id^=speak-button-]")) and not self.all("[aria-label^=Stop]")

    @property
    def questions(self) -> list[str]:
        """The first lines of the questions, without the times below them."""
        return [text.split("\n")[0] for text in self.texts(".user-message")]

    @property
    def answers(self) -> list[str]:
        return [text.strip() for text in self.texts(".chat-assistant #response-content-container")]

    def _edit(self, selector: str, number: int, text: str) -> None:
        script = """
        const all = [...document.querySelectorAll("main [aria-label=Edit]")]
        const shown = [...document.querySelectorAll(arguments[0])][arguments[1]]
        const own = shown && all.find((button) => shown.compareDocumentPosition(button) & 4)
        own?.click()
        return Boolean(own)
        """
        self.wait_until(lambda: self.driver.execute_script(script, selector, number), "the button to edit")
        self.wait_until(lambda: self.all(_EDITOR), "the text to edit")
        self.all(_EDITOR)[0].send_keys(Keys.CONTROL, "a")
        self.all(_EDITOR)[0].send_keys(text)
