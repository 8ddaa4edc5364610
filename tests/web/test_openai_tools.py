"""Tools of the client in Chat Completions, beside those of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from werkzeug.test import TestResponse

from agent import tool
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import BREAK, answer, status, tool_call, tool_calls
from tests.support.well_formed import assert_well_formed

PATH = "/v1/chat/completions"
SESSION = {"X-Session-Id": "chat-1"}
CHAT = {"X-OpenWebUI-Chat-Id": "chat-1"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASK = tool_call("weather", {"city": "Bern"}, text="I look.", id="call_w")
USER = {"role": "user", "content": "Weather in Bern?"}
CALL = {"id": "call_w", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
CALLING = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_w", "content": "rain"}
ANSWERED = [USER, CALLING, RESULT]


def look() -> str:
    """Looks around."""
    return "all is well"


@tool(needs_approval=True)
def send() -> str:
    """Sends a letter."""
    raise AssertionError


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(tools=[look, send], timeout=20.0) as client:
        yield client


def post(client: Client, messages: list[Any], headers: Mapping[str, str] | None = None, **body: Any) -> TestResponse:
    return client.request("POST", PATH, {"messages": messages, "tools": [WEATHER], **body}, headers)


def choice(response: TestResponse) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = json_of(response)["choices"][0]
    return found


def told(client: Client) -> list[tuple[str, str]]:
    assert_well_formed(client.model.requests[-1])
    return [(one["role"], one["content"]) for one in client.model.requests[-1]["messages"]]


def stored(client: Client) -> list[dict[str, Any]]:
    """All messages of the one session, also those that were replaced."""
    [session] = json_of(client.request("GET", "/sessions"))["sessions"]
    found: list[dict[str, Any]] = json_of(client.request("GET", f"/sessions/{session}?replaced=true"))["messages"]
    return found


def offered(client: Client) -> list[str]:
    return [one["function"]["name"] for one in client.model.requests[-1]["tools"]]


@pytest.mark.parametrize("headers", [None, SESSION, CHAT])
def test_a_call_of_the_clients_tool_comes_back_to_it(client: Client, headers: Any) -> None:
    client.model.then(ASK)
    found = choice(post(client, [USER], headers))
    assert found["finish_reason"] == "tool_calls"
    assert found["message"] == {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
    assert offered(client) == ["look", "weather"]


@pytest.mark.parametrize("headers", [None, SESSION, CHAT])
def test_the_results_of_the_client_go_on(client: Client, headers: Any) -> None:
    client.model.then(ASK, answer("Rain."))
    post(client, [USER], headers)
    found = choice(post(client, ANSWERED, headers))
    assert (found["finish_reason"], found["message"]["content"]) == ("stop", "Rain.")
    assert told(client) == [("user", USER["content"]), ("assistant", "I look."), ("tool", "rain")]
    final = {"role": "assistant", "content": "Rain."}
    assert choice(post(client, [*ANSWERED, final, {"role": "user", "content": "Thanks"}], headers))
    assert told(client)[-3:] == [("tool", "rain"), ("assistant", "Rain."), ("user", "Thanks")]
    if headers:
        [session] = json_of(client.get("/sessions"))["sessions"]
        roles = [one["role"] for one in client.messages(session)]
        assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant"]


def test_a_stream_tells_the_calls_in_one_piece_before_its_end(client: Client) -> None:
    client.model.then(tool_calls(("weather", {}), ("weather", {}), ids=("call_a", "call_b")))
    frames = post(client, [USER], stream=True).text.splitlines()
    chunks = [json.loads(line[6:])["choices"][0] for line in frames if line.startswith("data: {")]
    calls = [call for one in chunks for call in one["delta"].get("tool_calls", ())]
    assert [(call["index"], call["id"], call["type"]) for call in calls] == [
        (0, "call_a", "function"),
        (1, "call_b", "function"),
    ]
    assert chunks[-1] == {"index": 0, "delta": {}, "finish_reason": "tool_calls"}


@pytest.mark.parametrize("headers", [None, SESSION])
def test_calls_of_the_servers_tools_run_here_and_are_not_seen(client: Client, headers: Any) -> None:
    both = tool_calls(("look", {}), ("weather", {"city": "Bern"}), ids=("call_l", "call_w"))
    client.model.then(both, answer("Rain."))
    found = choice(post(client, [USER], headers))
    assert found["message"]["tool_calls"] == [CALL] and found["message"]["content"] is None
    choice(post(client, ANSWERED, headers))
    if headers:
        assert told(client)[-2:] == [("tool", "all is well"), ("tool", "rain")]


def test_of_two_tools_of_one_name_the_clients_is_offered(client: Client) -> None:
    own = {"type": "function", "function": {"name": "look", "description": "mine", "parameters": {"type": "object"}}}
    client.model.then(tool_call("look", {}, id="call_l"))
    found = choice(post(client, [USER], tools=[own]))
    assert [call["id"] for call in found["message"]["tool_calls"]] == ["call_l"]
    assert client.model.requests[-1]["tools"] == [own]


def test_tools_that_need_approval_are_not_offered_and_never_run(client: Client) -> None:
    client.model.then(tool_call("send", {}))
    assert choice(post(client, [USER], tools=[]))["finish_reason"] == "stop"
    assert offered(client) == ["look"]
    assert told(client)[-1][1].startswith("error: there is no tool of this name")


def test_old_functions_are_offered_as_tools(client: Client) -> None:
    post(client, [USER], tools=None, functions=[{"name": "weather"}], function_call={"name": "weather"})
    assert client.model.requests[-1]["tools"][-1] == {"type": "function", "function": {"name": "weather"}}
    assert client.model.requests[-1]["tool_choice"] == {"type": "function", "function": {"name": "weather"}}


FUNCTIONS: dict[str, Any] = {"tools": None, "functions": [{"name": "weather"}]}
FUNCTION_CALL = {"name": "weather", "arguments": '{"city": "Bern"}'}
FUNCTION_RESULT = {"role": "function", "name": "weather", "content": "rain"}


@pytest.mark.parametrize("headers", [None, SESSION, CHAT])
def test_a_call_of_an_old_function_comes_back_as_one_and_its_result_goes_on(client: Client, headers: Any) -> None:
    client.model.then(tool_calls(("look", {}), ("weather", {"city": "Bern"})), answer("Rain."))
    found = choice(post(client, [USER], headers, **FUNCTIONS))
    assert found["finish_reason"] == "function_call"
    assert found["message"] == {"role": "assistant", "content": None, "function_call": FUNCTION_CALL}
    messages = [USER, found["message"], FUNCTION_RESULT]
    for _ in range(2):  # the second time it is a retry
        assert choice(post(client, messages, headers, **FUNCTIONS))["message"]["content"] == "Rain."
        client.model.then(answer("Rain."))
    calls = [("assistant", ""), *([("tool", "all is well")] if headers else []), ("tool", "rain")]
    assert told(client) == [("user", USER["content"]), *calls]
    post(client, [*messages, {"role": "assistant", "content": "Rain."}, {"role": "user", "content": "So?"}], headers)
    assert told(client) == [("user", USER["content"]), *calls, ("assistant", "Rain."), ("user", "So?")]
    assert headers is None or all("replaced_by" not in one for one in stored(client))


def test_of_several_calls_of_old_functions_the_client_gets_the_first(client: Client) -> None:
    client.model.then(tool_calls(("weather", {"city": "Bern"}), ("weather", {"city": "Rome"})))
    response = post(client, [USER], SESSION, stream=True, **FUNCTIONS)
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert chunks[-2]["choices"][0]["delta"] == {"function_call": FUNCTION_CALL}
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    messages = [USER, {"role": "assistant", "content": None, "function_call": FUNCTION_CALL}, FUNCTION_RESULT]
    choice(post(client, messages, SESSION, **FUNCTIONS))
    assert told(client)[2:] == [
        ("tool", "rain"),
        ("tool", "not executed: the client takes one call at a time"),
    ]


def test_a_result_of_a_function_that_does_not_wait_is_answered_from_the_transcript(client: Client) -> None:
    call = {"name": "other", "arguments": "{}"}
    result = {"role": "function", "name": "other", "content": "done"}
    client.model.then(ASK)
    post(client, [USER], SESSION, **FUNCTIONS)
    choice(post(client, [USER, {"role": "assistant", "function_call": call}, result], SESSION, **FUNCTIONS))
    assert told(client)[-1] == ("tool", "done")
    assert [one["role"] for one in stored(client)] == ["user", "assistant"]


def test_tool_choice_goes_with_the_first_request_and_parallel_tool_calls_with_each(client: Client) -> None:
    client.model.then(tool_call("look", {}))
    post(client, [USER], tool_choice="required", parallel_tool_calls=False)
    first, second = client.model.requests
    assert (first["tool_choice"], first["parallel_tool_calls"]) == ("required", False)
    assert "tool_choice" not in second and second["parallel_tool_calls"] is False


@pytest.mark.parametrize("headers", [SESSION, CHAT])
def test_results_and_a_new_question_come_together(client: Client, headers: Any) -> None:
    client.model.then(ASK)
    post(client, [USER], headers)
    choice(post(client, [*ANSWERED, {"role": "user", "content": "In German"}], headers))
    texts = [text for text in told(client) if text != ("assistant", "(interrupted)")]
    assert texts[-2:] == [("tool", "rain"), ("user", "In German")]
    assert len(texts) == 4


@pytest.mark.parametrize("headers", [None, SESSION, CHAT])
def test_a_further_question_has_the_calls_and_results_before_it(client: Client, headers: Any) -> None:
    client.model.then(ASK, answer("Rain."))
    post(client, [USER], headers)
    post(client, ANSWERED, headers)
    transcript = [*ANSWERED, {"role": "assistant", "content": "Rain."}, {"role": "user", "content": "Sure?"}]
    choice(post(client, transcript, headers))
    texts = [("assistant", "I look."), ("tool", "rain"), ("assistant", "Rain."), ("user", "Sure?")]
    assert told(client) == [("user", USER["content"]), *texts]
    assert headers is None or all("replaced_by" not in one for one in stored(client))


@pytest.mark.parametrize("headers", [SESSION, CHAT])
def test_an_answer_that_was_written_anew_keeps_the_calls_before_it(client: Client, headers: Any) -> None:
    client.model.then(ASK, answer("Rain."))
    post(client, [USER], headers)
    post(client, ANSWERED, headers)
    choice(
        post(
            client,
            [*ANSWERED, {"role": "assistant", "content": "Wet."}, {"role": "user", "content": "Sure?"}],
            headers,
        )
    )
    texts = [("assistant", "I look."), ("tool", "rain"), ("assistant", "Wet."), ("user", "Sure?")]
    assert told(client) == [("user", USER["content"]), *texts]


@pytest.mark.parametrize("headers", [None, SESSION, CHAT])
def test_a_new_question_without_the_results_denies_the_calls(client: Client, headers: Any) -> None:
    client.model.then(ASK)
    post(client, [USER], headers)
    choice(post(client, [USER, CALLING, {"role": "user", "content": "Never mind"}], headers))
    assert ("tool", "not executed: the user went on") in told(client)
    assert told(client)[-1] == ("user", "Never mind")


@pytest.mark.parametrize("headers", [None, SESSION])
def test_results_that_are_incomplete_are_refused(client: Client, headers: Any) -> None:
    client.model.then(tool_calls(("weather", {}), ("weather", {}), ids=("call_a", "call_b")))
    calling = choice(post(client, [USER], headers))["message"]
    response = post(client, [USER, calling, {**RESULT, "tool_call_id": "call_a"}], headers)
    assert error_of(response) == (400, "invalid_request")
    assert "call_b" in json_of(response)["error"]["message"]


def test_a_retry_of_results_is_the_same_turn(client: Client) -> None:
    client.model.then(ASK, answer("Rain."))
    post(client, [USER], SESSION)
    for _ in range(2):
        assert choice(post(client, ANSWERED, SESSION))["message"]["content"] == "Rain."
    assert len(client.model.requests) == 2


def test_a_retry_of_the_question_that_waits_gets_the_same_calls(client: Client) -> None:
    client.model.then(ASK)
    found = [choice(post(client, [USER], CHAT)) for _ in range(2)]
    assert found[0] == found[1] and len(client.model.requests) == 1


def test_results_whose_attempt_failed_are_tried_again(client: Client) -> None:
    client.model.then(ASK, status(401, {}), answer("Ra", BREAK), answer("Rain."))
    post(client, [USER], SESSION)
    assert post(client, ANSWERED, SESSION).status_code == 502
    assert post(client, ANSWERED, SESSION).status_code == 502
    assert choice(post(client, ANSWERED, SESSION))["message"]["content"] == "Rain."
    assert told(client) == [("user", USER["content"]), ("assistant", "I look."), ("tool", "rain")]


def test_results_under_a_key_count_once(client: Client) -> None:
    client.model.then(ASK, answer("Rain."))
    post(client, [USER], SESSION)
    keyed = {**SESSION, "Idempotency-Key": "k"}
    first, again = post(client, ANSWERED, keyed), post(client, ANSWERED, keyed)
    assert choice(first) == choice(again) and again.headers["Idempotency-Replayed"] == "true"
    other = [USER, CALLING, {**RESULT, "content": "sun"}]
    assert error_of(post(client, other, keyed)) == (422, "idempotency_key_reused")
    assert error_of(post(client, [USER], keyed)) == (422, "idempotency_key_reused")


def test_results_that_the_session_does_not_know_are_answered_from_the_transcript(client: Client) -> None:
    assert choice(post(client, ANSWERED, SESSION))["message"]["content"] == "OK"
    assert told(client) == [("user", USER["content"]), ("assistant", "I look."), ("tool", "rain")]


@pytest.mark.parametrize("headers", [SESSION, CHAT])
def test_results_behind_another_question_are_answered_from_the_transcript(client: Client, headers: Any) -> None:
    client.model.then(ASK)
    post(client, [USER], headers)
    edited = [{"role": "user", "content": "Weather in Rome?"}, CALLING, RESULT]
    choice(post(client, edited, headers))
    assert told(client) == [("user", "Weather in Rome?"), ("assistant", "I look."), ("tool", "rain")]
    choice(
        post(client, [*edited, {"role": "assistant", "content": "OK"}, {"role": "user", "content": "So?"}], headers)
    )
    assert told(client)[:3] == [("user", "Weather in Rome?"), ("assistant", "I look."), ("tool", "rain")]
    assert told(client)[3:] == [("assistant", "OK"), ("user", "So?")]


@pytest.mark.parametrize("headers", [SESSION, CHAT])
def test_results_go_on_where_the_question_has_been_wrapped_or_trimmed_since(client: Client, headers: Any) -> None:
    wrapped = f'### Task:\nCite.\n<context>\n<source id="1"/>\n</context>\n\n{USER["content"]}'
    for number, before in enumerate(([{"role": "user", "content": wrapped}], [])):
        named = {name: f"{value}-{number}" for name, value in headers.items()}
        client.model.then(tool_calls(("look", {}), ("weather", {}), ids=["call_l", "call_w"]))
        post(client, [USER], named)
        choice(post(client, [*before, CALLING, RESULT], named))
        assert told(client)[2:] == [("tool", "all is well"), ("tool", "rain")]


def test_what_waits_for_a_client_goes_on_in_the_native_dialect(client: Client) -> None:
    client.model.then(ASK)
    session = post(client, [USER], SESSION).headers["X-Session-Id"]
    assert [one["for"] for one in client.session(session)["pending"]] == ["client"]
    body = {"answers": {"call_w": {"result": {"sky": "blue"}}}}
    assert client.request("POST", f"/sessions/{session}/run", body).status_code == 200
    assert told(client)[-1] == ("tool", '{"sky":"blue"}')


def test_an_error_of_the_client_is_told_to_the_model(client: Client) -> None:
    client.model.then(ASK)
    session = post(client, [USER], SESSION).headers["X-Session-Id"]
    body = {"answers": {"call_w": {"error": "no network"}}}
    assert client.request("POST", f"/sessions/{session}/run", body).status_code == 200
    assert told(client)[-1] == ("tool", "error: no network")


def test_a_clients_tool_that_the_model_server_refuses_concerns_its_request_alone(client: Client) -> None:
    words = {"error": {"message": "Invalid schema for function 'look': not an object"}}
    client.model.then(status(400, words))
    own = {"type": "function", "function": {"name": "look"}}
    assert error_of(post(client, [USER], tools=[own])) == (400, "invalid_request")
    post(client, [USER], tools=None)
    assert offered(client) == ["look"]
