"""MCP servers behind a running server, among them some that nobody here wrote."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session_server import main
from tests.support.model_server import ModelServer, ReplyTo, answer, tool_call, tool_calls
from tests.support.pictures import data_url, encoded, png, stored
from tests.support.server import ROOT, TIMEOUT, Server, environment, wait_until

pytest.importorskip("mcp", reason="needs the MCP SDK")

SCRIPT = str(ROOT / "tests" / "support" / "mcp_script.py")
NODE_SERVERS = ROOT / ".ci" / "node" / "node_modules" / "@modelcontextprotocol"


class Start:
    """Starts the server with these MCP servers, and no other tools."""

    def __init__(self, serve: Callable[..., Server], tmp_path: Path, model: ModelServer) -> None:
        self.serve, self.tmp_path, self.model = serve, tmp_path, model

    def __call__(self, *flags: str, env: dict[str, str] | None = None, **servers: dict[str, Any]) -> Server:
        path = write(self.tmp_path, servers)
        address = f"-base_url={self.model.base_url}"
        return self.serve(address, f"-mcp_config={path}", "-calculator=false", *flags, env=env)


@pytest.fixture
def start(serve: Callable[..., Server], tmp_path: Path, model: ModelServer) -> Start:
    return Start(serve, tmp_path, model)


def write(tmp_path: Path, servers: dict[str, Any]) -> Path:
    path = tmp_path / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    return path


def script(tmp_path: Path, mode: str = "ok", **more: Any) -> dict[str, Any]:
    return {"command": sys.executable, "args": [SCRIPT, str(tmp_path / "one.log"), mode], **more}


def module(name: str, *arguments: str) -> dict[str, Any]:
    """A server that is a Python package."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs the Python package {name}")
    return {"command": sys.executable, "args": ["-m", name, *arguments]}


def node(name: str, *arguments: str) -> dict[str, Any]:
    """A server that is an npm package."""
    path = NODE_SERVERS / name / "dist" / "index.js"
    if shutil.which("node") is None or not path.exists():
        pytest.skip(f"needs node and the npm package @modelcontextprotocol/{name}")
    return {"command": "node", "args": [str(path), *arguments]}


def results(server: Server, model: ModelServer, *replies: ReplyTo) -> list[dict[str, Any]]:
    """What the tools of one turn gave."""
    model.then(*replies, answer("OK"))
    events = list(server.say(server.create(), "Hi").events())
    assert events[-1]["type"] == "stream_end"
    return [event["data"] for event in events if event["type"] == "stream_tool_result"]


def tools(server: Server) -> dict[str, dict[str, Any]]:
    return {tool["name"]: tool for tool in server.request("GET", "/tools").json["tools"]}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- servers that nobody here wrote ---


def test_the_everything_server_works(start: Start, model: ModelServer) -> None:
    server = start(everything=node("server-everything"))
    assert tools(server)["everything__get-sum"]["from"] == "MCP server everything"
    found = results(
        server,
        model,
        tool_calls(
            ("everything__get-sum", {"a": 15, "b": 23}),
            ("everything__get-tiny-image", {}),
            ("everything__get-structured-content", {"location": "Chicago"}),
            ("everything__get-sum", {"a": "x"}),
        ),
    )
    assert found[0]["result"] == "The sum of 15 and 23 is 38."
    assert re.search(r"\[image, image/png, \d+ bytes\]", found[1]["result"])
    assert json.loads(found[2]["result"])["temperature"]
    assert "Invalid arguments" in found[3]["error"]
    offered = [tool["function"]["name"] for tool in model.requests[0]["tools"]]
    assert offered == list(tools(server))


def test_the_filesystem_server_works(start: Start, model: ModelServer, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("what stands in it")
    server = start(
        "-log_level=debug", env={"FOLDER": str(folder)}, files=node("server-filesystem", "${FOLDER:-/none}")
    )
    outside = {"path": str(tmp_path / "mcp.json")}
    inside = {"path": str(folder / "a.txt")}
    found = results(server, model, tool_calls(("files__read_text_file", inside), ("files__read_text_file", outside)))
    assert found[0]["result"] == "what stands in it"
    assert "Access denied" in found[1]["error"]
    assert "what stands in it" not in server.log.read_text()


def test_the_time_server_works(start: Start, model: ModelServer) -> None:
    server = start(time=module("mcp_server_time", "--local-timezone=UTC"))
    [found] = results(server, model, tool_call("time__get_current_time", {"timezone": "Europe/Zurich"}))
    assert json.loads(found["result"])["timezone"] == "Europe/Zurich"


def test_the_git_server_works(start: Start, model: ModelServer, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    repository = tmp_path / "repository"
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    server = start(git=module("mcp_server_git", "--repository", str(repository)))
    (repository / "new.txt").write_text("new")
    [found] = results(server, model, tool_call("git__git_status", {"repo_path": str(repository)}))
    assert "new.txt" in found["result"]


def test_several_servers_and_a_file_of_tools_work_in_one_answer(start: Start, model: ModelServer) -> None:
    server = start(
        f"-tools={ROOT / 'examples' / 'my_tools.py'}",
        time=module("mcp_server_time"),
        everything=node("server-everything"),
    )
    wanted = tool_calls(
        ("time_in", {"zone": "UTC"}),
        ("time__get_current_time", {"timezone": "UTC"}),
        ("everything__echo", {"message": "Hello"}),
    )
    found = results(server, model, wanted)
    assert [sorted(one) for one in found] == [["id", "name", "result"]] * 3
    assert found[2]["result"] == "Echo: Hello"


# --- the document ---


def commands() -> list[str]:
    """The shell commands of the document's beginning, with the interpreter that runs the tests."""
    text = (ROOT / "docs" / "tools.md").read_text(encoding="utf-8").split("\n## ")[0]
    return [
        block.replace(".venv/bin/python", sys.executable) for block in re.findall(r"```bash\n(.*?)```", text, re.S)
    ]


def test_the_document_s_file_works_as_it_stands(serve: Callable[..., Server]) -> None:
    flags = commands()[0].split("session_server.py ")[1].split()
    assert flags[1] == "-tools=examples/my_tools.py"
    assert "look_up" in tools(serve(flags[0], f"-tools={ROOT / 'examples' / 'my_tools.py'}"))


def test_the_document_s_mcp_server_works_as_it_stands(serve: Callable[..., Server], tmp_path: Path) -> None:
    module("mcp_server_time")
    _, echo, command = commands()[1].strip().splitlines()
    subprocess.run(["bash", "-c", echo], cwd=tmp_path, check=True)
    assert command.endswith(" session_server.py -demo -mcp_config=mcp.json")
    assert "time__convert_time" in tools(serve("-demo", f"-mcp_config={tmp_path / 'mcp.json'}"))


def test_the_document_s_function_works_as_it_stands() -> None:
    done = subprocess.run(["bash", "-c", commands()[2]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "'from': 'embedded'" in done.stdout and "'name': 'double'" in done.stdout


# --- ends ---


def test_a_server_that_is_killed_in_mid_turn_costs_its_call(start: Start, model: ModelServer, tmp_path: Path) -> None:
    server = start(one=script(tmp_path))
    pid = int(results(server, model, tool_call("one__pid", {}))[0]["result"])
    model.then(tool_call("one__hang", {}), answer("It ended."))
    stream = server.say(server.create(), "Hi")
    wait_until(lambda: '"hang"' in (tmp_path / "one.log").read_text())
    os.kill(pid, signal.SIGKILL)
    events = list(stream.events())
    [result] = [event["data"] for event in events if event["type"] == "stream_tool_result"]
    assert result["error"] == "the MCP server one ended during the call"
    assert events[-1]["data"]["complete_text"] == "It ended."
    wait_until(lambda: results(server, model, tool_call("one__pid", {}))[0].get("result"))
    assert "MCP server one: it ended; trying again in 0.5 s" in server.log.read_text()


def test_a_cancel_reaches_the_mcp_server(start: Start, model: ModelServer, tmp_path: Path) -> None:
    server = start(one=script(tmp_path))
    model.then(tool_call("one__hang", {}))
    session_id = server.create()
    stream = server.say(session_id, "Hi")
    wait_until(lambda: '"hang"' in (tmp_path / "one.log").read_text())
    assert server.request("POST", f"/sessions/{session_id}/cancel").json == {"cancelled": True}
    assert list(stream.events())[-1]["data"]["status"] == "cancelled"
    wait_until(lambda: "notifications/cancelled" in (tmp_path / "one.log").read_text())


def test_kill_9_leaves_no_mcp_server(start: Start, model: ModelServer, tmp_path: Path) -> None:
    server = start(one=script(tmp_path, "stubborn"))
    pid = int(results(server, model, tool_call("one__pid", {}))[0]["result"])
    child = int((tmp_path / "one.child").read_text())
    assert alive(pid) and alive(child)
    server.kill()
    wait_until(lambda: not alive(pid) and not alive(child))


def test_a_shutdown_ends_the_mcp_servers(start: Start, model: ModelServer, tmp_path: Path) -> None:
    server = start(one=script(tmp_path), everything=node("server-everything"))
    pid = int(results(server, model, tool_call("one__pid", {}))[0]["result"])
    server.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not alive(pid)
    assert "Traceback" not in server.log.read_text()


# --- starts ---


@pytest.mark.parametrize(
    ("servers", "said"),
    [
        ({"one": {"command": "/no/such/program"}}, "the MCP server one does not start: there is no program /no/such"),
        ({"one": {"command": "${NOT_SET_ANYWHERE}"}}, "one: the variable NOT_SET_ANYWHERE is not set"),
        ({"one": {"url": "http://127.0.0.1:9/mcp"}}, "the MCP server one does not start: "),
        ({"one": {}}, 'one: give it either a "command" or a "url"'),
    ],
)
def test_what_cannot_be_used_is_one_line(
    tmp_path: Path, servers: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-demo", "-port=0", f"-mcp_config={write(tmp_path, servers)}"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("session_server: -mcp_config: ") and said in line and len(line.splitlines()) == 1


def test_a_file_tool_and_an_mcp_tool_of_one_name_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text("def one__echo() -> str:\n    return ''\n")
    config = write(tmp_path, {"one": script(tmp_path)})
    assert main(["-demo", "-port=0", f"-mcp_config={config}", f"-tools={tmp_path / 'mine.py'}"]) == 2
    assert "one__echo is a tool of mine.py and MCP server one: rename one" in capsys.readouterr().err


def test_without_the_sdk_the_remedy_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)  # as where it is not installed
    for room in [name for name in sys.modules if name.startswith(("session_core.tools.mcp", "mcp."))]:
        monkeypatch.delitem(sys.modules, room)
    assert main(["-demo", "-port=0", f"-mcp_config={write(tmp_path, {})}"]) == 2
    line = capsys.readouterr().err
    assert line == "session_server: -mcp_config needs the MCP SDK: pip install '.[mcp]'\n"


def test_an_optional_server_that_is_away_does_not_hinder_the_start(
    start: Start, model: ModelServer, tmp_path: Path
) -> None:
    server = start(one=script(tmp_path, "late", optional=True))
    assert tools(server) == {}
    assert "WARNING MCP server one: it ended before it answered" in server.log.read_text()
    (tmp_path / "one.ready").touch()
    wait_until(lambda: "one__echo" in tools(server))
    assert results(server, model, tool_call("one__echo", {"text": "late"}))[0]["result"] == "late"


def test_another_wsgi_server_offers_the_tools_too(tmp_path: Path) -> None:
    config = write(tmp_path, {"one": script(tmp_path)})
    code = "import session_server; print(session_server.build_app().test_client().get('/tools').json['tools'][-1])"
    set_up = {"DEMO": "true", "MCP_CONFIG": str(config), "LOG_LEVEL": "warning"}
    env = environment({f"SESSION_SERVER_{name}": value for name, value in set_up.items()})
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=2 * TIMEOUT)
    assert (done.returncode, done.stderr) == (0, "")
    assert "'from': 'MCP server one'" in done.stdout


def test_a_picture_of_a_server_is_kept_and_shown_to_the_model(
    start: Start, tmp_path: Path, model: ModelServer
) -> None:
    model.then(tool_call("one__image", {"data": encoded(png())}), answer("A dot."))
    server = start(one=script(tmp_path))
    session = server.create()
    assert server.say(session, "Draw").text
    result = server.messages(session)[2]
    assert result["content"][1] == stored(png())
    assert model.requests[-1]["messages"][-1]["content"][1]["image_url"]["url"] == data_url(png())
