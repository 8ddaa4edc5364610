"""Tools of one's own in a running server: `-tools`, `-calculator`, `-tool_timeout`, `GET /tools`, and the example."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session_server import main
from tests.support.model_server import ModelServer, ReplyTo, answer, tool_call, tool_calls
from tests.support.server import ROOT, Server

EXAMPLE = "examples/my_tools.py"


def results(server: Server, model: ModelServer, *replies: ReplyTo) -> list[dict[str, Any]]:
    """What the tools of one turn gave."""
    model.then(*replies, answer("OK"))
    events = list(server.say(server.create(), "Hi").events())
    assert events[-1]["type"] == "stream_end"
    return [event["data"] for event in events if event["type"] == "stream_tool_result"]


def test_the_example_works_as_a_newcomer_starts_it(serve: Callable[..., Server]) -> None:
    with ModelServer() as model:
        server = serve(f"-base_url={model.base_url}", f"-tools={ROOT / EXAMPLE}")
        offered = server.request("GET", "/tools").json["tools"]
        assert [(tool["name"], tool["from"]) for tool in offered] == [
            ("calculator", "built in"),
            ("time_in", "my_tools.py"),
            ("look_up", "my_tools.py"),
        ]
        assert all(tool["description"] and tool["parameters"]["type"] == "object" for tool in offered)
        found = results(
            server,
            model,
            tool_calls(("time_in", {"zone": "UTC"}), ("look_up", {"word": "Turn"}), ("look_up", {"word": "x"})),
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d\+00:00", found[0]["result"])
        assert json.loads(found[1]["result"])["meaning"] == "a question and all that answers it"
        assert found[2]["error"] == "the dictionary does not have x"
        assert [tool["function"]["name"] for tool in model.requests[0]["tools"]] == [
            "calculator",
            "time_in",
            "look_up",
        ]


def test_several_files_and_no_calculator(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def one() -> str:\n    return 'a'\n")
    (tmp_path / "b.py").write_text(
        "import asyncio\nasync def two() -> str:\n    await asyncio.sleep(0)\n    return 'b'\n"
    )
    with ModelServer() as model:
        flags = (f"-tools={tmp_path / 'a.py'}", f"-tools={tmp_path / 'b.py'}", "-calculator=false")
        server = serve(f"-base_url={model.base_url}", *flags)
        assert [tool["name"] for tool in server.request("GET", "/tools").json["tools"]] == ["one", "two"]
        assert [one["result"] for one in results(server, model, tool_calls(("one", {}), ("two", {})))] == ["a", "b"]
        assert "calculator" not in json.dumps(model.requests[0])


def test_files_come_from_the_environment_too(serve: Callable[..., Server]) -> None:
    server = serve("-demo", env={"SESSION_SERVER_TOOLS": str(ROOT / EXAMPLE)})
    assert len(server.request("GET", "/tools").json["tools"]) == 3


def test_without_tools_none_are_offered(serve: Callable[..., Server]) -> None:
    with ModelServer() as model:
        server = serve(f"-base_url={model.base_url}", "-calculator=false")
        assert server.request("GET", "/tools").json == {"tools": []}
        results(server, model)
        assert "tools" not in model.requests[0]


def test_a_tool_that_hangs_costs_its_own_call(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\ndef hang():\n    time.sleep(60)\n")
    with ModelServer() as model:
        server = serve(f"-base_url={model.base_url}", f"-tools={tmp_path / 'slow.py'}", "-tool_timeout=0.5")
        assert results(server, model, tool_call("hang", {}))[0]["error"] == "the tool did not answer in time"
        assert model.requests[-1]["messages"][-1]["content"] == "error: the tool did not answer in time"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def one(:\n", "line 1"),
        ("def calculator() -> str:\n    return ''\n", "calculator is a tool of built in and mine.py: rename one"),
        ("x = 1\n", "has no tools"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert main(["-demo", "-port=0", f"-tools={tmp_path / 'mine.py'}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("session_server: -tools: ") and said in line and len(line.splitlines()) == 1
