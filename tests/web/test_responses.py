"""Responses: asked whole and as a stream, had again, branched, run in the background, cancelled, deleted."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from werkzeug.test import TestResponse

from tests.support.client import Client, error_of, json_of, storages
from tests.support.model_server import BREAK, STALL, answer, frames, status, tool_call, wait
from tests.support.responses import checked, output_text, sdk, stream_events, types_of, whole_stream

PATH = "/v1/responses"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
THINKING: list[Any] = [
    {"choices": [{"delta": {"reasoning_content": "Hm"}}]},
    {"choices": [{"delta": {"reasoning_content": ", so."}}]},
    {"choices": [{"delta": {"content": "Four"}}]},
    {"choices": [{"delta": {"content": "."}, "finish_reason": "stop"}]},
    "[DONE]",
]


@pytest.fixture(params=["memory", "files"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    with Client(storage=storages(tmp_path)[request.param](), timeout=20.0) as client:
        yield client


def ask(client: Client, given: Any = "Hi", *, key: str | None = None, **body: Any) -> TestResponse:
    headers = {"Idempotency-Key": key} if key else {}
    return client.request("POST", PATH, {"input": given, **body}, headers)


def get(client: Client, id: str, query: str = "") -> TestResponse:
    return client.get(f"{PATH}/{id}{query}")


def told(client: Client) -> list[tuple[str, str]]:
    return [(one["role"], one["content"]) for one in client.model.requests[-1]["messages"]]


def session_of(response: dict[str, Any]) -> str:
    return "session-" + response["id"].split("_")[1]


# --- one response ---


def test_a_response_is_a_turn_that_the_native_dialect_shows(client: Client) -> None:
    client.model.then(answer("Hel", "lo", usage=USAGE))
    response = checked(ask(client))
    assert (response["status"], output_text(response)) == ("completed", "Hello")
    assert response["usage"]["total_tokens"] == 7
    assert [one["content"] for one in client.messages(session_of(response))] == ["Hi", "Hello"]


def test_a_turn_of_the_native_dialect_is_a_response(client: Client) -> None:
    session_id = client.create()
    client.run(session_id)
    question = client.messages(session_id)[0]["id"]
    id = f"resp_{session_id.removeprefix('session-')}_{question.removeprefix('msg-')}"
    assert output_text(checked(get(client, id))) == "OK"


def test_the_client_of_openai_reads_a_response(client: Client) -> None:
    with sdk(client) as openai_client:
        response = openai_client.responses.create(input="Hi", model="gpt-3.5-turbo")
        assert response.output_text == "OK"
        again = openai_client.responses.retrieve(response.id)
    assert again.to_dict() == response.to_dict()


def test_a_response_that_is_had_again_is_the_same(client: Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    asked = {
        "instructions": "Be brief.",
        "metadata": {"topic": "sums"},
        "temperature": 0.5,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "sum", "schema": schema, "strict": True}},
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}}],
        "max_output_tokens": 100,
    }
    response = checked(ask(client, **asked))
    assert response["text"]["format"]["schema"] == schema
    assert (
        response.items() >= {"instructions": "Be brief.", "metadata": {"topic": "sums"}, "temperature": 0.5}.items()
    )
    assert checked(get(client, response["id"])) == response


def test_what_a_response_was_asked_with_goes_to_the_model(client: Client) -> None:
    schema = {"type": "object"}
    ask(
        client,
        instructions="Be brief.",
        temperature=0.5,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "sum", "schema": schema, "strict": True}},
        max_output_tokens=100,
    )
    sent = client.model.requests[-1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    format = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema, "strict": True}}
    expected = {"temperature": 0.5, "reasoning_effort": "low", "max_completion_tokens": 100}
    assert sent.items() >= {**expected, "response_format": format}.items()


def test_input_may_be_a_whole_conversation(client: Client) -> None:
    conversation = [
        {"role": "developer", "content": "Speak like a pirate."},
        {"role": "user", "content": [{"type": "input_text", "text": "My name is Ann."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Ahoy, Ann."}]},
        {"role": "user", "content": "What is my name?"},
    ]
    response = checked(ask(client, conversation))
    assert told(client) == [
        ("system", "Speak like a pirate."),
        ("user", "My name is Ann."),
        ("assistant", "Ahoy, Ann."),
        ("user", "What is my name?"),
    ]
    page = json_of(get(client, f"{response['id']}/input_items", "?order=asc"))
    assert [item["role"] for item in page["data"]] == ["system", "user", "assistant", "user"]
    ask(client, "And now?", previous_response_id=response["id"])
    assert told(client)[0] == ("system", "Speak like a pirate.")


def test_a_failure_before_the_answer_is_an_http_status_of_a_whole_response(client: Client) -> None:
    client.model.then(status(429, {}, {"Retry-After": "3600"}))
    assert error_of(ask(client)) == (429, "model_rate_limited")


def test_a_failure_in_a_stream_is_a_failed_response(client: Client) -> None:
    client.model.then(answer("Hel", BREAK))
    events = whole_stream(ask(client, stream=True))
    last = events[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == "server_error"
    assert [item["status"] for item in last["response"]["output"]] == ["incomplete"]
    assert checked(get(client, last["response"]["id"])) == last["response"]


def test_an_answer_that_was_cut_short_is_an_incomplete_response(client: Client) -> None:
    client.model.then(answer("Hel", finish_reason="length"))
    last = whole_stream(ask(client, stream=True))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize(
    "body,word",
    [
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "mcp", "server_label": "x", "server_url": "http://x"}]}, "mcp"),
        ({"tool_choice": {"type": "file_search"}}, "file_search"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"previous_response_id": "resp_a_b", "conversation": "conv_a"}, "mutually exclusive"),
        ({"background": True, "store": False}, "stored"),
        ({"input": ""}, "input"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "web_search_call"),
        ({"input": [{"role": "assistant", "content": "Hi"}]}, "input"),
        ({"input": [{"role": "system", "content": "Be kind."}], "store": False}, "input"),
        ({"input": " ", "store": False}, "blank"),
        ({"input": [5]}, "item"),
        ({"input": {}}, "input must"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": 5}}, "tool_choice.tools"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [5]}}, "tool_choice.tools"),
        ({"metadata": {"k": "x" * 513}}, "metadata"),
        ({"model": "gpt-9", "store": False}, "model"),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(client: Client, body: dict[str, Any], word: str) -> None:
    response = client.request("POST", PATH, {"input": "Hi", **body})
    assert response.status_code in (400, 404)
    assert word in json_of(response)["error"]["message"]
    assert json_of(client.get("/sessions"))["sessions"] == []


@pytest.mark.parametrize("id", ["resp_a_b", "resp_", "x", "resp_a_b_2", "resp_" + "a" * 65 + "_b"])
def test_an_unknown_response_is_not_found(client: Client, id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        assert error_of(client.request(method, f"{PATH}/{id}{path}")) == (404, "not_found")
    assert error_of(ask(client, previous_response_id=id)) == (404, "not_found")


# --- streams ---


def test_a_stream_tells_the_items_in_order(client: Client) -> None:
    client.model.then(frames(*THINKING))
    events = whole_stream(ask(client, stream=True))
    assert types_of(events) == [
        *("created", "in_progress"),
        *("output_item.added", "reasoning_summary_part.added"),
        *["reasoning_summary_text.delta"] * 2,
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
        *("output_item.added", "content_part.added"),
        *["output_text.delta"] * 2,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["Hm", ", so.", "Four", "."]


def test_the_client_of_openai_reads_a_stream(client: Client) -> None:
    client.model.then(answer("Hel", "lo", usage=USAGE))
    with sdk(client) as openai_client, openai_client.responses.stream(input="Hi", model="gpt-3.5-turbo") as stream:
        final = stream.get_final_response()
    assert (final.output_text, final.status) == ("Hello", "completed")


def test_each_piece_leaves_as_soon_as_it_is_there(client: Client) -> None:
    go = threading.Event()
    client.model.then(answer("H", wait(go), "i"))
    with sdk(client) as openai_client:
        for event in openai_client.responses.create(input="Hi", stream=True, model="gpt-3.5-turbo"):
            if event.type == "response.output_text.delta" and event.delta == "H":
                go.set()
    assert go.is_set()


@pytest.mark.parametrize("reply", ["text", "thinking", "tools", "cut", "failed", "nothing"])
def test_an_ended_stream_is_taken_up_again_behind_any_of_its_events(client: Client, reply: str) -> None:
    replies: dict[str, list[Any]] = {
        "text": [answer("One ", "two ", "three", usage=USAGE)],
        "thinking": [frames(*THINKING)],
        "tools": [tool_call("calculator", {"expression": "1 + 1"}, text="I look. "), answer("It ", "is 2.")],
        "cut": [answer("One ", "two", finish_reason="length")],
        "failed": [answer("One ", "two", BREAK)],
        "nothing": [answer(BREAK), answer(BREAK), answer(BREAK)],
    }
    client.model.then(*replies[reply])
    events = whole_stream(ask(client, stream=True))
    id = events[0]["response"]["id"]
    assert whole_stream(get(client, id, "?stream=true")) == events
    for number in range(len(events)):
        rest = get(client, id, f"?stream=true&starting_after={number}")
        assert list(stream_events(rest.text)) == events[number + 1 :], number


def test_a_running_stream_is_taken_up_again(client: Client) -> None:
    go = threading.Event()
    client.model.then(answer("One ", "two ", wait(go), "three"))
    with sdk(client) as openai_client:
        stream = openai_client.responses.create(input="Hi", stream=True, model="gpt-3.5-turbo")
        seen = [next(stream) for _ in range(6)]
        stream.close()
        again = openai_client.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
        go.set()
        rest = list(again)
    numbers = [event.sequence_number for event in [*seen, *rest]]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].response.output_text == "One two three"


def test_a_turn_of_the_native_dialect_is_streamed_whole(client: Client) -> None:
    client.model.then(answer("One ", "two ", "three"))
    session_id = client.create()
    client.run(session_id)
    question = client.messages(session_id)[0]["id"]
    id = f"resp_{session_id.removeprefix('session-')}_{question.removeprefix('msg-')}"
    events = whole_stream(get(client, id, "?stream=true"))
    assert [event["delta"] for event in events if "delta" in event] == ["One two three"]
    rest = list(stream_events(get(client, id, "?stream=true&starting_after=4").text))
    assert rest == events[5:]


def test_hidden_reasoning_is_in_no_response() -> None:
    with Client(frames(*THINKING), show_reasoning=False) as client:
        events = whole_stream(ask(client, stream=True))
        assert "reasoning" not in json.dumps(events[-1]["response"]["output"])
        id = events[0]["response"]["id"]
        assert whole_stream(get(client, id, "?stream=true")) == events
        assert checked(get(client, id)) == events[-1]["response"]


# --- one after the other ---


def test_the_last_response_goes_on_in_its_session(client: Client) -> None:
    first = checked(ask(client))
    second = checked(ask(client, "And?", previous_response_id=first["id"]))
    assert session_of(second) == session_of(first)
    assert second["previous_response_id"] == first["id"]
    assert told(client) == [("user", "Hi"), ("assistant", "OK"), ("user", "And?")]


def test_an_earlier_response_branches_into_a_session_of_its_own(client: Client) -> None:
    first = checked(ask(client))
    checked(ask(client, "And?", previous_response_id=first["id"]))
    other = checked(ask(client, "Or?", previous_response_id=first["id"]))
    assert session_of(other) != session_of(first)
    assert told(client) == [("user", "Hi"), ("assistant", "OK"), ("user", "Or?")]
    assert len(client.messages(session_of(first))) == len(client.messages(session_of(other))) == 4


def test_instructions_hold_for_one_response(client: Client) -> None:
    first = checked(ask(client, instructions="Be brief."))
    ask(client, "And?", previous_response_id=first["id"])
    assert [role for role, _ in told(client)] == ["user", "assistant", "user"]


def test_a_response_that_runs_locks_its_conversation(client: Client) -> None:
    go = threading.Event()
    client.model.then(answer("Hel", wait(go), "lo"))
    running = checked_queued(ask(client, background=True))
    response = ask(client, "And?", previous_response_id=running["id"])
    assert error_of(response) == (409, "conversation_locked")
    assert response.headers["Retry-After"] == "1"
    go.set()


def test_nothing_is_left_of_a_response_that_is_not_stored(client: Client) -> None:
    first = checked(ask(client))
    response = checked(ask(client, "And?", previous_response_id=first["id"], store=False))
    assert told(client) == [("user", "Hi"), ("assistant", "OK"), ("user", "And?")]
    assert response["store"] is False
    assert error_of(get(client, response["id"])) == (404, "not_found")
    assert len(client.messages(session_of(first))) == 2
    assert len(json_of(client.get("/sessions"))["sessions"]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_with_its_key_is_the_same_response(client: Client, stream: bool) -> None:
    before = checked(ask(client))["id"]
    later = checked(ask(client, "And?", previous_response_id=before))["id"]
    for previous in (None, later, before):
        body = {"stream": stream, **({"previous_response_id": previous} if previous else {})}
        count = len(client.model.requests)
        tries = [ask(client, "Once", key=f"k{previous}", **body) for _ in range(3)]
        assert len(client.model.requests) == count + 1
        assert len({one.text for one in tries}) == 1
    assert error_of(ask(client, "Twice", key="kNone")) == (422, "idempotency_key_reused")


# --- in the background ---


def checked_queued(response: TestResponse) -> dict[str, Any]:
    found = checked(response)
    assert (found["status"], found["background"], found["output"]) == ("queued", True, [])
    return found


def test_a_response_in_the_background_answers_at_once(client: Client) -> None:
    go = threading.Event()
    client.model.then(answer("Hel", wait(go), "lo"))
    id = checked_queued(ask(client, background=True))["id"]
    assert checked(get(client, id))["status"] == "in_progress"
    go.set()
    events = whole_stream(get(client, id, "?stream=true"))
    assert types_of(events)[:3] == ["created", "queued", "in_progress"]
    assert checked(get(client, id)) == events[-1]["response"]


def test_a_response_in_the_background_may_be_streamed_too(client: Client) -> None:
    events = whole_stream(ask(client, background=True, stream=True))
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]


def test_a_cancelled_response_has_that_status(client: Client) -> None:
    client.model.then(answer("Hel", STALL))
    with sdk(client) as openai_client:
        stream = openai_client.responses.create(input="Hi", stream=True, background=True, model="gpt-3.5-turbo")
        id = next(stream).response.id
        assert any(event.type == "response.output_text.delta" for event in stream)
        cancelled = openai_client.responses.cancel(id)
        last = list(stream)[-1]
    assert cancelled.status == "cancelled"
    assert (last.type, last.response.status) == ("response.incomplete", "cancelled")
    assert output_text(checked(get(client, id))) == "Hel"
    assert whole_stream(get(client, id, "?stream=true"))[-1]["response"]["status"] == "cancelled"


def test_an_ended_response_stays_as_it_is_when_it_is_cancelled(client: Client) -> None:
    response = checked(ask(client))
    assert checked(client.request("POST", f"{PATH}/{response['id']}/cancel")) == response


def test_a_deleted_response_leaves_its_items_in_the_conversation(client: Client) -> None:
    response = checked(ask(client))
    with sdk(client) as openai_client:
        openai_client.responses.delete(response["id"])
        with pytest.raises(openai.NotFoundError):
            openai_client.responses.retrieve(response["id"])
        items = openai_client.conversations.items.list(f"conv_{response['id'].split('_')[1]}")
    assert [item.role for item in items.data] == ["assistant", "user"]  # type: ignore[union-attr]


def test_a_retry_of_a_deleted_response_is_not_found_and_holds_no_place() -> None:
    with Client(max_streams=1) as client:
        id = json_of(client.request("POST", "/v1/responses", {"input": "Hi"}, {"Idempotency-Key": "key"}))["id"]
        assert client.request("DELETE", f"/v1/responses/{id}").status_code == 200
        for _ in range(20):  # more than there are places
            retry = client.request("POST", "/v1/responses", {"input": "Hi"}, {"Idempotency-Key": "key"})
            assert retry.status_code == 404
        assert client.request("POST", "/v1/responses", {"input": "Hi"}).status_code == 200


def test_items_that_are_referred_to_are_found(client: Client) -> None:
    first = checked(ask(client))
    (item,) = first["output"]
    ask(client, [{"type": "item_reference", "id": item["id"]}, {"role": "user", "content": "And?"}])
    assert told(client)[1:] == [("assistant", "OK"), ("user", "And?")]
    assert error_of(ask(client, [{"type": "item_reference", "id": "msg_1"}])) == (404, "not_found")


def test_ids_are_bound_in_length_and_cannot_be_guessed(client: Client) -> None:
    response = checked(ask(client))
    assert re.fullmatch(r"resp_[0-9a-f]{32}_[0-9a-f]{32}", response["id"])


# --- compaction ---


def test_a_compacted_conversation_goes_on_from_its_summary(client: Client) -> None:
    client.model.then(answer("Ann plans a trip.", usage=USAGE))
    conversation = [{"role": "user", "content": "I am Ann."}, {"role": "assistant", "content": "Hello!"}]
    with sdk(client) as openai_client:
        compacted = openai_client.responses.compact(model="gpt-3.5-turbo", input=conversation)  # type: ignore[arg-type]
    assert [item.type for item in compacted.output] == ["message", "compaction"]
    assert compacted.usage.total_tokens == 7
    output = [item.model_dump(exclude_unset=True, warnings=False) for item in compacted.output]
    ask(client, [*output, {"role": "user", "content": "Who am I?"}])
    (system, _), *others = [(text, role) for role, text in told(client)]
    assert "Ann plans a trip." in system
    assert [text for text, _ in others] == ["I am Ann.\n\nWho am I?"]


def test_a_compaction_needs_a_model_and_a_conversation(client: Client) -> None:
    output = [{"type": "function_call_output", "call_id": "call_x", "output": "rain"}]
    for body in ({"input": "Hi"}, {"model": "gpt-3.5-turbo"}, {"model": "gpt-3.5-turbo", "input": output}):
        assert error_of(client.request("POST", f"{PATH}/compact", body)) == (400, "invalid_request")


def test_a_compaction_leaves_no_session(client: Client) -> None:
    for body in ({}, {"store": True}, {"store": False}):
        asked = {"model": "gpt-3.5-turbo", "input": "Hello", **body}
        assert client.request("POST", f"{PATH}/compact", asked, {"Idempotency-Key": "key"}).status_code == 200
    assert json_of(client.get("/sessions")) == {"sessions": []}
