"""Tools in responses: the client's own functions, those of the server, approval, and reasoning that goes back."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from session_core.stores.files import FileStorage
from tests.support.client import Client, error_of, json_of
from tests.support.letters import send, sent
from tests.support.model_server import answer, frames, status, tool_call, tool_calls, wait
from tests.support.responses import (
    check_input_item,
    check_item,
    checked,
    output_text,
    sdk,
    stream_events,
    types_of,
    whole_stream,
)
from tests.support.server import TIMEOUT, wait_until
from tests.support.well_formed import assert_well_formed

PATH = "/v1/responses"
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
ASK = tool_call("weather", {"city": "Bern"}, text="I look.", id="call_w")
QUESTION = [{"role": "user", "content": "Weather?"}]
OUTPUT = {"type": "function_call_output", "call_id": "call_w", "output": "rain"}
SEND = tool_call("send", {"to": "Ann"}, id="call_s")


def look() -> str:
    """Looks around."""
    return "all is well"


@pytest.fixture
def client() -> Iterator[Client]:
    sent.clear()
    with Client(tools=[look, send], timeout=20.0) as client:
        yield client


def ask(client: Client, given: Any = "Weather?", **body: Any) -> TestResponse:
    return client.request("POST", PATH, {"input": given, "tools": [WEATHER], **body})


def told(client: Client) -> list[tuple[str, str]]:
    assert_well_formed(client.model.requests[-1])
    return [(one["role"], one["content"]) for one in client.model.requests[-1]["messages"]]


def items(client: Client, response: dict[str, Any]) -> list[dict[str, Any]]:
    conversation = f"conv_{response['id'].split('_')[1]}"
    found: list[dict[str, Any]] = json_of(client.get(f"/v1/conversations/{conversation}/items?order=asc"))["data"]
    for item in found:
        check_item(item)
    return found


def item_types(found: list[dict[str, Any]]) -> list[str]:
    return [item["type"] for item in found]


# --- functions of the client ---


def test_a_function_of_the_client_is_called_and_its_output_goes_on(client: Client) -> None:
    client.model.then(ASK, answer("It rains."))
    calling = checked(ask(client))
    assert item_types(calling["output"]) == ["message", "function_call"]
    assert calling["output"][1].items() >= {"call_id": "call_w", "arguments": '{"city": "Bern"}'}.items()
    answered = checked(ask(client, [OUTPUT], previous_response_id=calling["id"]))
    assert output_text(answered) == "It rains."
    assert told(client) == [("user", "Weather?"), ("assistant", "I look."), ("tool", "rain")]
    assert item_types(items(client, answered)) == [
        *("message", "message", "function_call", "function_call_output", "message")
    ]


def test_both_responses_of_a_call_can_be_had_again(client: Client) -> None:
    client.model.then(ASK, answer("It ", "rains."))
    calling = whole_stream(ask(client, stream=True))
    first = calling[-1]["response"]["id"]
    answered = whole_stream(ask(client, [OUTPUT], previous_response_id=first, stream=True, metadata={"n": "2"}))
    second = answered[-1]["response"]["id"]
    assert first != second
    for id, events in ((first, calling), (second, answered)):
        assert whole_stream(client.get(f"{PATH}/{id}?stream=true")) == events
        rest = client.get(f"{PATH}/{id}?stream=true&starting_after=5")
        assert list(stream_events(rest.text)) == events[6:]
        assert checked(client.get(f"{PATH}/{id}")) == events[-1]["response"]
    page = json_of(client.get(f"{PATH}/{second}/input_items"))
    (item,) = page["data"]
    check_input_item(item)
    assert item.items() >= OUTPUT.items()


def test_a_call_is_streamed_with_its_arguments(client: Client) -> None:
    client.model.then(tool_call("weather", {"city": "Bern"}, id="call_w"))
    events = whole_stream(ask(client, stream=True))
    assert types_of(events) == [
        *("created", "in_progress", "output_item.added"),
        *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"),
    ]


def test_the_client_of_openai_calls_functions_of_its_own(client: Client) -> None:
    client.model.then(ASK, answer("It rains."))
    with sdk(client) as openai_client:
        tools: Any = [WEATHER]
        history: Any = [{"role": "user", "content": "Weather?"}]
        first = openai_client.responses.create(input=history, tools=tools, store=False, model="gpt-3.5-turbo")
        history += [item.to_dict() for item in first.output] + [OUTPUT]
        second = openai_client.responses.create(input=history, tools=tools, store=False, model="gpt-3.5-turbo")
    assert second.output_text == "It rains."
    assert told(client) == [("user", "Weather?"), ("assistant", "I look."), ("tool", "rain")]


def test_the_whole_conversation_may_come_again_with_an_output(client: Client) -> None:
    client.model.then(ASK, answer("It rains."))
    history: list[Any] = [{"role": "user", "content": "Weather?"}]
    history += checked(ask(client, history))["output"] + [OUTPUT]
    response = checked(ask(client, history))
    assert told(client) == [("user", "Weather?"), ("assistant", "I look."), ("tool", "rain")]
    assert checked(client.get(f"{PATH}/{response['id']}")) == response
    page = json_of(client.get(f"{PATH}/{response['id']}/input_items?order=asc"))
    assert item_types(page["data"]) == ["message", "message", "function_call", "function_call_output"]


def test_the_clients_own_copy_of_a_call_that_waits_is_no_second_call(client: Client) -> None:
    client.model.then(ASK, answer("It rains."))
    calling = checked(ask(client))
    checked(ask(client, [calling["output"][1], OUTPUT], previous_response_id=calling["id"]))
    assert told(client) == [("user", "Weather?"), ("assistant", "I look."), ("tool", "rain")]


def test_an_output_and_a_new_question_may_come_together(client: Client) -> None:
    client.model.then(ASK, answer("It rains."))
    calling = checked(ask(client))
    question = {"role": "user", "content": "And Basel?"}
    checked(ask(client, [OUTPUT, question], previous_response_id=calling["id"]))
    assert [text for _, text in told(client)][2] == "rain"
    assert told(client)[-1] == ("user", "And Basel?")


def test_an_output_and_another_call_of_the_client_may_come_together(client: Client) -> None:
    client.model.then(ASK, answer("It rains."))
    calling = checked(ask(client))
    call = {"type": "function_call", "call_id": "call_x", "name": "weather", "arguments": "{}"}
    given = [OUTPUT, call, {**OUTPUT, "call_id": "call_x", "output": "snow"}]
    checked(ask(client, given, previous_response_id=calling["id"]))
    assert [text for role, text in told(client) if role == "tool"] == ["rain", "snow"]


def test_a_question_in_place_of_an_output_denies_the_call(client: Client) -> None:
    client.model.then(ASK)
    calling = checked(ask(client))
    checked(ask(client, "Never mind.", previous_response_id=calling["id"]))
    assert told(client)[2] == ("tool", "not executed: the user went on")


@pytest.mark.parametrize("call_id", ["call_x", ""])
def test_an_output_of_no_call_is_refused(client: Client, call_id: str) -> None:
    client.model.then(ASK)
    calling = checked(ask(client))
    response = ask(client, [{**OUTPUT, "call_id": call_id}], previous_response_id=calling["id"])
    assert error_of(response) == (400, "invalid_request")


def test_an_earlier_call_is_answered_in_another_way_in_a_branch(client: Client) -> None:
    client.model.then(ASK, answer("It rains."), answer("It snows."))
    calling = checked(ask(client))
    checked(ask(client, [OUTPUT], previous_response_id=calling["id"]))
    branch = checked(ask(client, [{**OUTPUT, "output": "snow"}], previous_response_id=calling["id"]))
    assert output_text(branch) == "It snows."
    assert told(client)[-1] == ("tool", "snow")


def test_a_custom_tool_takes_a_text(client: Client) -> None:
    client.model.then(tool_call("patch", {"input": "*** Begin"}, id="call_p"), answer("Done."))
    custom = {
        "type": "custom",
        "name": "patch",
        "format": {"type": "grammar", "syntax": "lark", "definition": "x: y"},
    }
    events = whole_stream(ask(client, "Patch!", tools=[custom], stream=True))
    response = events[-1]["response"]
    assert response["output"][0].items() >= {"type": "custom_tool_call", "input": "*** Begin"}.items()
    assert "x: y" in client.model.requests[0]["tools"][-1]["function"]["description"]
    output = {"type": "custom_tool_call_output", "call_id": "call_p", "output": "ok"}
    checked(ask(client, [output], tools=[custom], previous_response_id=response["id"]))
    assert told(client)[-1] == ("tool", "ok")
    assert whole_stream(client.get(f"{PATH}/{response['id']}?stream=true")) == events


def test_a_namespace_of_functions_is_offered(client: Client) -> None:
    client.model.then(tool_call("agents__close", {}, id="call_c"), answer("Done."))
    space = {"type": "namespace", "name": "agents", "description": "", "tools": [{**WEATHER, "name": "close"}]}
    response = checked(ask(client, "Close!", tools=[space]))
    (call,) = response["output"]
    assert (call["namespace"], call["name"]) == ("agents", "close")
    output = {"type": "function_call_output", "call_id": "call_c", "output": "ok"}
    history = [{"role": "user", "content": "Close!"}, call, output]
    checked(ask(client, history, tools=[space], store=False))
    assert client.model.requests[-1]["messages"][1]["tool_calls"][0]["function"]["name"] == "agents__close"
    assert items(client, response)[1]["namespace"] == "agents"


def test_a_choice_of_a_function_goes_to_the_model(client: Client) -> None:
    ask(client, tool_choice={"type": "function", "name": "weather"}, parallel_tool_calls=False)
    assert client.model.requests[-1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert client.model.requests[-1]["parallel_tool_calls"] is False


# --- tools of the server ---


def test_a_call_of_the_server_is_no_call_of_the_client(client: Client) -> None:
    client.model.then(tool_calls(("look", {}), ("weather", {}), ids=["call_1", "call_2"]))
    events = whole_stream(ask(client, stream=True))
    output = events[-1]["response"]["output"]
    assert item_types(output) == ["mcp_call", "function_call"]
    shown = {"server_label": "session_server", "name": "look", "output": "all is well", "status": "completed"}
    assert output[0].items() >= shown.items()


def test_a_call_that_fails_is_told_so(client: Client) -> None:
    client.model.then(tool_call("abacus", {}), answer("None."))
    response = checked(ask(client))
    assert response["output"][0]["status"] == "failed"
    assert "no tool of this name" in response["output"][0]["error"]["content"]


def test_the_clients_copy_of_a_call_of_the_server_is_taken_back(client: Client) -> None:
    client.model.then(tool_call("look", {}), answer("Well."))
    history: list[Any] = [{"role": "user", "content": "Look!"}]
    history += checked(ask(client, history, store=False))["output"] + [{"role": "user", "content": "Again!"}]
    checked(ask(client, history, store=False))
    assert told(client) == [
        *[("user", "Look!"), ("assistant", ""), ("tool", "all is well"), ("assistant", "Well.")],
        ("user", "Again!"),
    ]


# --- approval ---


def approval(approve: bool) -> dict[str, Any]:
    return {"type": "mcp_approval_response", "approval_request_id": "mcpr_call_s", "approve": approve}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("approve", [True, False])
def test_a_call_runs_when_it_is_approved(client: Client, approve: bool, stored: bool) -> None:
    client.model.then(SEND, answer("Done."))
    asking = checked(ask(client, "Write!", store=stored))
    (request,) = asking["output"]
    assert request.items() >= {"type": "mcp_approval_request", "id": "mcpr_call_s", "name": "send"}.items()
    assert not sent
    given = [approval(approve)] if stored else [{"role": "user", "content": "Write!"}, request, approval(approve)]
    place = {"previous_response_id": asking["id"]} if stored else {"store": False}
    events = whole_stream(ask(client, given, stream=True, **place))
    output = events[-1]["response"]["output"]
    assert sent == (["Ann"] if approve else [])
    assert item_types(output) == (["mcp_call", "message"] if approve else ["message"])
    assert told(client)[-1] == ("tool", "sent to Ann" if approve else told(client)[-1][1])
    if stored:
        id = events[-1]["response"]["id"]
        assert whole_stream(client.get(f"{PATH}/{id}?stream=true")) == events
        found = items(client, asking)
        assert item_types(found)[:3] == ["message", "mcp_approval_request", "mcp_approval_response"]
        assert [item["id"] for item in found[3:]] == [item["id"] for item in output]
        assert found[2]["approve"] is approve


def test_what_is_approved_runs_before_a_new_question(client: Client) -> None:
    client.model.then(SEND, answer("Done."))
    asking = checked(ask(client, "Write!"))
    question = {"role": "user", "content": "And then?"}
    checked(ask(client, [approval(True), question], previous_response_id=asking["id"]))
    assert sent == ["Ann"]
    assert [text for _, text in told(client) if text] == [*("Write!", "sent to Ann", "(interrupted)", "And then?")]


@pytest.mark.parametrize("count", [1, 2])
def test_a_call_whose_item_is_deleted_waits_no_more(client: Client, count: int) -> None:
    calls = [tool_call("send", {"to": name}, id=f"call_{name}") for name in ("Ann", "Bob")[:count]]
    client.model.then(calls[0] if count == 1 else tool_calls(("send", {"to": "Ann"}), ("send", {"to": "Bob"})))
    asking = checked(ask(client, "Write!"))
    first, *others = [item["id"] for item in asking["output"]]
    conversation = f"conv_{asking['id'].split('_')[1]}"
    assert client.request("DELETE", f"/v1/conversations/{conversation}/items/{first}").status_code == 200
    assert item_types(items(client, asking)) == ["message", *["mcp_approval_request"] * len(others)]
    answers = [
        {"type": "mcp_approval_response", "approval_request_id": id, "approve": True} for id in [first, *others]
    ]
    late = ask(client, answers, previous_response_id=asking["id"])
    assert (error_of(late), sent) == ((400, "invalid_request"), [])
    session = f"/sessions/session-{asking['id'].split('_')[1]}"
    given = {id.removeprefix("mcpr_"): {"approve": True} for id in [first, *others]}
    assert client.request("POST", f"{session}/run", {"answers": given}).status_code == (400 if others else 409)
    if others:
        checked(ask(client, answers[1:], previous_response_id=asking["id"]))
        assert sent == ["Bob"]
    checked(ask(client, "And now?", conversation=conversation))
    assert not others or [role for role, _ in told(client)] == ["user", "assistant", "tool", "assistant", "user"]
    assert others or [text for _, text in told(client)] == ["Write!\n\nAnd now?"]


# --- reasoning ---

THOUGHT: list[Any] = [
    {"choices": [{"delta": {"reasoning_content": "Rain?"}}]},
    {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "call_w", "function": {"name": "weather"}}]}}]},
    {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    "[DONE]",
]


@pytest.mark.parametrize("stream", [True, False])
def test_reasoning_goes_back_to_the_model_from_a_client_that_keeps_it(client: Client, stream: bool) -> None:
    client.model.then(frames(*THOUGHT), answer("It rains."))
    history: list[Any] = [{"role": "user", "content": "Weather?"}]
    body: dict[str, Any] = {"store": False, "include": ["reasoning.encrypted_content"]}
    if stream:
        events = whole_stream(ask(client, history, stream=True, **body))
        output = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    else:
        output = checked(ask(client, history, **body))["output"]
    assert item_types(output) == ["reasoning", "function_call"]
    assert output[0]["encrypted_content"]
    checked(ask(client, [*history, *output, OUTPUT], **body))
    assert client.model.requests[-1]["messages"][1]["reasoning_content"] == "Rain?"


def test_reasoning_that_is_no_text_is_none(client: Client) -> None:
    sealed = "sealed." + base64.urlsafe_b64encode(b'{"reasoning":[5]}').decode()
    reasoning = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    response = checked(ask(client, [reasoning, {"role": "assistant", "content": "Hi"}, *QUESTION]))
    stored = json_of(client.get(f"/sessions/session-{response['id'].split('_')[1]}"))["messages"]
    assert "reasoning" not in stored[0]


def test_reasoning_has_no_sealed_content_unless_that_is_asked_for(client: Client) -> None:
    client.model.then(frames(*THOUGHT))
    response = checked(ask(client))
    assert "encrypted_content" not in json.dumps(response)
    with sdk(client) as openai_client:
        again = openai_client.responses.retrieve(response["id"], include=["reasoning.encrypted_content"])
    assert again.output[0].encrypted_content  # type: ignore[union-attr]


# --- retries ---


def keyed(client: Client, key: str, given: Any = "Weather?", **body: Any) -> TestResponse:
    sent = {"input": given, "tools": [WEATHER], **body}
    return client.request("POST", PATH, sent, {"Idempotency-Key": key})


def test_a_retry_of_a_response_whose_call_was_answered_is_that_response(client: Client) -> None:
    client.model.then(ASK, answer("It rains."))
    asked = checked(keyed(client, "asked"))
    answered = checked(keyed(client, "answered", [OUTPUT], previous_response_id=asked["id"]))
    assert checked(keyed(client, "asked")) == asked
    assert checked(keyed(client, "answered", [OUTPUT], previous_response_id=asked["id"])) == answered


def test_a_retry_where_another_process_has_taken_the_answer_is_that_response(tmp_path: Path) -> None:
    stores = [FileStorage.open(str(tmp_path)) for _ in range(2)]
    with Client(ASK, storage=stores[0]) as first, Client(answer("It rains."), storage=stores[1]) as second:
        asked = checked(keyed(first, "asked"))
        checked(ask(second, [OUTPUT], previous_response_id=asked["id"]))
        assert checked(keyed(first, "asked")) == asked


def test_a_retry_joins_another_try_of_which_nothing_is_stored_yet(client: Client) -> None:
    go = threading.Event()
    client.model.then(status(401, {"error": "no"}), answer(wait(go), "It rains."))
    assert keyed(client, "asked").status_code == 502
    again = client.later(keyed, client, "asked")
    wait_until(lambda: len(client.model.requests) == 2)
    body = {"input": "Weather?", "tools": [WEATHER], "stream": True}
    joined = client.app.test_client().post(PATH, json=body, headers={"Idempotency-Key": "asked"})
    assert joined.status_code == 200
    go.set()
    assert whole_stream(joined)[-1]["response"] == checked(again.result(TIMEOUT))
