"""The log: a line for each request and each turn, by which they can be found again, and no line that is forged."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.web.logs import LOGGED_ROOMS, JsonLines, PlainLines
from tests.program.house import rooms
from tests.support.client import BreakableStorage, Client
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, status, tool_call
from tests.support.server import ROOT, Server, wait_until

MODULES = LOGGED_ROOMS
REQUEST = re.compile(
    r"request (?P<id>\S+) (?P<client>\S+) (?P<method>\S+) (?P<path>\S+) (?P<status>\d{3}) (?P<seconds>\d+\.\d{3}) s"
)
TURN = re.compile(
    r"turn session=(?P<session>session-\S+) status=(?P<status>\w+) seconds=(?P<seconds>\d+\.\d{3})"
    r" model_seconds=(?P<model>\d+\.\d{3}) tokens=(?P<tokens>\d+|-)"
)


class Log(logging.Handler):
    """What the program logs while a test runs."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, level: int = logging.INFO) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno >= level]

    def requests(self, level: int = logging.INFO) -> list[re.Match[str]]:
        return [match for line in self.lines(level) if (match := REQUEST.fullmatch(line))]

    def turns(self) -> list[re.Match[str]]:
        return [match for line in self.lines() if (match := TURN.fullmatch(line))]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, MODULES)]
    for logger, _ in loggers:
        logger.addHandler(log)
        logger.setLevel(logging.DEBUG)
    yield log
    for logger, level in loggers:
        logger.removeHandler(log)
        logger.setLevel(level)


# --- one line a request ---


def test_each_request_is_one_line(log: Log) -> None:
    with Client() as client:
        session_id = client.create()
        client.get("/sessions")
        client.get(f"/sessions/{session_id}?limit=5")
        client.get("/nothing")
        client.request("PUT", "/sessions")
        client.get("/sessions", Host="evil.example")
        client.run(session_id)
    found = [(match["method"], match["path"], match["status"]) for match in log.requests()]
    assert found == [
        ("POST", "/sessions", "201"),
        ("GET", "/sessions", "200"),
        ("GET", f"/sessions/{session_id}", "200"),
        ("GET", "/nothing", "404"),
        ("PUT", "/sessions", "405"),
        ("GET", "/sessions", "403"),
        ("POST", f"/sessions/{session_id}/run", "200"),
    ]


def test_a_stream_is_one_line_when_it_is_over(log: Log) -> None:
    with Client() as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_start")
        assert len(log.requests()) == 1
        stream.rest()
        [_, line] = log.requests()
        assert (line["method"], line["path"], line["status"]) == ("POST", f"/sessions/{session_id}/run_stream", "200")


def test_a_stream_that_the_client_leaves_is_one_line_too(log: Log) -> None:
    with Client(answer("Hel", STALL)) as client:
        stream = client.stream(client.create())
        stream.next("stream_chunk")
        stream.close()
        assert len(log.requests()) == 2


def test_asking_for_health_is_logged_at_debug_only(log: Log) -> None:
    with Client() as client:
        client.get("/health")
        client.get("/ready")
    assert log.requests() == []
    assert [match["path"] for match in log.requests(logging.DEBUG)] == ["/health", "/ready"]


def test_the_clients_address_is_in_the_line(log: Log) -> None:
    with Client() as client:
        client.get("/sessions", X_Forwarded_For="9.9.9.9")
        client.request("GET", "/sessions", environ_overrides={"REMOTE_ADDR": "::1 INFO forged"})
    assert [match["client"] for match in log.requests()] == ["127.0.0.1", "::1%20INFO%20forged"]


@pytest.mark.parametrize("believed, client", [("0", "127.0.0.1"), ("1", "9.9.9.2"), ("2", "9.9.9.1")])
def test_the_address_is_the_one_that_the_last_trusted_proxy_tells(log: Log, believed: str, client: str) -> None:
    with Client(trusted_proxies=int(believed)) as app:
        app.get("/sessions", X_Forwarded_For="6.6.6.6, 9.9.9.1, 9.9.9.2")
    assert [match["client"] for match in log.requests()] == [client]


def test_json_lines(serve: Callable[..., Server]) -> None:
    server = serve("-demo", "-log_format=json")
    server.request("GET", "/nothing")
    wait_until(lambda: "request" in server.log.read_text())
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    [line] = [line for line in lines if REQUEST.fullmatch(line["message"])]
    assert (line["level"], line["logger"]) == ("info", "session_core.web.access")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_a_traceback_is_in_its_json_line() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        record = logging.LogRecord(
            "session_core.web.errors", logging.ERROR, "", 0, "request %s failed", ("x",), sys.exc_info()
        )
    line = json.loads(JsonLines().format(record))
    assert line["message"] == "request x failed"
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("ValueError: no\nway")


# --- one line a turn ---


def test_each_turn_is_one_line(log: Log) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    replies = tool_call("calculator", {"expression": "1+1"}, usage=usage), answer("2", usage=usage)
    with Client(*replies) as client:
        session_id = client.create()
        client.run(session_id)
    [turn] = log.turns()
    assert (turn["session"], turn["status"], turn["tokens"]) == (session_id, "completed", "30")
    assert 0 <= float(turn["model"]) <= float(turn["seconds"])


def test_a_turn_without_usage_has_a_line_all_the_same(log: Log) -> None:
    with Client() as client:
        client.stream(client.create()).rest()
    [turn] = log.turns()
    assert turn["tokens"] == "-"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answer("Hello"), "completed"),
        (answer("Hel", finish_reason="length"), "incomplete"),
        (answer("Hel", BREAK), "model_error"),
        (status(401, {"error": "no"}), "model_unauthorized"),
    ],
)
def test_the_line_of_a_turn_says_how_it_ended(log: Log, reply: ReplyTo, expected: str) -> None:
    with Client(reply) as client:
        client.run(client.create())
    assert [turn["status"] for turn in log.turns()] == [expected]


def test_the_line_of_a_cancelled_turn_says_so(log: Log) -> None:
    with Client(answer("Hel", STALL)) as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.next("stream_chunk")
        client.cancel(session_id)
        stream.close()
    assert [turn["status"] for turn in log.turns()] == ["cancelled"]


def test_the_time_of_tools_is_not_counted_as_the_models(log: Log) -> None:
    def slow() -> str:
        """Takes a while."""
        threading.Event().wait(0.4)
        return "done"

    with Client(tool_call("slow", {}), tools=[slow]) as client:
        client.run(client.create())
    [turn] = log.turns()
    assert float(turn["seconds"]) - float(turn["model"]) >= 0.35


def test_a_refused_turn_has_no_line_of_its_own(log: Log) -> None:
    with Client() as client:
        client.run("session-unknown")
        client.request("POST", f"/sessions/{client.create()}/run", {})
    assert log.turns() == []


# --- request ids ---


@pytest.mark.parametrize("given", ["abc", "a" * 128, "req_1-2.3:4/5", '!"#$%&()~'])
def test_a_request_id_is_taken_over(log: Log, given: str) -> None:
    with Client() as client:
        response = client.get("/sessions", X_Request_Id=given)
    assert response.headers["X-Request-Id"] == given
    assert [line["id"] for line in log.requests()] == [given]


@pytest.mark.parametrize("given", ["", " ", "two words", "a" * 129, "é", "a\tb", "x\x1b[31m", "\x7f"])
def test_a_request_id_that_could_not_be_logged_is_replaced(log: Log, given: str) -> None:
    with Client() as client:
        response = client.request("GET", "/sessions", environ_overrides={"HTTP_X_REQUEST_ID": given})
    made = response.headers["X-Request-Id"]
    assert re.fullmatch(r"req-[0-9a-z]+", made)
    assert [line["id"] for line in log.requests()] == [made]


def test_every_answer_has_a_request_id_of_its_own(log: Log) -> None:
    with Client() as client:
        session_id = client.create()
        stream = client.stream(session_id)
        stream.rest()
        answers = [client.get(path) for path in ("/sessions", "/nothing", "/health", "/", "/sessions/session-x")]
        answers += [
            client.request("PUT", "/sessions"),
            client.get("/sessions", Host="x.example"),
            client.run(session_id),
        ]
        ids = [one.headers["X-Request-Id"] for one in answers] + [stream.headers["X-Request-Id"]]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= {line["id"] for line in log.requests(logging.DEBUG)}


class FaultyStorage(BreakableStorage):
    """A store with a bug."""

    def _ids(self) -> list[str]:
        raise RuntimeError("a bug")


def test_an_internal_error_is_logged_with_its_traceback_and_its_request(log: Log) -> None:
    with Client(storage=FaultyStorage()) as client:
        client.get("/sessions", X_Request_Id="find-me")
    [record] = [record for record in log.records if record.levelno == logging.ERROR]
    assert "find-me" in record.getMessage()
    assert record.exc_info and isinstance(record.exc_info[1], RuntimeError)


# --- lines that are forged ---

FORGED = "x\n2026-01-31 00:00:00,000 INFO request forged GET /forged 200 0.001 s"


def assert_clean(log: Log) -> None:
    for record in log.records:
        assert record.getMessage().isprintable(), record.getMessage()


@pytest.mark.parametrize(
    "path",
    [f"/{FORGED}", f"/sessions/{FORGED}", f"/sessions/{FORGED}/run", "/\r", "/\x1b[2J", "/\x00", "/\x7f\x9b",
     "/\u2028", "/a b", "/%0a", "/é\ufffd", "/\ud7ff\ue000"],
)  # fmt: skip
def test_a_path_forges_no_line(log: Log, path: str) -> None:
    with Client() as client:
        for method in ("GET", "POST", "DELETE"):
            environ = {"PATH_INFO": path.encode().decode("latin-1")}
            client.request(method, "/", environ_overrides=environ)
    assert len(log.requests()) == 3
    assert_clean(log)
    assert not any(" /forged" in line for line in log.lines())


@pytest.mark.parametrize("method", ["GET\n", "\x1b[2J", "G ET", "G\x00", "é", "X" * 10_000])
def test_a_method_forges_no_line(log: Log, method: str) -> None:
    with Client() as client:
        client.request("GET", "/sessions", environ_overrides={"REQUEST_METHOD": method})
    assert len(log.requests()) == 1
    assert_clean(log)
    assert len(log.lines()[0]) < 5000


@pytest.mark.parametrize("header", ["HOST", "ORIGIN", "AUTHORIZATION", "IDEMPOTENCY_KEY", "LAST_EVENT_ID"])
def test_a_header_forges_no_line(log: Log, header: str) -> None:
    with Client() as client:
        session_id = client.create()
        for method, path in (("GET", f"/sessions/{session_id}/run_stream"), ("POST", f"/sessions/{session_id}/run")):
            client.request(method, path, {"message": "Hi"}, environ_overrides={f"HTTP_{header}": f"{FORGED}\x1b"})
    assert_clean(log)
    assert not any("forged" in line for line in log.lines(logging.DEBUG))


def test_the_model_server_forges_no_line(log: Log) -> None:
    words: dict[str, Any] = {"error": {"message": f"{FORGED}\x1b[31m\r\x00\u2028", "code": FORGED, "type": FORGED}}
    refused = status(500, words, {"Retry-After": "0", "Content-Type": "application/json"})
    with Client(refused, refused, refused, answer("Hel", words), answer("Hello", finish_reason=FORGED)) as client:
        session_id = client.create()
        for _ in range(3):
            client.run(session_id)
    assert len(log.turns()) == 3
    assert_clean(log)


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"])
def test_no_text_in_a_message_begins_a_line(end: str) -> None:
    name = f"gpt{end}2026-01-31 00:00:00,000 ERROR forged"
    record = logging.LogRecord("agent", logging.WARNING, "", 0, "%s refuses tools", (name,), None)
    [line] = PlainLines().format(record).splitlines()
    assert line.endswith("ERROR forged refuses tools")


def test_the_lines_of_a_traceback_cannot_be_taken_for_lines_of_the_log() -> None:
    try:
        raise ValueError(f"no\n{FORGED}")
    except ValueError:
        record = logging.LogRecord("agent", logging.ERROR, "", 0, "it failed", (), sys.exc_info())
    first, *others = PlainLines().format(record).splitlines()
    assert first.endswith("ERROR it failed")
    assert all(line.startswith("  ") for line in others)


def test_the_log_says_where_a_tool_has_failed(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text('def fail() -> str:\n    """Fails."""\n    raise KeyError("a " + "secret")\n')
    with ModelServer(tool_call("fail", {}), answer("OK")) as model:
        server = serve(f"-base_url={model.base_url}", f"-tools={tmp_path / 'tools.py'}")
        server.request("POST", f"/sessions/{server.create()}/run", {"message": "Hi"})
        lines = server.log.read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.endswith("Tool fail failed with KeyError"))
    assert any(line.startswith("  ") and "tools.py" in line for line in lines[at + 1 :])
    assert "a secret" not in "".join(lines)


def test_the_log_of_the_server_is_whole_lines(serve: Callable[..., Server]) -> None:
    form = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR) .+")
    with ModelServer() as model:
        server = serve(f"-base_url={model.base_url}", "-log_level=debug")
        for request in (
            b"GET /%0a%1b%5b31mforged HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"\x1b[2JGET /sessions HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"GET /sessions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\x1b[31m\r\n\r\n",
            b"GET /sessions HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", server.port), 30) as client:
                client.sendall(request)
                client.recv(1 << 16)
        session_id = server.create()
        server.request("POST", f"/sessions/{session_id}/run", {"message": "Hi"}).close()
        wait_until(lambda: "turn session=" in server.log.read_text())
        server.send_signal(15)
        server.wait()
    lines = server.log.read_bytes().decode().split("\n")
    assert lines.pop() == ""
    for line in lines:
        assert form.fullmatch(line), "\n".join(lines)
        assert line.isprintable(), line
    assert sum("GET /sessions 200" in line for line in lines) >= 1


def test_the_level_is_set_for_the_log_of_every_room() -> None:
    places = {room.partition(".")[0] for room in rooms(ROOT)}
    assert places - set(LOGGED_ROOMS) == {"calculator"}  # which logs nothing
