"""The tools that MCP servers list, one by one: what is not understood costs itself alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytest.importorskip("mcp", reason="needs the MCP SDK")

from session_core.tools.mcp import McpServers
from session_core.tools.mcp_tools import read_tools
from tests.support.mcp_servers import by_name, call, script
from tests.support.server import wait_until

GOOD = {"name": "good", "inputSchema": {"type": "object"}}
FOLDED = ("anyOf", "oneOf", "allOf", "enum", "not", "$ref")


def list_tools(tmp_path: Path, tools: object, name: str = "one") -> None:
    """What a scripted server lists from now on."""
    (tmp_path / f"{name}.part").write_text(json.dumps(tools))
    (tmp_path / f"{name}.part").rename(tmp_path / f"{name}.tools")


def schema_of(schema: object) -> dict[str, Any]:
    """The schema that the model gets for a tool that is listed with this one."""
    [tool], left_out = read_tools([{"name": "a", "inputSchema": schema}])
    assert left_out == []
    understood: dict[str, Any] = tool["inputSchema"]
    assert understood["type"] == "object"
    assert not [word for word in FOLDED if word in understood] and None not in understood.values()
    jsonschema.Draft202012Validator.check_schema(understood)
    return understood


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"name": "bad", "inputSchema": "none"}, "the tool bad is left out: none in its schema"),
        ({"name": "bad", "inputSchema": {"type": "array"}}, "the tool bad is left out: its arguments are no object"),
        (
            {"name": "bad", "inputSchema": {"properties": {"a": "text"}}},
            "bad is left out: text in its schema",
        ),
        ({"name": "bad", "inputSchema": {"properties": [1]}}, "the tool bad is left out: [1] in its schema"),
        (
            {"name": "bad", "inputSchema": {"properties": {"a": {"type": "txt"}}}},
            "bad is left out: its schema is not",
        ),
        ({"name": "bad", "description": 5}, "the tool bad is left out: its description is no text"),
        (
            {"name": "bad", "execution": {"taskSupport": "required"}},
            "bad is left out: it can be called as a",
        ),
        ({"description": "nameless"}, "the tool None is left out: it has no name"),
        ({"name": ""}, "is left out: it has no name"),
        ("bad", "is left out: it has no name"),
        (None, "is left out: it has no name"),
    ],
)
def test_a_tool_that_is_not_understood_is_left_out_and_its_neighbours_work(
    start: Callable[..., McpServers], tmp_path: Path, bad: object, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    list_tools(tmp_path, [bad, GOOD, {"name": "echo"}])
    servers = start(script(tmp_path))
    assert list(by_name(servers)) == ["one__good", "one__echo"]
    assert call(servers, "one__echo", text="as ever") == "as ever"
    assert f"MCP server one: {said}" in caplog.text or said in caplog.text


def test_what_else_a_tool_says_of_itself_is_not_looked_at(start: Callable[..., McpServers], tmp_path: Path) -> None:
    odd = {"outputSchema": {"type": "array"}, "annotations": 5, "icons": "x", "_meta": [], "title": 7}
    list_tools(tmp_path, [{**odd, "name": "echo", "description": "Says it."}])
    assert call(start(script(tmp_path)), "one__echo", text="fine") == "fine"


@pytest.mark.parametrize("listed", [None, {}, "none", 5])
def test_a_list_that_is_none_is_empty(start: Callable[..., McpServers], tmp_path: Path, listed: object) -> None:
    list_tools(tmp_path, listed)
    assert start(script(tmp_path)).tools() == []


def test_text_alone_is_enough_where_a_schema_promises_more(start: Callable[..., McpServers], tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    list_tools(tmp_path, [{"name": "echo", "outputSchema": schema}, {"name": "structured", "outputSchema": schema}])
    servers = start(script(tmp_path))
    assert call(servers, "one__echo", text="fine") == "fine"
    assert call(servers, "one__structured") == '{"degrees":21.5,"where":"Zürich"}'


# --- schemas ---

A, B = {"a": {"type": "integer"}}, {"b": {"type": "string"}}
EMPTY = {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("schema", "understood"),
    [
        (None, EMPTY),
        ({}, EMPTY),
        ([], EMPTY),
        ({"type": None, "properties": None, "required": None, "$defs": None}, EMPTY),
        ({"type": ["object", "null"], "properties": []}, EMPTY),
        ({"properties": A}, {"type": "object", "properties": A}),
        ({"properties": {"a": None, "b": True, "c": False}}, {"type": "object", "properties": {"a": {}, "b": {}}}),
        ({"properties": A, "required": "a"}, {"type": "object", "properties": A}),
        ({"enum": [{}], "not": {"required": ["a"]}}, EMPTY),
        (
            {"allOf": [{"properties": A, "required": ["a"]}, {"properties": B, "required": ["b", "a"]}]},
            {"type": "object", "properties": A | B, "required": ["a", "b"]},
        ),
        (
            {"anyOf": [{"properties": A, "required": ["a"]}, {"properties": B}], "required": ["c"]},
            {"type": "object", "properties": A | B, "required": ["c"]},
        ),
        (
            {"properties": A, "oneOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 2}}}]},
            {"type": "object", "properties": {"a": {"anyOf": [*A.values(), {"const": 1}, {"const": 2}]}}},
        ),
        (
            {"$ref": "#/$defs/x~1y", "$defs": {"x/y": {"properties": A, "required": ["a"]}}},
            {"type": "object", "properties": A, "required": ["a"]}
            | {"$defs": {"x/y": {"properties": A, "required": ["a"]}}},
        ),
        (
            {"anyOf": None, "description": "x", "additionalProperties": False},
            {**EMPTY, "description": "x", "additionalProperties": False},
        ),
    ],
)
def test_what_openai_does_not_take_at_the_top_is_folded_away(schema: object, understood: dict[str, Any]) -> None:
    assert schema_of(schema) == understood


@pytest.mark.parametrize("reference", ["#", "#/none", "#/$defs/loop", "http://x/y", 5, None])
def test_a_reference_that_leads_nowhere_is_left_out(reference: object) -> None:
    loop = {"allOf": [{"$ref": "#/$defs/loop"}], "properties": A}
    assert schema_of({"$ref": reference, "properties": A, "$defs": {"loop": loop}})["properties"] == A


def test_references_to_one_another_are_followed_once() -> None:
    names = [f"d{number}" for number in range(100)]
    every = [{"$ref": f"#/$defs/{name}"} for name in names]
    definitions = {name: {"anyOf": every, "properties": {name: {}}} for name in names}
    [tool], _ = read_tools([{"name": "a", "inputSchema": {"anyOf": every, "$defs": definitions}}])
    assert list(tool["inputSchema"]["properties"]) == names


# --- order ---


def test_a_tool_that_is_added_goes_behind_those_that_are_there(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    servers = start(script(tmp_path), script(tmp_path, name="other"))
    before = list(by_name(servers))
    list_tools(tmp_path, [{"name": "new"}, *({"name": name[5:]} for name in reversed(before) if name[:3] == "one")])
    call(servers, "one__grow")
    wait_until(lambda: "one__new" in by_name(servers))
    assert list(by_name(servers)) == [*before, "one__new"]


def test_a_tool_that_went_and_came_again_goes_behind_too(start: Callable[..., McpServers], tmp_path: Path) -> None:
    servers = start(script(tmp_path), script(tmp_path, name="other"))
    before = list(by_name(servers))
    list_tools(tmp_path, [{"name": "grow"}])
    call(servers, "one__grow")
    wait_until(lambda: "one__echo" not in by_name(servers))
    list_tools(tmp_path, [{"name": "echo"}, {"name": "grow"}])
    call(servers, "one__grow")
    wait_until(lambda: "one__echo" in by_name(servers))
    others = [name for name in before if name.startswith("other__")]
    assert list(by_name(servers)) == ["one__grow", *others, "one__echo"]


def test_a_tool_keeps_its_name_when_another_of_that_name_comes_and_goes(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    list_tools(tmp_path, [{"name": "a b"}, {"name": "a_b", "description": "second"}, {"name": "grow"}])
    servers = start(script(tmp_path))
    assert by_name(servers)["one__a_b_2"].description == "second"
    list_tools(tmp_path, [{"name": "a_b", "description": "second"}, {"name": "grow"}])
    call(servers, "one__grow")
    wait_until(lambda: "one__a_b" not in by_name(servers))
    assert by_name(servers)["one__a_b_2"].description == "second"


# --- approval ---


def test_an_entry_marks_the_tools_that_need_approval(
    start: Callable[..., McpServers], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marked = script(tmp_path, approve=("echo", "ecko"))
    servers = start(marked, script(tmp_path, name="all", approve=("*",)), script(tmp_path, name="none"))
    tools = by_name(servers)
    assert [tools[name].needs_approval("{}") for name in ("one__echo", "one__pid")] == [True, False]
    assert {tool.may_need_approval for name, tool in tools.items() if name.startswith("all__")} == {True}
    assert {tool.needs_approval("{}") for name, tool in tools.items() if name.startswith("none__")} == {False}
    assert 'MCP server one: "approve" names what it does not list: ecko' in caplog.text
