"""`docs/two_servers.py`: two servers on one Redis behind nginx, one of which dies while curl reads from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.program.test_nginx import NGINX
from tests.support.model_server import ModelServer, answer, wait
from tests.support.redis_server import NEEDED
from tests.support.server import ROOT, TIMEOUT, environment

pytestmark = [
    NEEDED,
    pytest.mark.skipif(NGINX is None, reason="needs the Debian package nginx"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs the Debian package curl"),
]


@dataclass
class Two:
    """The script as it runs: its output, where the balancer is, and the servers behind it by their address."""

    said: str
    process: subprocess.Popen[str]
    url: str
    servers: dict[str, int]  # their process ids
    go: threading.Event = field(default_factory=threading.Event)

    def curl(self, *arguments: str) -> Curl:
        return Curl(*arguments)


class Curl:
    """A curl that shows a stream as it comes, and with `-i` in front of it the headers."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(["curl", "-sN", *arguments], stdout=subprocess.PIPE, text=True)

    def header(self, name: str) -> str:
        assert self._process.stdout is not None
        found = (line.partition(": ") for line in self._process.stdout)
        return next(value.strip() for header, _, value in found if header == name)

    def events(self) -> Iterator[dict[str, Any]]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("data: "):
                yield json.loads(line[6:])

    def text(self) -> str:
        return self._process.communicate(timeout=TIMEOUT)[0]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    go = threading.Event()

    def reply(request: dict[str, Any]) -> Any:
        text = request["messages"][-1]["content"]
        return answer("one ", "two ", wait(go), "three")(request) if text == "wait" else answer("OK")(request)

    with ModelServer(default=reply) as model:
        command = [sys.executable, str(ROOT / "docs" / "two_servers.py"), f"-base_url={model.base_url}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True) as process:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if line.startswith("try:"):
                    break
            try:
                url = re.findall(r"balancer: (\S+)", said)[0]
                servers = {url: int(pid) for url, pid in re.findall(r"server: +(\S+), process (\d+)", said)}
                yield Two(said, process, url, servers, go)
            finally:
                go.set()
                process.send_signal(signal.SIGINT)
                assert process.wait(TIMEOUT) == 0
        for pid in servers.values():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


@dataclass
class Begun:
    """A turn that goes on when it is told to: the path of its session, the server that runs it, its stream, and the
    first events."""

    path: str
    server: str
    stream: Curl
    rest: Iterator[dict[str, Any]]
    seen: list[dict[str, Any]]


def begin(two: Two) -> Begun:
    two.go.clear()
    path = f"/sessions/{json.loads(two.curl('-X', 'POST', f'{two.url}/sessions').text())['id']}"
    sent = ["-H", "Content-Type: application/json", "-d", '{"message": "wait"}']
    stream = two.curl("-i", f"{two.url}{path}/run_stream", *sent)
    server = f"http://{stream.header('X-Served-By')}"
    events = stream.events()
    return Begun(path, server, stream, events, [next(events) for _ in range(3)])


def resume(two: Two, turn: Begun, server: str) -> Curl:
    return two.curl(f"{server}{turn.path}/run_stream", "-H", f"Last-Event-ID: {turn.seen[-1]['id']}")


def test_the_line_that_it_prints_works(two: Two) -> None:
    command = re.findall(r"try: +(curl .*)", two.said)[0]
    assert json.loads(subprocess.run(command.split(), capture_output=True, check=True).stdout)["id"]


def test_a_stream_that_broke_off_goes_on_through_any_server_behind_the_last_event(two: Two) -> None:
    turn = begin(two)
    turn.stream.close()
    resumed = [resume(two, turn, url) for url in (two.url, *two.servers)]
    two.go.set()
    rests = [list(curl.events()) for curl in resumed]
    assert [event["type"] for event in rests[0]] == ["stream_chunk", "stream_end"]
    assert rests == rests[:1] * 3
    assert rests[0][-1]["data"]["complete_text"] == "one two three"
    for curl in resumed:
        curl.close()


def test_when_a_server_dies_its_streams_have_a_clear_end_and_its_sessions_go_on(two: Two) -> None:
    turn = begin(two)
    os.kill(two.servers[turn.server], signal.SIGKILL)
    assert list(turn.rest) == []
    turn.stream.close()
    resumed = resume(two, turn, two.url)
    [end] = resumed.events()
    assert (end["type"], end["data"]["error"]) == ("error", "The turn was interrupted.")
    resumed.close()
    sent = ["-H", "Content-Type: application/json", "-d", '{"message": "And now?"}']
    for _ in range(2):
        assert json.loads(two.curl(f"{two.url}{turn.path}/run", *sent).text())["message"]["content"] == "OK"
    messages = json.loads(two.curl(f"{two.url}{turn.path}").text())["messages"]
    assert [message["content"] for message in messages] == ["wait", *["And now?", "OK"] * 2]
