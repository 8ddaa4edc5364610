"""OpenAI's own clients, and others that speak their dialect, against a server process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.front_end import NODE, NPM
from tests.support.model_server import BREAK, STALL, ModelServer, answer, status, tool_call, tool_calls
from tests.support.server import TIMEOUT, Server

Serve = Callable[..., Server]
SUM = tool_call("calculator", {"expression": "15 * 23"})


@pytest.fixture
def server(model: ModelServer, serve: Serve, tmp_path: Path) -> Server:
    return serve(f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}")


def texts(server: Server, session: str) -> list[tuple[str, str]]:
    """What is stored of the conversation, as a client shows it: without tools."""
    shown = [one for one in server.messages(session) if one["role"] != "tool" and "tool_calls" not in one]
    return [(one["role"], one["content"]) for one in shown]


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none", base_url=f"{server.url}/v1") as client:
        yield client


@pytest.mark.parametrize("stream", [True, False])
def test_the_python_sdk_has_the_conversation_that_is_stored(
    client: openai.OpenAI, server: Server, model: ModelServer, stream: bool
) -> None:
    model.then(SUM, answer("It is ", "345."), answer("345 still."))
    messages: list[Any] = []
    headers = {"X-Session-Id": "python"}
    for question in ("What is 15 * 23?", "And now?"):
        messages.append({"role": "user", "content": question})
        create = client.chat.completions.with_raw_response.create
        raw = create(model="gpt-3.5-turbo", messages=messages, stream=stream, extra_headers=headers)
        session = raw.headers["X-Session-Id"]
        found = raw.parse()
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in found if chunk.choices)
        else:
            text = found.choices[0].message.content
        messages.append({"role": "assistant", "content": text})
    assert [(one["role"], one["content"]) for one in messages] == texts(server, session)
    assert [one.id for one in client.models.list()] == ["gpt-3.5-turbo"]


@pytest.mark.parametrize("headers", [{}, {"X-Session-Id": "tools"}])
@pytest.mark.parametrize("stream", [True, False])
def test_the_python_sdk_calls_tools_of_its_own_beside_those_of_the_server(
    client: openai.OpenAI, model: ModelServer, stream: bool, headers: dict[str, str]
) -> None:
    both = tool_calls(("calculator", {"expression": "6*7"}), ("weather", {"city": "Bern"}), ids=("call_1", "call_2"))
    model.then(both, answer("Rain."))
    tools: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    messages: list[Any] = [{"role": "user", "content": "Weather?"}]
    asked: dict[str, Any] = {"model": "gpt-3.5-turbo", "tools": tools, "extra_headers": headers}
    if stream:
        with client.chat.completions.stream(messages=messages, **asked) as events:
            found = events.get_final_completion()
    else:
        found = client.chat.completions.create(messages=messages, **asked)
    [call] = found.choices[0].message.tool_calls or []
    assert (call.id, found.choices[0].finish_reason) == ("call_2", "tool_calls")
    messages += [found.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert client.chat.completions.create(messages=messages, **asked).choices[0].message.content == "Rain."
    results = [one["content"] for one in model.requests[-1]["messages"] if one["role"] == "tool"]
    assert results == (["42", "rain"] if headers else ["rain"])


def test_the_python_sdk_raises_its_own_errors(client: openai.OpenAI, model: ModelServer) -> None:
    question: list[Any] = [{"role": "user", "content": "Hi"}]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=question)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\].function.name must"):
        tools: Any = [{"type": "function", "function": {"name": "no name", "parameters": {}}}]
        client.chat.completions.create(model="gpt-3.5-turbo", messages=question, tools=tools)
    model.default = status(401, {})
    with pytest.raises(openai.InternalServerError) as failed:
        client.with_options(max_retries=0).chat.completions.create(model="gpt-3.5-turbo", messages=question)
    assert failed.value.code == "model_unauthorized"
    model.default = answer("Hel", BREAK)
    with pytest.raises(openai.APIError):
        for _ in client.chat.completions.create(model="gpt-3.5-turbo", messages=question, stream=True):
            pass


def test_a_client_that_stops_reading_its_stream_stops_the_turn(
    client: openai.OpenAI, server: Server, model: ModelServer
) -> None:
    model.then(answer("Hel", STALL))
    question: list[Any] = [{"role": "user", "content": "Hi"}]
    with client.chat.completions.create(
        model="gpt-3.5-turbo", messages=question, stream=True, extra_headers={"X-Session-Id": "stop"}
    ) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
    assert model.closed.wait(TIMEOUT)
    [session] = server.request("GET", "/sessions").json["sessions"]
    running = True
    while running:
        running = server.request("GET", f"/sessions/{session}").json["running"]
    last = server.messages(session)[-1]
    assert (last["content"], last["status"]) == ("Hel", "cancelled")


def test_the_sdks_own_retries_find_a_server_that_was_killed_in_between(
    server: Server, serve: Serve, model: ModelServer, tmp_path: Path
) -> None:
    model.then(SUM, answer("It ", STALL), answer("It is 345."))
    question: list[Any] = [{"role": "user", "content": "What is 15 * 23?"}]
    headers = {"X-Session-Id": "killed"}
    with (
        openai.OpenAI(api_key="none", base_url=f"{server.url}/v1", max_retries=10) as client,
        ThreadPoolExecutor() as pool,
    ):
        asked = pool.submit(
            client.chat.completions.create, model="gpt-3.5-turbo", messages=question, extra_headers=headers
        )
        model.wait_for(2)
        threading.Event().wait(0.4)
        server.kill()
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}", f"-port={server.port}")
        again = serve(*flags)
        assert asked.result(2 * TIMEOUT).choices[0].message.content == "It is 345."
    [session] = again.request("GET", "/sessions").json["sessions"]
    stored = again.messages(session)
    assert [one["role"] for one in stored if one["role"] in ("user", "tool")] == ["user", "tool"]
    assert stored[-1]["content"] == "It is 345."


@pytest.mark.skipif(
    not (NODE.exists() and (NPM / "node_modules" / "openai").exists()),
    reason="needs the packages of tests/npm: npm install --prefix tests/npm",
)
@pytest.mark.parametrize("how", ["stream", "whole"])
def test_the_node_sdk_has_the_conversation_that_is_stored(server: Server, model: ModelServer, how: str) -> None:
    model.then(SUM, answer("It is ", "345."), answer("345 still."))
    command = [str(NODE), "openai.mjs", f"{server.url}/v1", "node", how]
    done = subprocess.run(command, cwd=NPM, capture_output=True, text=True, timeout=2 * TIMEOUT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [session] = server.request("GET", "/sessions").json["sessions"]
    assert [(one["role"], one["content"]) for one in found["messages"]] == texts(server, session)
    assert found["models"] == ["gpt-3.5-turbo"]


@pytest.mark.skipif(importlib.util.find_spec("llm") is None, reason="needs the package llm")
def test_llm_goes_on_with_a_session(server: Server, model: ModelServer, tmp_path: Path) -> None:
    home = tmp_path / "llm"
    home.mkdir()
    (home / "extra-openai-models.yaml").write_text(
        "- model_id: here\n  model_name: gpt-3.5-turbo\n"
        f"  api_base: {server.url}/v1\n  headers:\n    X-Session-Id: llm\n"
    )
    model.then(answer("It is 345."), answer("345 still."))
    env = {**os.environ, "LLM_USER_PATH": str(home)}
    for arguments in (["-m", "here", "What is 15 * 23?"], ["-c", "And now?"]):
        command = [sys.executable, "-W", "ignore", "-m", "llm", *arguments, "--key", "none"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=2 * TIMEOUT, input="")
        assert done.returncode == 0, done.stderr
    [session] = server.request("GET", "/sessions").json["sessions"]
    assert texts(server, session) == [
        ("user", "What is 15 * 23?"),
        ("assistant", "It is 345."),
        ("user", "And now?"),
        ("assistant", "345 still."),
    ]
