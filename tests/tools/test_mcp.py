"""MCP servers from their start to their end: scripted ones that misbehave, and the SDK's own, by real processes."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from session_core.model.budget import Budget
from session_core.model.cancellation import Cancellation
from session_core.model.events import Cancelled, ToolCall
from session_core.tools.calls import run_calls
from session_core.tools.functions import MAX_RESULT_CHARACTERS
from session_core.tools.mcp_config import McpError, McpServer
from tests.support.server import ROOT, TIMEOUT, wait_until

pytest.importorskip("mcp", reason="needs the MCP SDK")

from session_core.tools.mcp import McpServers
from session_core.tools.mcp_connection import CALL_ID
from session_core.tools.mcp_tools import tool_name
from tests.support.mcp_servers import alive, by_name, call, methods, received, script

SDK_SERVER = str(ROOT / "tests" / "support" / "mcp_sdk_server.py")


# --- names and results ---


def test_names_fit_model_servers_and_are_unique_after_the_cut() -> None:
    taken = {"b__x"}
    long = "l" * 70
    tools = ["get weather/now", long, long + "2", "get.weather.now"]
    assert {tool: tool_name("my server", tool, taken) for tool in tools} == {
        "get weather/now": "my_server__get_weather_now",
        long: "my_server__" + "l" * 53,
        long + "2": "my_server__" + "l" * 51 + "_2",
        "get.weather.now": "my_server__get_weather_now_2",
    }
    assert {tool: tool_name("b", tool, taken) for tool in ("x", "y")} == {"x": "b__x_2", "y": "b__y"}


def test_a_result_is_text_or_structured_content_and_all_else_is_named(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    servers = start(script(tmp_path))
    assert call(servers, "one__echo", text="Zürich\n") == "Zürich\n"
    assert call(servers, "one__image") == "Here:\n[image, image/png, 3 bytes]"
    assert call(servers, "one__structured") == '{"degrees":21.5,"where":"Zürich"}'
    [tool] = [tool for tool in servers.tools() if tool.name == "one__echo"]
    assert (tool.source, tool.description) == ("MCP server one", "Does echo.")
    assert tool.parameters == {"type": "object", "properties": {}}
    assert tool.schema["function"]["name"] == "one__echo"


@pytest.mark.parametrize(
    ("tool", "said"),
    [
        ("fail", "the disk is full"),
        ("refuse", "no such city"),
        ("die", "the MCP server one ended during the call"),
        ("big", "the answer is too long"),
    ],
)
def test_what_goes_wrong_is_told_to_the_model(
    start: Callable[..., McpServers], tmp_path: Path, tool: str, said: str
) -> None:
    servers = start(script(tmp_path), script(tmp_path, name="other"))
    with pytest.raises(ValueError, match=said):
        call(servers, f"one__{tool}")
    assert call(servers, "other__echo", text="as ever") == "as ever"


def test_arguments_that_are_no_object_do_not_reach_the_server(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    servers = start(script(tmp_path))
    with pytest.raises(ValueError, match="not a JSON object"):
        by_name(servers)["one__echo"]("[1]", "call_1")
    assert "tools/call" not in methods(tmp_path)


def test_the_id_of_the_call_goes_to_the_server(start: Callable[..., McpServers], tmp_path: Path) -> None:
    assert json.loads(call(start(script(tmp_path)), "one__meta"))[CALL_ID] == "call_1"


# --- what a server wants that is not offered ---


def test_no_sampling_no_elicitation_and_no_roots_are_offered(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    servers = start(script(tmp_path))
    assert "Sampling not supported" in call(servers, "one__sample")
    [initialize] = [message for message in received(tmp_path) if message.get("method") == "initialize"]
    assert initialize["params"]["capabilities"] == {}
    assert call(servers, "one__echo", text="still there") == "still there"


# --- starts ---


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (McpServer("gone", "/no/such/program"), "the MCP server gone does not start: there is no program /no/such"),
        (McpServer("gone", "/no/such/program", cwd="/none"), "the MCP server gone does not start: "),
        (McpServer("away", url="http://127.0.0.1:9/mcp"), "the MCP server away does not start: "),
    ],
)
def test_a_server_that_is_not_there_is_named(start: Callable[..., McpServers], server: McpServer, said: str) -> None:
    with pytest.raises(McpError) as caught:
        start(server)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_a_server_that_ends_at_once_is_named_with_its_last_line(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    with pytest.raises(McpError, match=r"one does not start: .*the database is away"):
        start(script(tmp_path, "exit"))


def test_a_server_that_hangs_in_the_handshake_is_named_when_its_time_is_up(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    began_at = time.monotonic()
    with pytest.raises(McpError, match=r"one does not start: it did not answer within 1\.5 s"):
        start(script(tmp_path), script(tmp_path, "silent", timeout=1.5))
    assert time.monotonic() - began_at < 15


def test_a_server_that_ends_at_the_newer_handshake_is_asked_with_the_older(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    assert call(start(script(tmp_path, "old")), "one__echo", text="old") == "old"


def test_an_optional_server_is_tried_again(
    start: Callable[..., McpServers], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = start(script(tmp_path, "late", optional=True), script(tmp_path, name="other"))
    assert {tool.source for tool in servers.tools()} == {"MCP server other"}
    assert "MCP server one: " in caplog.text and "the database is away" in caplog.text
    (tmp_path / "one.ready").touch()
    wait_until(lambda: "one__echo" in by_name(servers))
    assert call(servers, "one__echo", text="late") == "late"


def test_a_program_that_is_slow_has_its_time(start: Callable[..., McpServers], tmp_path: Path) -> None:
    ready = threading.Timer(0.7, (tmp_path / "one.ready").touch)
    ready.start()
    assert call(start(script(tmp_path, "slow", timeout=TIMEOUT)), "one__echo", text="slow") == "slow"


def test_an_optional_program_that_is_slow_is_not_ended_while_it_starts(
    start: Callable[..., McpServers], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = start(script(tmp_path, "slow", optional=True, timeout=0.3), script(tmp_path, name="other"))
    assert {tool.source for tool in servers.tools()} == {"MCP server other"}
    assert "MCP server one: it did not answer within 0.3 s; going on without it for now" in caplog.text
    (tmp_path / "one.ready").touch()
    wait_until(lambda: "one__echo" in by_name(servers))
    assert call(servers, "one__echo", text="slow") == "slow"
    assert methods(tmp_path).count("initialize") == 1
    assert list(by_name(servers))[-1].startswith("one__")


def test_an_optional_program_that_is_still_starting_is_ended_with_the_server(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    servers = start(script(tmp_path, "slow", optional=True, timeout=0.3))
    began_at = time.monotonic()
    servers.close()
    assert time.monotonic() - began_at < 8


def test_an_address_that_is_silent_is_tried_again(start: Callable[..., McpServers]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        start(McpServer("silent", url=url, optional=True, timeout=1.5))
        listener.settimeout(TIMEOUT)
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # one for each handshake of the first try, and one for the next try
                stack.enter_context(listener.accept()[0])


def test_a_server_gets_its_variables_and_no_keys(
    start: Callable[..., McpServers], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    servers = start(script(tmp_path, env={"CITY": "Zürich"}))
    environ = Path(f"/proc/{call(servers, 'one__pid')}/environ").read_bytes().decode()
    assert "CITY=Zürich" in environ and "sk-secret" not in environ


# --- while it runs ---


def test_rubbish_between_messages_is_passed_over(
    start: Callable[..., McpServers], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = start(script(tmp_path, "noisy"))
    assert call(servers, "one__echo", text="clear") == "clear"
    assert caplog.text.count("lines to its output that are no messages") == 1


def test_of_500_tools_as_many_as_model_servers_take_are_offered(
    start: Callable[..., McpServers], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = start(script(tmp_path, "many"), script(tmp_path, name="other"))
    assert [tool.source for tool in servers.tools()].count("MCP server one") == 100
    assert "the others are left out" in caplog.text
    assert call(servers, "other__echo", text="as ever") == "as ever"


def test_a_list_of_tools_that_changed_is_followed(start: Callable[..., McpServers], tmp_path: Path) -> None:
    servers = start(script(tmp_path))
    assert "one__tool_14" not in by_name(servers)
    call(servers, "one__grow")
    wait_until(lambda: "one__tool_14" in by_name(servers))


def test_a_server_that_dies_is_started_again(start: Callable[..., McpServers], tmp_path: Path) -> None:
    servers = start(script(tmp_path))
    pid = int(call(servers, "one__pid"))
    os.kill(pid, signal.SIGKILL)

    def started_again() -> bool:
        try:
            return int(call(servers, "one__pid")) != pid
        except ValueError as error:
            assert "ended during the call" in str(error) or "is not running; it is being started again" in str(error)
            return False

    wait_until(started_again)


def run(servers: McpServers, stop: Cancellation, name: str, timeout: float = TIMEOUT) -> Any:
    return run_calls(by_name(servers), [ToolCall("call_1", name, "{}")], Budget(stop, 2 * TIMEOUT), timeout)


def test_a_time_out_is_passed_on(start: Callable[..., McpServers], tmp_path: Path) -> None:
    servers = start(script(tmp_path))
    [result] = run(servers, Cancellation(), "one__hang", timeout=1.0)
    assert result.error == "the tool did not answer in time"
    wait_until(lambda: "notifications/cancelled" in methods(tmp_path))
    messages = received(tmp_path)
    [called] = [message for message in messages if message.get("method") == "tools/call"]
    [cancelled] = [message for message in messages if message.get("method") == "notifications/cancelled"]
    assert cancelled["params"]["requestId"] == called["id"]


def test_a_cancel_is_passed_on(start: Callable[..., McpServers], tmp_path: Path) -> None:
    servers, stop = start(script(tmp_path)), Cancellation()
    results = run(servers, stop, "one__hang")
    stopper = threading.Thread(target=lambda: (wait_until(lambda: "tools/call" in methods(tmp_path)), stop.cancel()))
    stopper.start()
    with pytest.raises(Cancelled):
        next(results)
    stopper.join()
    wait_until(lambda: "notifications/cancelled" in methods(tmp_path))
    assert call(servers, "one__echo", text="still there") == "still there"


def test_a_call_that_runs_at_the_end_fails(start: Callable[..., McpServers], tmp_path: Path) -> None:
    servers = start(script(tmp_path))
    results = run(servers, Cancellation(), "one__hang")
    closer = threading.Thread(target=lambda: (wait_until(lambda: "tools/call" in methods(tmp_path)), servers.close()))
    closer.start()
    assert next(results).error
    closer.join()
    with pytest.raises(ValueError, match="has been ended"):
        by_name(servers)["one__echo"]("{}")


def test_a_server_that_does_not_want_to_end_is_killed_with_its_children(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    servers = start(script(tmp_path, "stubborn"))
    pids = int(call(servers, "one__pid")), int((tmp_path / "one.child").read_text())
    assert all(map(alive, pids))
    servers.close()
    assert not any(map(alive, pids))
    gc.collect()  # which warns of a program whose end nobody has heard of


def test_a_child_that_a_tool_has_forked_holds_up_no_end(start: Callable[..., McpServers], tmp_path: Path) -> None:
    servers = start(script(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that a child does not have
        child = os.fork()
    if child == 0:
        time.sleep(2 * TIMEOUT)
        os._exit(0)
    try:
        closer = threading.Thread(target=servers.close)
        closer.start()
        closer.join(TIMEOUT / 2)
        assert not closer.is_alive()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- the SDK's own server ---


@contextlib.contextmanager
def http_server(tmp_path: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    ready = tmp_path / "sdk.port"
    ready.unlink(missing_ok=True)
    with subprocess.Popen([sys.executable, SDK_SERVER, "http", str(tmp_path / "sdk.log"), str(port)]) as process:
        try:
            wait_until(ready.exists)
            yield process, f"http://127.0.0.1:{ready.read_text()}/mcp"
        finally:
            process.kill()


@pytest.fixture(params=["stdio", "http"])
def sdk(request: pytest.FixtureRequest, start: Callable[..., McpServers], tmp_path: Path) -> Iterator[McpServers]:
    if request.param == "stdio":
        yield start(McpServer("sdk", sys.executable, (SDK_SERVER, "stdio", str(tmp_path / "sdk.log"))))
    else:
        with http_server(tmp_path) as (_, url):
            yield start(McpServer("sdk", url=url, headers={"X-Test": "1"}))


def test_tools_of_an_sdk_server_work(sdk: McpServers) -> None:
    assert [tool.name for tool in sdk.tools()] == ["sdk__add", "sdk__slow", "sdk__trace", "sdk__big", "sdk__grow"]
    assert call(sdk, "sdk__add", a=1, b=2) == "3"
    with pytest.raises(ValueError, match="a"):
        call(sdk, "sdk__add", b=2)


def test_an_sdk_server_hears_a_cancel(sdk: McpServers, tmp_path: Path) -> None:
    [result] = run(sdk, Cancellation(), "sdk__slow", timeout=2.0)
    assert result.error == "the tool did not answer in time"
    wait_until(lambda: (tmp_path / "sdk.log").read_text() == "begun\ncancelled\n")


def test_an_answer_of_50_mb_costs_its_own_call(sdk: McpServers) -> None:
    with pytest.raises(ValueError, match=r"too long|exceed"):
        call(sdk, "sdk__big")
    assert call(sdk, "sdk__add", a=1, b=2) == "3"


def test_a_changed_list_of_an_sdk_server_is_followed(sdk: McpServers) -> None:
    assert call(sdk, "sdk__grow") == "done"
    wait_until(lambda: "sdk__grown" in by_name(sdk))
    assert call(sdk, "sdk__grown") == "grown"


def test_a_server_at_an_address_that_comes_back_is_found_again(
    start: Callable[..., McpServers], tmp_path: Path
) -> None:
    with http_server(tmp_path) as (_, url):
        servers = start(McpServer("sdk", url=url))
        assert call(servers, "sdk__add", a=1, b=2) == "3"
    with pytest.raises(ValueError, match=r"ended during the call|is not running"):
        call(servers, "sdk__add", a=1, b=2)
    with http_server(tmp_path, port=int(url.split(":")[2].split("/")[0])):

        def works() -> bool:
            with contextlib.suppress(ValueError):
                return call(servers, "sdk__add", a=1, b=2) == "3"
            return False

        wait_until(works)


def test_a_result_is_bounded_like_that_of_other_tools(start: Callable[..., McpServers], tmp_path: Path) -> None:
    text = call(start(script(tmp_path)), "one__echo", text="x" * (2 << 20))
    assert text == "x" * MAX_RESULT_CHARACTERS + " … (cut off)"


def test_no_text_of_a_message_is_in_the_log(
    start: Callable[..., McpServers], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "session_core.tools")
    servers = start(script(tmp_path))
    call(servers, "one__echo", text="a secret of the user")
    assert "a secret of the user" not in "".join(record.getMessage() for record in caplog.records)
