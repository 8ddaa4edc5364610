"""The AI SDK's stream protocol by its frames and requests. `tests/program/test_ai_sdk.py` has its own client."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from session_core.turns.event_log import Ended, Failed, LoggedEvent, Started
from session_core.turns.turn import Turn
from session_core.turns.turn_request import TurnRequest
from session_core.web.turn_responses import event_blocks
from session_core.web.ui_messages import UI_MESSAGES, UiRenderer
from storage import StorageUnavailable
from tests.support.client import BreakableStorage, Client, error_of, json_of
from tests.support.model_server import BREAK, STALL, answer, status, tool_call, tool_calls, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import TIMEOUT


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(keep_alive=0.1) as client:
        yield client


def question(text: str = "Hi", id: str | None = "m1", **more: Any) -> dict[str, Any]:
    named = {} if id is None else {"id": id}
    return {**named, "role": "user", "parts": [{"type": "text", "text": text}], **more}


def chat(client: Client, session: str, message: Any = None, headers: Any = None, **more: Any) -> Any:
    """The whole answer to a request of the transport that sends the last message alone."""
    return client.request("POST", "/ui/chat", {"id": session, "message": message, **more}, headers)


def told(text: str, id: str | None = None) -> dict[str, Any]:
    """A client's copy of an answer."""
    return question(text, id, role="assistant")


def show(client: Client, session: str, *messages: Any, **more: Any) -> Any:
    """The whole answer to a request of the transport that sends the whole transcript."""
    return client.request("POST", "/ui/chat", {"id": session, "messages": list(messages), **more})


def asked(client: Client) -> list[str]:
    """What the model was asked last."""
    return [message["content"] for message in client.model.requests[-1]["messages"]]


def chunks(text: str) -> list[Any]:
    """The frames in the body of a stream, which ends with the mark of its end."""
    *lines, last, end = text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != ": keep-alive"]


def types(text: str) -> list[str]:
    return [chunk["type"] for chunk in chunks(text)]


def history(client: Client, session: str) -> list[Any]:
    response = client.get(f"/sessions/{session}", Accept=UI_MESSAGES)
    assert (response.status_code, response.mimetype) == (200, UI_MESSAGES)
    messages: list[Any] = json.loads(response.data)
    return messages


def questions(client: Client, session: str) -> list[str]:
    return [message["content"] for message in client.messages(session) if message["role"] == "user"]


# --- frames ---


def test_a_turn_is_these_frames(client: Client) -> None:
    client.model.then(
        tool_call("calculator", {"expression": "15 * 23"}, text="So. "), answer("34", "5", usage={"n": 1})
    )
    response = chat(client, session := client.create(), question())
    asked, *_, told = client.messages(session)
    call = {"toolCallId": "call_1", "dynamic": True, "providerExecuted": True}
    metadata = {"questionId": asked["id"]}
    ended = {**metadata, "answerId": told["id"], "status": "completed"}
    assert chunks(response.text) == [
        {"type": "start", "messageId": f"{asked['id']}-answer", "messageMetadata": metadata},
        {"type": "start-step"},
        {"type": "text-start", "id": "1"},
        {"type": "text-delta", "id": "1", "delta": "So. "},
        {"type": "text-end", "id": "1"},
        {
            "type": "tool-input-available",
            "toolCallId": "call_1",
            "toolName": "calculator",
            "input": {"expression": "15 * 23"},
            "dynamic": True,
            "providerExecuted": True,
        },
        {"type": "tool-output-available", **call, "output": "345"},
        {"type": "finish-step"},
        {"type": "start-step"},
        {"type": "text-start", "id": "2"},
        {"type": "text-delta", "id": "2", "delta": "34"},
        {"type": "text-delta", "id": "2", "delta": "5"},
        {"type": "text-end", "id": "2"},
        {"type": "finish-step"},
        {"type": "message-metadata", "messageMetadata": {**ended, "usage": told["usage"]}},
        {"type": "finish", "finishReason": "stop"},
    ]


def test_the_headers_are_those_of_a_stream(client: Client) -> None:
    headers = chat(client, client.create(), question()).headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert "Connection" not in headers


def test_a_page_of_an_origin_that_may_call_can_read_the_header() -> None:
    origin = "https://chat.example.org"
    with Client(cors_origin=(origin,)) as client:
        headers = chat(client, client.create(), question(), headers={"Origin": origin}).headers
    assert "x-vercel-ai-ui-message-stream" in headers["Access-Control-Expose-Headers"].lower().split(", ")


def test_a_comment_comes_while_the_model_is_silent(client: Client) -> None:
    go = threading.Event()
    client.model.then(answer(wait(go), "Hi"))
    stream = client.later(chat, client, session := client.create(), question())
    client.model.wait_for(1)
    attached = client.app.test_client().get(f"/ui/chat/{session}/stream")
    written = iter(attached.response)
    assert next(part for part in written if part.startswith(b":")) == b": keep-alive\n\n"
    go.set()
    rest = b"".join(written)  # type: ignore[arg-type]
    assert rest.endswith(b"data: [DONE]\n\n")
    assert types(stream.result(TIMEOUT).text)[-1] == "finish"
    attached.close()


@pytest.mark.parametrize("arguments,expected", [("{", {"arguments": "{"}), ("[1]", {"arguments": [1]}), ("", {})])
def test_the_input_of_a_call_is_an_object(client: Client, arguments: str, expected: object) -> None:
    client.model.then(tool_call("calculator", arguments))
    found = chunks(chat(client, session := client.create(), question()).text)
    assert [chunk["input"] for chunk in found if "input" in chunk] == [expected]
    assert history(client, session)[1]["parts"][1]["input"] == expected


def test_a_call_that_has_no_result_is_closed(client: Client) -> None:
    started, go = threading.Event(), threading.Event()

    def slow() -> str:
        """Takes its time."""
        started.set()
        go.wait(TIMEOUT)
        return "done"

    with Client(tools=(slow,)) as other:
        other.model.then(tool_call("slow", {}))
        answering = other.later(chat, other, session := other.create(), question())
        assert started.wait(TIMEOUT)
        assert other.cancel(session)
        found = chunks(answering.result(TIMEOUT).text)
        assert [chunk["type"] for chunk in found[-4:]] == [
            "tool-output-error",
            "finish-step",
            "message-metadata",
            "abort",
        ]
        assert history(other, session)[1]["parts"][1]["state"] == "output-error"
        go.set()


def test_what_is_wrong_after_the_start_is_a_frame(client: Client) -> None:
    client.model.then(answer("Hel", BREAK))
    *_, metadata, error = chunks(chat(client, session := client.create(), question()).text)
    assert metadata["messageMetadata"]["answerId"] == client.messages(session)[-1]["id"]
    assert (metadata["messageMetadata"]["status"], metadata["messageMetadata"]["reason"]) == ("failed", "model_error")
    assert error["type"] == "error"
    assert "model server" in error["errorText"]


def test_a_turn_that_can_be_followed_no_more_is_an_error_and_no_good_end() -> None:
    class Lost(Turn):
        def read(self, after: int, seconds: float) -> list[LoggedEvent]:
            raise StorageUnavailable

    lost = Lost("session-1", TurnRequest("Hi"))
    text = b"".join(event_blocks(lost, 0, UiRenderer("msg-1"), 1.0)).decode()
    assert types(text) == ["error"]


ids = st.sampled_from(["call_1", "call_2"])
events = st.lists(
    st.builds(Chunk, st.text(min_size=1))
    | st.builds(Reasoning, st.text(min_size=1))
    | st.builds(ToolCall, ids, st.just("t"), st.text())
    | st.builds(ToolResult, ids, st.just("t"), st.text())
    | st.builds(ToolResult, ids, st.just("t"), error=st.text()),
    max_size=12,
)
message = {"id": "msg-2", "content": ""}
ends = st.sampled_from(
    [
        Ended(message, "", "stop"),
        Ended({**message, "status": "cancelled", "reason": "cancelled"}, "", None),
        Failed("model_error"),
    ]
)


@given(events, ends)
def test_no_frame_comes_without_its_start_and_none_stays_open(between: list[Any], last: Ended | Failed) -> None:
    renderer = UiRenderer("msg-1")
    log = [LoggedEvent(number, "", 0, event) for number, event in enumerate([Started(), *between, last], 1)]
    found = chunks(b"".join(map(renderer.render, log)).decode())
    answered = (event.id for event in itertools.takewhile(lambda one: isinstance(one, ToolResult), between))
    open_parts: list[str] = list(answered)  # of calls that the client has from before
    for chunk in found[1:-1]:
        kind, id = chunk["type"], chunk.get("id", chunk.get("toolCallId", "step"))
        if kind in ("start-step", "text-start", "reasoning-start"):
            assert id not in open_parts
            open_parts.append(id)
        elif kind == "tool-input-available":
            open_parts.append(id)
        elif kind != "message-metadata":
            assert id in open_parts and "step" in open_parts
            if not kind.endswith("-delta"):
                open_parts.remove(id)
    assert open_parts == []
    assert (found[0]["type"], found[-1]["type"]) in {("start", end) for end in ("finish", "abort", "error")}
    text = "".join(event.content for event in between if isinstance(event, Chunk))
    assert "".join(chunk["delta"] for chunk in found if chunk["type"] == "text-delta") == text


# --- requests ---


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [question()]},
        {"id": 1, "messages": [question()]},
        {"id": "session", "messages": {}},
        {"id": "session", "messages": [1]},
        {"id": "session", "messages": []},
        {"id": "session", "message": "Hi"},
        {"id": "session", "messages": [question(" ")]},
        {"id": "session", "messages": [question(id=1)]},  # type: ignore[arg-type]
        {"id": "session", "messages": [{"role": "user"}]},
        {"id": "session", "messages": [question(), {"role": "assistant", "parts": []}]},
        {"id": "session", "messages": [{"role": "user"}], "trigger": "regenerate-message"},
        {"id": "session", "messages": [question()], "trigger": "resume-stream"},
        {"id": "session", "messages": [question()], "messageId": 1},
        {"id": "session", "messages": [question()], "model": "another"},
        {"id": "session", "message": question(parts=[{"type": "file", "url": "data:,x", "mediaType": "text/plain"}])},
    ],
)
def test_a_request_that_says_nothing_is_refused(client: Client, body: dict[str, Any]) -> None:
    if body.get("id") == "session":
        body = {**body, "id": client.create()}
    assert error_of(client.request("POST", "/ui/chat", body)) == (400, "invalid_request")
    assert client.model.requests == []


def test_a_message_is_the_text_of_its_parts(client: Client) -> None:
    parts = [{"type": "text", "text": "One "}, {"type": "data-x", "data": 1}, {"type": "text", "text": "two"}]
    assert chat(client, session := client.create(), question(parts=parts)).status_code == 200
    assert questions(client, session) == ["One two"]


def test_the_last_message_may_come_alone(client: Client) -> None:
    body = {"id": (session := client.create()), "message": question("Alone"), "trigger": "submit-message"}
    assert client.request("POST", "/ui/chat", body).status_code == 200
    assert questions(client, session) == ["Alone"]


@pytest.mark.parametrize("id", ["m1", "two words", "é", "x" * 256, None, ""])
def test_the_id_of_a_message_is_its_key_whatever_form_it_has(client: Client, id: str | None) -> None:
    session = client.create()
    first, second = (chat(client, session, question(id=id)) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.headers.get("Idempotency-Replayed") == ("true" if id else None)
    assert questions(client, session) == ["Hi"] * (1 if id else 2)
    if id:
        assert chunks(first.text)[0] == chunks(second.text)[0]
        assert chat(client, session, question("Edited", id, messageId=id), messageId=id).status_code == 200
        assert questions(client, session) == ["Edited"]


def test_the_same_id_for_another_message_is_an_edit(client: Client) -> None:
    session = client.create()
    assert chat(client, session, question()).status_code == 200
    for _ in range(2):
        assert chat(client, session, question("Another")).status_code == 200
        assert questions(client, session) == ["Another"]
    assert len(client.model.requests) == 2


def test_a_key_of_the_request_wins(client: Client) -> None:
    session = client.create()
    chat(client, session, question())
    for key in ("k1", "k1", "k2", "k2"):
        headers = {"Idempotency-Key": key}
        assert chat(client, session, question(), trigger="regenerate-message", headers=headers).status_code == 200
    for key in ("k3", "k3"):
        headers = {"Idempotency-Key": key}
        assert chat(client, session, question("Edited"), messageId="m1", headers=headers).status_code == 200
    assert len(client.model.requests) == 4
    assert error_of(chat(client, session, question(), headers={"Idempotency-Key": "two words"})) == (
        400,
        "invalid_request",
    )


def test_an_answer_that_failed_is_tried_again_as_the_same_wish(client: Client) -> None:
    client.model.then(answer("One"), status(401, {}), answer("Two"))
    session = client.create()
    chat(client, session, question())
    assert types(chat(client, session, question(), trigger="regenerate-message").text)[-1] == "error"
    assert types(chat(client, session, question(), trigger="regenerate-message").text)[-1] == "finish"
    everything = json_of(client.get(f"/sessions/{session}?replaced=true"))["messages"]
    assert [message["content"] for message in everything] == ["Hi", "One", "Hi", "Two"]


def test_an_answer_can_be_named_without_any_message(client: Client) -> None:
    session = client.create()
    chat(client, session, question("One", "m1"))
    chat(client, session, question("Two", "m2"))
    answered = history(client, session)[1]["id"]
    for _ in range(2):
        assert chat(client, session, trigger="regenerate-message", messageId=answered).status_code == 200
        assert questions(client, session) == ["One"]
    assert len(client.model.requests) == 3


def test_a_question_that_another_tab_has_dropped_comes_back_with_what_led_to_it(client: Client) -> None:
    session = client.create()
    chat(client, session, question("One", "m1"))
    chat(client, session, question("Two", "m2"))
    chat(client, session, question("Edited", "m1"), messageId="m1")
    assert chat(client, session, question("Stale", "m2"), messageId="m2").status_code == 200
    assert questions(client, session) == ["One", "Stale"]


# --- whole transcripts ---


def two_turns(client: Client) -> tuple[str, list[Any]]:
    """A session of two turns, and what a client has of it."""
    session = client.create()
    client.model.then(answer("A1"), answer("A2"))
    show(client, session, question("Q1", "m1"))
    show(client, session, question("Q1", "m1"), told("A1"), question("Q2", "m2"))
    return session, [question("Q1", "m1"), told("A1"), question("Q2", "m2"), told("A2")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda held: [*held, question("Q3", "m3")], ["Q1", "A1", "Q2", "A2", "Q3"]),
        (lambda held: [*held[:2], question("Edited", "m3")], ["Q1", "A1", "Edited"]),
        (lambda held: [*held[:2], question("Edited", "m2")], ["Q1", "A1", "Edited"]),
        (lambda held: [question("Edited", "m3")], ["Edited"]),
        (lambda held: [held[0], told("By hand"), question("Q3", "m3")], ["Q1", "By hand", "Q3"]),
        (lambda held: [*held[2:], question("Q3", "m3")], ["Q1", "A1", "Q2", "A2", "Q3"]),
        (lambda held: [question("New", "m0"), told("New"), question("Q3", "m3")], ["New", "New", "Q3"]),
        (
            lambda held: [question("Be kind.", "s", role="system"), *held, question("Q3")],
            ["Q1", "A1", "Q2", "A2", "Q3"],
        ),
    ],
)
def test_what_reaches_the_model_is_what_the_page_shows(client: Client, change: Any, expected: list[str]) -> None:
    session, held = two_turns(client)
    assert show(client, session, *change(held)).status_code == 200
    assert asked(client) == expected
    assert [message["content"] for message in client.messages(session)] == [*expected, "OK"]


@pytest.mark.parametrize("text", ["Q2", "Edited"])
def test_the_last_question_is_asked_once_more_with_the_text_that_it_has(client: Client, text: str) -> None:
    session, held = two_turns(client)
    for number in range(2):  # each is a further try
        client.model.then(answer(f"Try {number}"))
        response = show(client, session, *held[:2], question(text, "m2"), trigger="regenerate-message")
        assert response.status_code == 200
        assert asked(client) == ["Q1", "A1", text]
        assert client.messages(session)[-1]["content"] == f"Try {number}"


def test_going_back_to_another_version_of_an_answer_brings_that_back(client: Client) -> None:
    session, held = two_turns(client)
    client.model.then(answer("B2"))
    show(client, session, *held[:3], trigger="regenerate-message")
    show(client, session, *held, question("Q3", "m3"))
    assert asked(client) == ["Q1", "A1", "Q2", "A2", "Q3"]
    stored = json_of(client.get(f"/sessions/{session}?replaced=true"))["messages"]
    assert [message["content"] for message in stored].count("A2") == 1


def test_a_transcript_that_is_sent_twice_is_one_turn(client: Client) -> None:
    session, held = two_turns(client)
    edited = [*held[:2], question("Edited", "m2")]
    first, second = show(client, session, *edited), show(client, session, *edited)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert chunks(first.text)[0] == chunks(second.text)[0]
    assert len(client.model.requests) == 3


def test_equal_messages_are_told_apart_by_their_ids(client: Client) -> None:
    session = client.create()
    held: list[Any] = []
    for number in range(3):
        held += [question("Hi", f"m{number}")]
        show(client, session, *held)
        held += [told("OK", f"{client.messages(session)[-2]['id']}-answer")]
    show(client, session, *held[2:4], question("New", "m3"))
    assert asked(client) == ["Hi", "OK", "Hi", "OK", "New"]


def test_a_busy_session_refuses_another_question(client: Client) -> None:
    client.model.then(answer("Hel", STALL))
    session = client.create()
    stream = client.stream(session)
    assert stream.next("stream_chunk")
    response = chat(client, session, question("Two", "m2"))
    assert error_of(response) == (409, "session_busy")
    assert response.headers["Retry-After"] == "1"
    stream.close()


def test_a_store_that_cannot_write_is_an_answer_before_the_turn() -> None:
    storage = BreakableStorage()
    with Client(storage=storage) as client:
        session = client.create()
        storage.broken = True
        assert error_of(chat(client, session, question())) == (503, "storage_unavailable")
        assert client.model.requests == []


def test_the_model_can_be_chosen_for_a_turn() -> None:
    with Client(models=("other",)) as client:
        chat(client, client.create(), question(), model="other")
        assert client.model.requests[0]["model"] == "other"


# --- the history, and taking a turn up ---


@NEEDED
def test_a_turn_is_taken_up_from_another_server(tmp_path: Path) -> None:
    from session_core.stores.redis import RedisStorage

    go = threading.Event()
    with (
        RedisServer(tmp_path, appendfsync="no") as redis,
        Client(
            tool_call("calculator", {"expression": "1"}),
            answer("It is ", wait(go), "1."),
            storage=RedisStorage(redis.url),
        ) as one,
        Client(model=one.model, storage=RedisStorage(redis.url)) as other,
    ):
        session = one.create()
        first = one.later(chat, one, session, question())
        one.model.wait_for(2)
        attached = other.app.test_client().get(f"/ui/chat/{session}/stream")
        joined = other.later(chat, other, session, question())
        go.set()
        expected = chunks(first.result(TIMEOUT).text)
        assert chunks(attached.text) == expected
        assert chunks(joined.result(TIMEOUT).text) == expected
        attached.close()


def test_there_is_nothing_to_take_up_where_nothing_runs(client: Client) -> None:
    session = client.create()
    assert client.get(f"/ui/chat/{session}/stream").status_code == 204
    chat(client, session, question())
    assert client.get(f"/ui/chat/{session}/stream").status_code == 204
    assert error_of(client.get("/ui/chat/session-none/stream")) == (404, "session_not_found")


def test_a_head_request_takes_up_nothing(client: Client) -> None:
    assert client.request("HEAD", f"/ui/chat/{client.create()}/stream").status_code == 405


def test_the_answer_that_is_being_written_is_no_part_of_the_history(client: Client) -> None:
    client.model.then(answer("One"), tool_call("calculator", {"expression": "1"}), answer("Hel", STALL))
    session = client.create()
    client.run(session)
    stream = client.stream(session, "Two")
    assert stream.next("stream_chunk")
    assert [message["role"] for message in history(client, session)] == ["user", "assistant", "user"]
    assert client.cancel(session)
    assert history(client, session)[-1]["parts"][-1] == {"type": "text", "text": "Hel", "state": "done"}
    stream.close()


@pytest.mark.parametrize("show_reasoning", [True, False])
def test_reasoning_is_shown_where_callers_may_see_it(show_reasoning: bool) -> None:
    with Client(show_reasoning=show_reasoning) as client:
        imported = [
            {"role": "assistant", "content": "Welcome.", "reasoning": "Be kind."},
            {"role": "user", "content": "Hi"},
            {"role": "user", "content": "Are you there?"},
        ]
        session = json_of(client.request("POST", "/sessions", {"messages": imported}))["id"]
        greeting, *rest = history(client, session)
    assert [part["type"] for part in greeting["parts"]] == ["step-start", *["reasoning"] * show_reasoning, "text"]
    assert [message["role"] for message in rest] == ["user", "user"]


def test_a_turn_that_went_on_keeps_the_calls_that_it_had(client: Client) -> None:
    calls = tool_calls(("calculator", {"expression": "1"}), ("calculator", {"expression": "2"}))
    client.model.then(calls, answer("Hel", BREAK), answer("Hello"))
    session = client.create()
    chat(client, session, question())
    client.request("POST", f"/sessions/{session}/run", {"continue": True})
    parts = history(client, session)[1]["parts"]
    assert [part.get("output", part.get("text")) for part in parts] == [None, "1", "2", None, "Hello"]


@pytest.mark.parametrize("known", [["x", "y"], ["Hi", "y"], ["y"]])
def test_an_answer_that_a_client_brought_is_not_the_one_that_failed(client: Client, known: list[str]) -> None:
    session = client.create()
    client.model.then(status(401, {}))
    client.run(session, "Hi")
    roles = ["user", "assistant"][-len(known) :]
    messages = [{"role": role, "content": text} for role, text in zip(roles, known, strict=True)]
    body = {"messages": [*messages, {"role": "user", "content": "z"}]}
    assert client.request("POST", "/v1/chat/completions", body, {"X-Session-Id": session}).status_code == 200
    answers = [message for message in history(client, session) if message["role"] == "assistant"]
    assert [answer["metadata"]["status"] for answer in answers][-2:] == ["completed", "completed"]


def test_an_answer_that_a_client_has_changed_is_shown_as_it_has_it(client: Client) -> None:
    session = client.create()
    client.run(session, "Hi")
    body = {"messages": [{"role": role, "content": role} for role in ("user", "assistant", "user")]}
    body["messages"][0]["content"] = "Hi"
    assert client.request("POST", "/v1/chat/completions", body, {"X-Session-Id": session}).status_code == 200
    shown = ["".join(part.get("text", "") for part in message["parts"]) for message in history(client, session)]
    assert shown[:3] == ["Hi", "assistant", "user"]
