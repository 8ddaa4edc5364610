"""The file that names MCP servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from session_core.tools.mcp_config import McpError, McpServer, read_mcp_config


def config(tmp_path: Path, servers: object, environment: dict[str, str] | None = None) -> list[McpServer]:
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers}))
    return read_mcp_config(str(tmp_path / "mcp.json"), environment or {})


def test_the_file_names_programs_and_addresses(tmp_path: Path) -> None:
    program = {"command": "a", "args": ["b"], "env": {"C": "d"}, "cwd": "/e", "optional": True, "type": "stdio"}
    address = {"url": "http://localhost:1/mcp", "headers": {"Authorization": "Bearer f"}}
    assert config(tmp_path, {"one": program, "two": address}) == [
        McpServer("one", "a", ("b",), {"C": "d"}, "/e", optional=True),
        McpServer("two", url="http://localhost:1/mcp", headers={"Authorization": "Bearer f"}),
    ]


def test_variables_come_from_the_environment(tmp_path: Path) -> None:
    entry = {"command": "${BIN}/x", "args": ["${A:-1}", "${EMPTY:-2}", "$A {A}", "${NONE:-}"], "env": {"K": "${BIN}"}}
    [server] = config(tmp_path, {"one": entry}, {"BIN": "/bin", "EMPTY": "", "OTHER": "x"})
    assert (server.command, server.args, server.env) == ("/bin/x", ("1", "2", "$A {A}", ""), {"K": "/bin"})


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ({"one": {"url": "http://${HOST}/mcp"}}, "one: the variable HOST is not set"),
        ({"one": {}}, 'one: give it either a "command" or a "url"'),
        ({"one": {"command": "a", "url": "http://b"}}, 'one: give it either a "command" or a "url"'),
        ({"one": {"command": "a", "args": "b"}}, "one: args must be a list of strings"),
        ({"one": {"command": "a", "args": [1]}}, "one: each of args must be a string"),
        ({"one": {"command": "a", "env": {"B": 1}}}, "one: env B must be a string"),
        ({"one": {"command": "a", "optional": "yes"}}, "one: optional must be true or false"),
        ({"one": {"command": ""}}, "one: command is empty"),
        ({"one": {"url": "localhost:80"}}, "one: url must be a URL"),
        ({"one": {"url": "http://a", "type": "sse"}}, "one: the transport sse is not supported"),
        ({"one": "a"}, "one is not an object"),
        ({"one": {"url": "http://a", "transport": "sse"}}, "one: the transport sse is not supported"),
        ({"one": {"url": "http://a", "type": "ws"}}, "one: the transport ws is not supported"),
        ({"one": {"url": "http://a", "type": "stdio"}}, "one: the transport stdio is not supported"),
        ({"one": {"command": "a", "type": "http"}}, "one: the transport http is not supported"),
        ({"one": {"command": "a", "type": 5}}, "one: the transport 5 is not supported"),
        ({"one": {"url": "http://a", "headers": {"A": "${env:TOKEN}"}}}, "one: ${env:TOKEN} is not understood"),
        ({"one": {"command": "a", "args": ["${input:key}"]}}, "one: ${input:key} is not understood"),
        ({"one": {"command": "a", "args": ["${A"]}}, "one: ${A is not understood"),
        ({"one": {"command": "a", "args": ["${A:-${B}}"]}}, "one: ${A:-${B} is not understood"),
        ({"one": {"command": "a", "args": ["\0"]}}, "one: a string in it holds a NUL"),
        ({"one": {"command": "a", "disabled": "true"}}, "one: disabled must be true or false"),
        ({"one": {"command": "a", "enabled": 0}}, "one: enabled must be true or false"),
        ({"one": {"command": "a", "timeout": "5"}}, "one: timeout must be a number of seconds"),
        ({"one": {"command": "a", "timeout": 0}}, "one: timeout must be a number of seconds"),
        ({"one": {"command": "a", "approve": "*"}}, "one: approve must be a list of strings"),
        ({"one": {"command": "a", "approve": [1]}}, "one: each of approve must be a string"),
        ({"one": {"url": "http://a:99999999"}}, "one: url must be a URL"),
        ({"one": {"url": "http://[::1/mcp"}}, "one: url must be a URL"),
        ([], "mcp.json is not a JSON object"),
    ],
)
def test_a_file_that_cannot_be_used_names_the_server_and_the_remedy(
    tmp_path: Path, servers: object, said: str
) -> None:
    with pytest.raises(McpError) as caught:
        config(tmp_path, servers)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(McpError, match=r"cannot read .*none\.json: No such file"):
        read_mcp_config(str(tmp_path / "none.json"), {})


def test_what_is_switched_off_is_left_out_whatever_stands_in_it(tmp_path: Path) -> None:
    off = {"disabled": True, "command": "${NOT_SET}", "type": "sse"}
    servers = {"one": off, "two": {"enabled": False}, "three": {"command": "a", "disabled": False, "enabled": True}}
    assert config(tmp_path, servers) == [McpServer("three", "a")]


def test_null_counts_as_left_out(tmp_path: Path) -> None:
    entry = {"command": "a", "args": None, "env": None, "cwd": None, "url": None, "type": None, "timeout": None}
    assert config(tmp_path, {"one": entry}) == [McpServer("one", "a")]


@pytest.mark.parametrize("transport", ["http", "streamable-http", "streamableHttp", "streamable_http"])
def test_the_transport_of_an_address_has_the_names_that_clients_give_it(tmp_path: Path, transport: str) -> None:
    url = "http://[::1]:1/mcp"
    assert config(tmp_path, {"one": {"url": url, "transport": transport}}) == [McpServer("one", url=url)]


def test_a_program_gets_more_time_than_an_address_and_an_entry_says_otherwise(tmp_path: Path) -> None:
    servers = {"one": {"command": "a"}, "two": {"url": "http://a"}, "three": {"url": "http://a", "timeout": 2.5}}
    assert [server.start_seconds for server in config(tmp_path, servers)] == [60, 10, 2.5]


def test_an_entry_names_the_tools_that_need_approval(tmp_path: Path) -> None:
    [server] = config(tmp_path, {"one": {"command": "a", "approve": ["pay", "*"]}})
    assert server.approve == ("pay", "*")


def test_a_value_of_the_environment_stands_as_it_is(tmp_path: Path) -> None:
    [server] = config(tmp_path, {"one": {"command": "${A}"}}, {"A": "${B} $C"})
    assert server.command == "${B} $C"
