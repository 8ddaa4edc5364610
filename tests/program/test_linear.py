"""What a request costs grows with its size and no faster, and none keeps the interpreter from all others.

Each entry takes hostile texts and conversations of growing size: repeats of whatever some pattern could begin with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from calculator import calculator
from session_core.stores.file_layout import parse
from session_core.turns.journal import partial_answer
from session_core.web.flag_values import duration, model_options, origins, redis_url, seconds, token, url
from session_core.web.users import Users
from storage import MemoryStorage, Session
from tests.support import browser
from tests.support.browser import Page
from tests.support.client import Client
from tests.support.cost import cost, fastest_growth, longest_hold
from tests.support.model_server import answer, status, tool_call
from tests.support.responses import checked
from tests.support.server import Server

LARGE = 125_000  # bytes, an eighth of the largest body
HEADER = 60_000  # the largest header that the server takes
GROWTH = 36.0  # of eight times the size, on a busy machine; what is quadratic grows by 64
HOLD = 0.1  # seconds, which a megabyte may take
HEADER_COST = 0.5  # seconds; what is quadratic takes ten and more


def _repeat(piece: str, end: str = "") -> Callable[[int], str]:
    return lambda size: piece * (size // len(piece.encode())) + end


TEXTS = {
    "letters": _repeat("a"),
    "spaces": _repeat(" ", "x"),
    "lines": _repeat("\n", "x"),
    "backticks": _repeat("`"),
    "single backticks": _repeat("` "),
    "fences": _repeat("```\n"),
    "fences of JSON": _repeat("```json\n{"),
    "a fence and spaces": lambda size: "```json\n" + " \n" * (size // 2) + "x",
    "tasks": _repeat("### Task:\n"),
    "histories": _repeat("<chat_history>"),
    "tags": _repeat("<think>"),
    "closed tags": _repeat("<think></think>"),
    "details": _repeat("<details>"),
    "brackets": _repeat("[["),
    "braces": _repeat("{"),
    "links": _repeat("[](("),
    "stars": _repeat("*_"),
    "quotes": _repeat('\\"'),
    "digits": _repeat("1,"),
    "sums": _repeat("(-"),
    "keys": _repeat("sk-"),
    "bearers": _repeat("Bearer a "),
    "contexts": _repeat("context length maximum tokens "),
    "words": _repeat("api key incorrect invalid "),
}

ONE = {"role": "user", "content": "x"}
TWO = {"role": "assistant", "content": "y"}


def _call(id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


CONVERSATIONS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "questions": lambda size: [ONE] * (size // 40),
    "answers": lambda size: [ONE, *[TWO] * (size // 45)],
    "turns": lambda size: [ONE, TWO] * (size // 90),
    "empty answers": lambda size: [ONE, *[{"role": "assistant", "content": ""}] * (size // 45)],
    "one call again and again": lambda size: [
        ONE,
        {"role": "assistant", "content": "", "tool_calls": [_call("c")] * (size // 200)},
        *[{"role": "tool", "content": "r", "tool_call_id": "c"}] * (size // 200),
    ],
    "calls without results": lambda size: [
        ONE,
        {"role": "assistant", "content": "", "tool_calls": [_call(str(number)) for number in range(size // 110)]},
    ],
    "rounds of calls": lambda size: [
        ONE,
        *[
            message
            for number in range(size // 220)
            for message in (
                {"role": "assistant", "content": "", "tool_calls": [_call(str(number))]},
                {"role": "tool", "content": "r", "tool_call_id": str(number)},
            )
        ],
    ],
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Client(default=answer("OK"), storage=MemoryStorage(), timeout=60.0) as client:
        yield client


def holds(make: Callable[[int], Any], use: Callable[[Any], object], size: int = LARGE) -> None:
    """The cost is linear, and nothing holds the interpreter."""
    grown = fastest_growth(make, use, size, GROWTH)
    assert grown < GROWTH, f"eight times the size costs {grown:.0f} times as much"
    made = make(size)
    held = longest_hold(lambda: use(made))
    if held >= HOLD:
        held = min(held, longest_hold(lambda: use(made)))
    assert held < HOLD, f"{held:.3f} s without the interpreter for others"


def _post(client: Client, path: str, body: object, **headers: str) -> int:
    return client.request("POST", path, body, headers).status_code


# --- texts of callers ---


def _run(client: Client, text: str) -> object:
    return client.run(client.create(), text)


def _one_shot(client: Client, text: str) -> object:
    return _post(client, "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]})


def _chat(client: Client, text: str) -> object:
    messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": text}, ONE]
    body = {"messages": messages}
    _post(client, "/v1/chat/completions", body, **{"X-Session-Id": f"chat-{len(text)}"})
    return _post(client, "/v1/chat/completions", body, **{"X-Session-Id": f"chat-{len(text)}"})


def _ui_chat(client: Client, text: str) -> object:
    message = {"id": "m", "role": "user", "parts": [{"type": "text", "text": text}]}
    return _post(client, "/ui/chat", {"id": client.create(), "messages": [message], "trigger": "submit-message"})


def _import(client: Client, messages: list[dict[str, Any]]) -> str:
    made = client.request("POST", "/sessions", {"messages": messages})
    assert made.status_code == 201, made.text[:200]
    session: str = made.get_json()["id"]
    return session


def _show(client: Client, messages: list[dict[str, Any]]) -> object:
    session = _import(client, messages)
    kinds = ("application/json", "text/markdown", "application/vnd.ai-sdk.ui-messages+json")
    return [client.get(f"/sessions/{session}", Accept=kind).get_data() for kind in kinds]


def _continue(client: Client, messages: list[dict[str, Any]]) -> object:
    return client.run(_import(client, messages), "go on")


def _shown_text(client: Client, text: str) -> object:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": text}}
    thought = {"role": "assistant", "content": text, "reasoning": "r", "tool_calls": [call]}
    return _show(client, [ONE, {**thought, "content": ""}, {"role": "tool", "content": "r", "tool_call_id": "c"}])


def _history_text(client: Client, text: str) -> object:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": text}}
    return _continue(client, [ONE, {"role": "assistant", "content": "", "tool_calls": [call]}])


WAYS = (_run, _one_shot, _chat, _ui_chat, _shown_text, _history_text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", WAYS, ids=[way.__name__.strip("_") for way in WAYS])
def test_a_text_of_a_caller(client: Client, way: Callable[[Client, str], object], text: str) -> None:
    holds(lambda size: TEXTS[text](size // 2), lambda made: way(client, made))  # quotes are longer in JSON


@pytest.mark.parametrize("shape", CONVERSATIONS)
@pytest.mark.parametrize("way", [_show, _continue], ids=["show", "continue"])
def test_a_conversation_that_comes_in(client: Client, way: Callable[..., object], shape: str) -> None:
    holds(CONVERSATIONS[shape], lambda made: way(client, made))


@pytest.mark.parametrize("shape", ["questions", "turns", "rounds of calls"])
def test_the_input_of_a_response(client: Client, shape: str) -> None:
    def items(message: dict[str, Any]) -> list[dict[str, Any]]:
        if message["role"] == "tool":
            return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": "r"}]
        calls = [
            {"type": "function_call", "call_id": one["id"], **one["function"]}
            for one in message.get("tool_calls", ())
        ]
        return calls or [message]

    def make(size: int) -> list[dict[str, Any]]:
        messages = [*CONVERSATIONS[shape](size), *CONVERSATIONS["rounds of calls"](220)]
        return [item for message in messages for item in items(message)]

    holds(make, lambda made: checked(client.request("POST", "/v1/responses", {"input": made})), size=4 * LARGE)


@pytest.mark.parametrize("shape", [*CONVERSATIONS, "numbers"])
@pytest.mark.parametrize("way", ["one-shot", "session", "again", "ui"])
def test_the_transcript_of_a_client(client: Client, way: str, shape: str) -> None:
    def make(size: int) -> list[Any]:
        return [1] * (size // 2) if shape == "numbers" else [*CONVERSATIONS[shape](size), {**ONE, "content": "last"}]

    def use(messages: list[Any]) -> object:
        body: dict[str, Any] = {"messages": messages}
        if way == "ui":
            return _post(client, "/ui/chat", {**body, "id": client.create()})
        headers = {} if way == "one-shot" else {"X-Session-Id": f"chat-{shape.replace(' ', '-')}-{len(messages)}"}
        _post(client, "/v1/chat/completions", body, **headers)
        return way == "again" and _post(client, "/v1/chat/completions", {"messages": messages[1:]}, **headers)

    holds(make, use)


BODIES: dict[str, Callable[[int], bytes]] = {
    "open brackets": lambda size: b"[" * size,
    "nested lists": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "open braces": lambda size: b'{"a":' * (size // 5),
    "an open string": lambda size: b'{"message":"' + b"\\" * size,
    "surrogates": lambda size: b'{"message":"' + b"\\ud800" * (size // 6) + b'"}',
    "lines": lambda size: b"\n" * size + b"x",
    "numbers": lambda size: b'{"message":[' + b"1," * (size // 2) + b"1]}",
    "a number": lambda size: b'{"message":' + b"1" * size + b"}",
    "an exponent": lambda size: b'{"message":1e' + b"9" * size + b"}",
    "fields": lambda size: b"{" + b",".join(b'"%d":1' % number for number in range(size // 10)) + b"}",
    "one field": lambda size: b"{" + b",".join([b'"a":1'] * (size // 6)) + b"}",
    "no UTF-8": lambda size: b'{"message":"' + b"\xff" * size + b'"}',
}


@pytest.mark.parametrize("path", ["/sessions", "run", "/v1/chat/completions", "/ui/chat"])
@pytest.mark.parametrize("shape", BODIES)
def test_a_body(client: Client, shape: str, path: str) -> None:
    path = f"/sessions/{client.create()}/run" if path == "run" else path
    holds(BODIES[shape], lambda made: _post(client, path, made))


# --- what is searched, and what for ---

SEARCHED = {
    **TEXTS,
    "marks in the wrong order": _repeat("\u0300\u0316", "x"),
    "a letter and its marks": _repeat("e\u0301"),
    "marks that become letters": _repeat("\u0345\u0301"),
    "letters that become longer": _repeat("ß"),
    "dotted letters": _repeat("İ "),
    "syllables in parts": _repeat("\u1112\u1161\u11ab"),
    "escapes": _repeat("\\u0065"),
    "controls": _repeat("\0"),
}


@pytest.mark.parametrize("text", SEARCHED)
def test_a_text_that_is_searched(text: str) -> None:
    storage = MemoryStorage()
    with Client(storage=storage) as client:

        def use(made: str) -> None:
            message = {"id": "msg-1", "role": "user", "content": made, "created_at": "t"}
            session = storage.create([message], title="x")  # type: ignore[list-item]
            for query in ("no such word", "x", made[:450], f"{made[:450]}\n{made[-450:]}z", '"a" ' * 200):
                client.get("/sessions?" + urlencode({"q": query}))
            client.request("DELETE", f"/sessions/{session}")

        holds(SEARCHED[text], use)


# --- headers and addresses ---

HEADERS = {
    "colons": "[" + ":" * HEADER,
    "an address": "[" + ":1" * (HEADER // 2),
    "dots": "." * HEADER,
    "commas": "," * HEADER,
    "quotes": '"' + '\\"' * (HEADER // 2),
    "items": "a/b;q=0.1," * (HEADER // 10),
    "parameters": "a/b" + ";x=y" * (HEADER // 4),
    "open parameters": 'a/b;x="' + "\\;" * (HEADER // 2),
    "spaces": " " * HEADER + "x",
    "semicolons and spaces": "a/b;" + " ;" * (HEADER // 2),
    "origins": "http://" * (HEADER // 7),
    "digits": "1" * HEADER,
}
NAMES = ("Host", "Origin", "Accept", "Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Cookie")
NAMES += (
    "X-Request-Id",
    "X-Session-Id",
    "X-Forwarded-For",
    "If-None-Match",
    "Range",
    "traceparent",
    "X-Forwarded-Host",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_header(name: str) -> None:
    with Client(default=answer("OK"), trusted_proxies=1, cors_origin=("https://a.example",)) as client:
        session = client.create()
        asked = (("GET", f"/sessions/{session}"), ("POST", "/v1/chat/completions"), ("GET", "/page.js"))
        for shape, value in HEADERS.items():
            for method, path in asked:
                body = {"messages": [ONE]} if method == "POST" else None
                call = functools.partial(client.request, method, path, body, {name: value})
                assert cost(call) < HEADER_COST, (shape, method, path)


@pytest.mark.parametrize("piece", ["/", "a/", "%2f", "../", "?a=b&", "?a&", "?limit=", "?=", ";", "<>"])
@pytest.mark.parametrize("start", ["/", "/sessions/", "/v1/models/", "/sessions?", "/v1/models/a"])
def test_an_address(client: Client, start: str, piece: str) -> None:
    path = start + piece * (HEADER // len(piece))
    assert cost(lambda: client.get(path)) < HEADER_COST


# --- what model servers send ---


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_a_model(text: str) -> None:
    with Client(timeout=60.0) as client:
        client.model.default = lambda request: answer(client.said)(request)  # type: ignore[attr-defined]

        def use(made: str) -> None:
            client.said = made  # type: ignore[attr-defined]
            client.run(client.create())

        holds(TEXTS[text], use)


@pytest.mark.parametrize("text", TEXTS)
def test_the_arguments_of_a_call(text: str) -> None:
    with Client(timeout=60.0) as client:
        replies: list[Any] = []
        client.model.default = lambda request: (
            answer("OK") if request["messages"][-1]["role"] == "tool" else replies[-1]
        )(request)

        def use(made: str) -> None:
            replies.append(tool_call("calculator", made))
            client.run(client.create())

        holds(TEXTS[text], use)


@pytest.mark.parametrize("code", [400, 401, 500])
@pytest.mark.parametrize("text", TEXTS)
def test_the_error_of_a_model_server(text: str, code: int) -> None:
    with Client(timeout=60.0) as client:
        replies: list[Any] = []
        client.model.default = lambda request: replies[-1](request)

        def use(made: str) -> None:
            replies.append(status(code, {"error": {"message": made}}, {"Retry-After": "0"}))
            client.run(client.create(), made[: 1 << 18])

        holds(lambda size: TEXTS[text](size // 2), use)


# --- files ---

HEAD = '{"id":"session-1","created_at":"2026-01-01T00:00:00Z","messages":['
LINE = '\n{"id":"msg-%d","role":"user","content":"x","created_at":"2026-01-01T00:00:00Z"%s},'
TAIL = '\n],"updated_at":"2026-01-01T00:00:00Z"}\n'


def _lines(size: int, field: Callable[[int], str] = lambda number: "") -> str:
    return HEAD + "".join(LINE % (number, field(number)) for number in range(size // 100))


FILES: dict[str, Callable[[int], bytes]] = {
    "whole": lambda size: (_lines(size).removesuffix(",") + TAIL).encode(),
    "torn": lambda size: _lines(size)[:-20].encode(),
    "zeros at the end": lambda size: (_lines(size // 2) + "\0" * (size // 2)).encode(),
    "lines of zeros": lambda size: (HEAD + "\n\0" * (size // 2)).encode(),
    "broken lines": lambda size: (HEAD + "\n{" * (size // 2)).encode(),
    "carriage returns": lambda size: (HEAD + "\r\n" * (size // 2)).encode(),
    "brackets": lambda size: (HEAD + "\n" + "[" * size).encode(),
    "each replaces the one before": lambda size: (
        _lines(size, lambda number: f',"replaces":"msg-{number - 1}"').removesuffix(",") + TAIL
    ).encode(),
    "each replaces the last of all": lambda size: (
        _lines(size, lambda number: ',"replaces":"msg-none"').removesuffix(",") + TAIL
    ).encode(),
    "each names one in the middle": lambda size: (
        _lines(size, lambda number: f',"replaces":"msg-{number // 2}"').removesuffix(",") + TAIL
    ).encode(),
    "two ways in turn": lambda size: (
        _lines(size, lambda number: f',"after":"msg-{number - 2}"').removesuffix(",") + TAIL
    ).encode(),
    "one key": lambda size: (_lines(size, lambda number: ',"idempotency_key":"k"').removesuffix(",") + TAIL).encode(),
    "histories": lambda size: (_lines(size, lambda number: f',"history":[{"{}"}]').removesuffix(",") + TAIL).encode(),
}


def _parse(data: bytes) -> Session | None:
    try:
        return parse("session-1", data)[0]
    except (ValueError, RecursionError):
        return None


@pytest.mark.parametrize("shape", FILES)
def test_the_file_of_a_session(shape: str) -> None:
    def use(data: bytes) -> None:
        if session := _parse(data):
            assert session.conversation is not None

    holds(FILES[shape], use)


@pytest.mark.parametrize("shape", [shape for shape in FILES if shape not in ("brackets", "broken lines")])
def test_a_turn_in_a_session_of_a_file(tmp_path: Path, shape: str) -> None:
    from session_core.stores.files import FileStorage

    storage = FileStorage.open(str(tmp_path))
    with Client(default=answer("OK"), storage=storage, timeout=60.0) as client:

        def use(data: bytes) -> None:
            (tmp_path / "session-1.json").write_bytes(data)
            client.get("/sessions/session-1", Accept="application/vnd.ai-sdk.ui-messages+json")
            client.run("session-1", Idempotency_Key="another")

        holds(FILES[shape], use)


JOURNALS: dict[str, Callable[[int], list[bytes]]] = {
    "nothing": lambda size: [b""] * size,
    "braces": lambda size: [b"{" * size],
    "lines": lambda size: [b"[]"] * (size // 3),
    "chunks": lambda size: [b'[1,"2026-01-01T00:00:00Z",1,"chunk",{"content":"x"}]'] * (size // 52),
}


@pytest.mark.parametrize("shape", JOURNALS)
def test_a_journal(shape: str) -> None:
    session = Session("session-1", "t", "t", messages=[{"id": "msg-1", **ONE, "created_at": "t"}])
    first = b'["turn","msg-1",1,{}]'
    holds(JOURNALS[shape], lambda lines: partial_answer(session, [first, *lines]))


@pytest.mark.parametrize("read", [duration, model_options, origins, redis_url, seconds, token, url])
@pytest.mark.parametrize("text", TEXTS)
def test_the_value_of_a_flag(read: Callable[[str], object], text: str) -> None:
    def use(made: str) -> None:
        for value in (made, f"http://{made}", f"http://[{made}", "1" * len(made) + "x"):
            try:
                read(value)
            except ValueError:
                continue

    holds(lambda size: TEXTS[text](size // 10), use)


@pytest.mark.parametrize("line", ["ann %d", "ann sha256:", "#", " ", "ann token%d # x"])
def test_the_file_of_users(tmp_path: Path, line: str) -> None:
    def use(count: int) -> None:
        (tmp_path / "users").write_text("\n".join(line.replace("%d", str(number)) for number in range(count)))
        try:
            Users(str(tmp_path / "users"))
        except ValueError:
            return

    holds(lambda size: size // 10, use)


@pytest.mark.parametrize("text", TEXTS)
def test_an_expression(text: str) -> None:
    holds(TEXTS[text], lambda made: _calculate(made))


def _calculate(text: str) -> str:
    try:
        return calculator(text)
    except ValueError as error:
        return str(error)


# --- what the page draws ---

PAGE_TEXTS = {
    **TEXTS,
    "single stars": _repeat("*a "),
    "strong and underscores": _repeat("**a __b "),
    "stars of all kinds": _repeat("*[_`~~**"),
    "open links": _repeat("[a]("),
    "references": _repeat("[a][", "\n[a]: b"),
    "definitions": _repeat("[a]: b\n"),
    "open definitions": _repeat("[a]:\n"),
    "footnotes": _repeat("[^a]: b\n"),
    "addresses": _repeat("http://a.b/(("),
    "angles": _repeat("<http:"),
    "formulas": _repeat("\\[a\n"),
    "dollars": _repeat("$$a "),
    "entities": _repeat("&#x41;"),
    "open quotes": _repeat("> > "),
    "quotes with code": _repeat("> ```\n"),
    "items": _repeat("- "),
    "items with code": _repeat("- ```\n"),
    "items and blank lines": _repeat("   - a\n\n"),
    "items in quotes": _repeat("- > "),
    "headings": _repeat("#\n"),
    "underlines": _repeat("a\n="),
    "cells": _repeat("|"),
    "tables": _repeat("a|b\n-|-\n"),
    "rows": lambda size: "a|b\n-|-\n" + "c|d\n" * (size // 4),
    "tabs": _repeat("\ta\n"),
    "carriage returns": _repeat("\r"),
    "backslashes": _repeat("\\"),
}
DRAW = """
const { Answer } = await import("/answer.js");
const answer = new Answer(document.createElement("div"));
answer.write(given[0]);
answer.finish();
"""


def _cost_on_page(page: Page, text: str) -> float:
    """The seconds of the processor that the page takes to draw a text."""

    def used() -> float:
        metrics = page.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))

    began = used()
    page.run(DRAW, text)
    return used() - began


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    home = tmp_path_factory.mktemp("page")
    with Server("-demo", log=home / "log") as server:
        driver = browser.start(home / "profile")
        try:
            page = Page(driver)
            page.open(server.url)
            driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
            yield page
        finally:
            driver.quit()


@browser.NEEDED
@pytest.mark.parametrize("text", PAGE_TEXTS)
def test_a_text_that_the_page_draws(page: Page, text: str) -> None:
    before, worst = 0.0, 1.0
    for part in (64, 8, 1):
        made = PAGE_TEXTS[text](LARGE // part)
        took = min(_cost_on_page(page, made) for _ in range(2))
        if took > 0.02:
            worst = max(worst, took / max(before, 0.0025))
        before = took
    assert worst < GROWTH, f"eight times the size costs {worst:.0f} times as much"
