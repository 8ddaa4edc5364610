"""What MCP servers answer to a call, in whatever form: what is understood reaches the model, and at once."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("mcp", reason="needs the MCP SDK")

from session_core.tools.mcp import McpServers
from session_core.tools.mcp_answers import without_base64
from session_core.tools.pictures import ToolOutput
from tests.support.mcp_http_server import McpHttpServer
from tests.support.mcp_servers import McpServer, call, script
from tests.support.pictures import encoded, png

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + os.urandom(50_000)).decode()
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAVE = base64.b64encode(b"no magic number" + os.urandom(3000)).decode()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[McpServers]:
    """A server over standard input and output, and one at an address."""
    with McpHttpServer() as server:
        servers = McpServers([script(tmp_path_factory.mktemp("mcp")), McpServer("web", url=server.url)])
        servers.start()
        yield servers
        servers.close()


@pytest.fixture(params=["one", "web"])
def answer(request: pytest.FixtureRequest, both: McpServers) -> Any:
    """What the model is told where a server answers a call so: a text in which $ID stands for the id."""
    name = {"one": "line", "web": "body"}[request.param]
    return lambda text: call(both, f"{request.param}__raw", **{name: text})


def result(**fields: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": "$ID", "result": fields}).replace('"$ID"', "$ID")


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


# --- parts ---


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([text("a"), text("b")], "a\nb"),
        ("a", "a"),
        (text("a"), "a"),
        (["a", text("b")], "a\nb"),
        ([{"text": "a"}], "a"),
        ([{"type": "markdown", "text": "a"}], "a"),
        ([{**text("a"), "annotations": 5, "_meta": "odd"}], "a"),
        ([text("a"), {"type": "table", "rows": [1, 2]}], "a\n[table, unknown type, 29 bytes]"),
        ([text("a"), 5, None], "a\n[data, unknown type, 1 bytes]\n[data, unknown type, 4 bytes]"),
        ([{"type": "image", "data": "AAAA", "mimeType": "image/png"}], "[image, image/png, 3 bytes]"),
        ([{"type": "image", "data": "AAAA"}], "[image, unknown type, 3 bytes]"),
        ([{"type": "audio", "data": "AAA=", "mimeType": "audio/wav"}], "[audio, audio/wav, 2 bytes]"),
        ([{"type": "resource", "resource": {"uri": "file:///a", "text": "a"}}], "a"),
        (
            [{"type": "resource", "resource": {"uri": "file:///a", "mimeType": "a/b", "blob": "AAAA"}}],
            "[resource file:///a, a/b, 3 bytes]",
        ),
        (
            [{"type": "resource", "resource": {"mimeType": "image/png", "blob": "AAAA"}}],
            "[image, image/png, 3 bytes]",
        ),
        (
            [{"type": "resource_link", "uri": "a:b", "name": "c", "mimeType": "d/e", "size": 5}],
            "[link to a:b, d/e, 5 bytes]",
        ),
    ],
)
def test_each_part_stands_for_itself(answer: Any, content: object, said: str) -> None:
    assert answer(result(content=content)) == said


def test_structured_content_stands_where_there_is_no_text(answer: Any) -> None:
    assert answer(result(structuredContent={"degrees": 21})) == '{"degrees":21}'
    assert answer(result(content=[], structuredContent=[1, 2])) == "[1,2]"
    assert answer(result(content=None, structuredContent="a")) == '"a"'
    assert answer(result(content=[text("a")], structuredContent={"b": 1})) == "a"
    assert answer(result(toolResult={"degrees": 21})) == '{"toolResult":{"degrees":21}}'
    assert answer(result()) == ""


def test_numbers_that_are_none_are_null(answer: Any) -> None:
    assert answer(result(structuredContent={"a": float("nan")})) == '{"a":null}'


def test_an_error_of_the_tool_is_told(answer: Any) -> None:
    for value in (True, "true"):
        with pytest.raises(ValueError, match="the disk is full"):
            answer(result(content=["the disk is full"], isError=value))
    assert answer(result(content=["fine"], isError=None)) == "fine"
    assert answer(result(content=["fine"], isError="no")) == "fine"


# --- messages ---

FINE = result(content=[text("fine")])


@pytest.mark.parametrize(
    "line",
    [
        FINE + FINE,
        FINE + ' {"jsonrpc":"2.0","id":"other","result":{}}',
        "Loading… " + FINE + " done",
        f"[{FINE}]",
        "\ufeff" + FINE,
        FINE.replace('"jsonrpc": "2.0", ', ""),
        FINE[:-1] + ', "error": null}',
        FINE.replace("$ID", "null"),
        '{"jsonrpc":"2.0","id":$ID,"result":"fine"}',
        '{"jsonrpc":"2.0","id":$ID,"result":["fine"]}',
        '{"jsonrpc":"2.0","id":$ID,"content":"fine"}',
        '{"jsonrpc":"2.0","result":{"content":"fine"}}',
    ],
)
def test_an_answer_is_found_in_its_line(answer: Any, line: str) -> None:
    assert answer(line) == "fine"


def test_half_a_character_is_replaced_and_halves_are_joined(answer: Any) -> None:
    assert answer(FINE.replace("fine", r"a\ud83db")) == "a\ufffdb"
    assert answer(FINE.replace("fine", r"a\ud83d\ude00b")) == "a😀b"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ('{"code":"ENOENT","message":"no such file"}', "no such file"),
        ('{"code":1.5,"message":"no such file"}', "no such file"),
        ('{"message":"no such file"}', "no such file"),
        ('"no such file"', "no such file"),
        ('{"reason":"no such file"}', '{"reason": "no such file"}'),
        ('{"code":1,"message":["no such file"]}', "no such file"),
        ('["no such file"]', "no such file"),
        ("true", "true"),
    ],
)
def test_an_error_is_told_in_whatever_form_it_comes(answer: Any, error: str, said: str) -> None:
    for id in ("$ID", "null"):
        with pytest.raises(ValueError, match="^.*" + said.replace("[", r"\[")):
            answer(f'{{"jsonrpc":"2.0","id":{id},"error":{error}}}')


@pytest.mark.parametrize(
    "line", ['{"jsonrpc":"2.0","id":$ID,"result":', '{"result":{"a":},"jsonrpc":"2.0","id":$ID}']
)
def test_an_answer_that_is_broken_fails_at_once(answer: Any, line: str) -> None:
    began_at = time.monotonic()
    with pytest.raises(ValueError, match=r"the answer is not JSON|the answer is no message"):
        answer(line)
    assert time.monotonic() - began_at < 5


def test_a_line_of_a_log_is_no_answer(both: McpServers) -> None:
    lines = '{"level":"info","id":$ID}\n{"error":"none yet"}\n{"id":5,"msg":"x"}\n'
    assert call(both, "one__raw", line=lines + FINE) == "fine"


# --- base64 ---


@pytest.mark.parametrize(
    "fields",
    [
        {"content": [{"type": "image", "data": PNG, "mimeType": "image/png"}], "structuredContent": {"a": [PNG]}},
        {"content": [], "structuredContent": {"content": [{"type": "image", "data": PNG, "mimeType": "image/png"}]}},
        {"content": [], "structuredContent": {"file": {"blob": PNG, "mimeType": "a/b"}}},
        {"content": [], "structuredContent": {"a": {"b": [PNG]}}},
        {"content": [text(PNG)]},
        {"content": [text(f"See ![it](data:image/png;base64,{PNG}) here")]},
        {"content": [text(json.dumps({"a": PNG}).replace("/", r"\/"))]},
        {"content": [text(base64.encodebytes(base64.b64decode(PNG)).decode())]},
        {"content": [text(WAVE)]},
        {"content": [text(f"It is {WAVE}, they say")]},
        {"content": [text(f"data:text/plain;charset=utf-8;base64,{WAVE[:40]}")]},
        {"content": [{"type": "new", "payload": PNG}]},
        {"content": [], "structuredContent": {"icon": PIXEL}},
        {"thing": PNG},
    ],
)
def test_nothing_in_base64_reaches_the_model(answer: Any, fields: dict[str, Any]) -> None:
    output = answer(result(**fields))
    said = getattr(output, "text", output)  # one picture among the parts is kept beside the text
    assert len(said) < 200
    assert " bytes]" in said
    with pytest.raises(ValueError, match=r" bytes\]") as caught:
        answer(result(isError=True, **fields))
    assert len(str(caught.value)) < 200


def test_a_picture_is_given_beside_its_name(answer: Any) -> None:
    picture = {"type": "image", "data": encoded(png()), "mimeType": "image/png"}
    resource = {"type": "resource", "resource": {"mimeType": "image/png", "blob": encoded(png(1))}}
    word = f"[image, image/png, {len(png())} bytes]"
    expected = ToolOutput(f"Here:\n{word}\n{word}", [png(), png(1)])
    assert answer(result(content=[text("Here:"), picture, resource])) == expected


def test_what_says_that_it_is_a_picture_and_is_none_is_named_alone(answer: Any) -> None:
    for data in ("AAAA", "###", encoded(b"<svg/>")):
        output = answer(result(content=[{"type": "image", "data": data, "mimeType": "image/png"}]))
        assert isinstance(output, str) and output.startswith("[image, image/png, ")


def test_a_picture_is_named_by_type_and_size(answer: Any) -> None:
    assert answer(result(content=[text(PNG)])) == "[data, image/png, 50008 bytes]"


@pytest.mark.parametrize(
    "said",
    [
        "x" * 5000,
        "0123456789abcdef" * 100,
        "a/long/path/" * 3,
        "\n".join(f"word{number}" for number in range(1000)),
        "The quick brown fox jumps over the lazy dog 42 times. " * 100,
        WAVE[:344],
        "/9j",
    ],
)
def test_what_is_no_base64_stays(said: str) -> None:
    assert without_base64(said) == said


@pytest.mark.parametrize(
    "said", ["data:" * 400_000, "data:" + "a" * 2_000_000, "aA0+/=\n" * 300_000, ("a" * 59 + " ") * 40_000]
)
def test_text_of_others_is_looked_through_in_linear_time(said: str) -> None:
    began_at = time.process_time()
    without_base64(said)
    assert time.process_time() - began_at < 5
