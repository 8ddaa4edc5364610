"""The AI SDK's own client under Node, driven line by line (see `tests/npm/client.mjs`)."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import Any, Self

from tests.support.server import ROOT, TIMEOUT

NPM = ROOT / "tests" / "npm"
NODE = NPM / "node_modules" / "node" / "bin" / "node"
MISSING = not NODE.exists()
NEEDS = "needs the packages of tests/npm: npm install --prefix tests/npm"


class FrontEnd:
    """One chat after the other, of the package `ai`, `ai6` or `ai5`, each with a session that `open` names.

    Each command gives what the chat holds afterwards: `messages`, `status`, `error`, `frames` (of the last response)
    and `finish` (what onFinish was told).
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.session_id = ""
        self._process = subprocess.Popen(
            [str(NODE), "client.mjs", package],
            cwd=NPM,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, command: str, argument: Any = None) -> dict[str, Any]:
        """One command, and its outcome."""
        assert self._process.stdin and self._process.stdout
        watchdog = threading.Timer(TIMEOUT, self._process.kill)
        watchdog.start()
        print(json.dumps({"command": command, "argument": argument}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        watchdog.cancel()
        watchdog.join()
        assert line, f"{command} has no outcome"
        found: dict[str, Any] = json.loads(line)
        assert "failed" not in found, found["failed"]
        return found

    def open(
        self,
        url: str,
        session_id: str,
        *,
        headers: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
        only_last: bool = False,
    ) -> Self:
        """A chat without messages. With `only_last` it sends the last message alone."""
        self.session_id = session_id
        transport = {"api": f"{url}/ui/chat", "headers": headers or {}, "body": body or {}}
        self.do("open", {"id": session_id, "transport": transport, "only_last": only_last})
        return self

    def send(self, text: str, **more: Any) -> dict[str, Any]:
        """A question and its whole answer."""
        self.do("send", {"text": text, **more})
        return self.do("settle")

    def again(self, **argument: Any) -> dict[str, Any]:
        """Tries an answer again, to its end."""
        self.do("again", argument)
        return self.do("settle")

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait(TIMEOUT)
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shapes(messages: list[dict[str, Any]]) -> list[Any]:
    """What must be the same in the client and in the history: all but the ids of questions, which the client makes,
    and the ids that version 7 notes on pieces of reasoning."""
    return [
        [
            message["role"],
            message["id"] if message["role"] == "assistant" else None,
            message.get("metadata"),
            [_shape(part) for part in message["parts"]],
        ]
        for message in messages
    ]


def _shape(part: dict[str, Any]) -> dict[str, Any]:
    noted = {"id"} if part["type"] == "reasoning" else set()
    return {name: value for name, value in part.items() if name not in noted}
