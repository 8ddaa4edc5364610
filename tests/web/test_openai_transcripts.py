"""What front ends send to `/v1/chat/completions` reaches the model as the person sees it, and is stored once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from tests.support.client import Client, error_of, json_of
from tests.support.model_server import BREAK, STALL, answer, status, tool_call, wait
from tests.support.server import TIMEOUT, wait_until

PATH = "/v1/chat/completions"
CHAT = {"X-OpenWebUI-Chat-Id": "chat-1"}  # of a front end that sends each chat from its beginning
SESSION = {"X-Session-Id": "chat-1"}
WRAPPED = "### Task:\nAnswer by the context.\n<context>\n<source>Text.</source>\n</context>\n\nWhat is it?"
USER, ASSISTANT = "user", "assistant"


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(models=("other",), timeout=20.0) as client:
        yield client


def said(*texts: str, last: str = USER) -> list[dict[str, Any]]:
    """Questions and answers in turn."""
    roles = [USER, ASSISTANT] if (len(texts) % 2 == 1) == (last == USER) else [ASSISTANT, USER]
    return [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]


def post(client: Client, messages: list[Any], headers: Any = CHAT, **body: Any) -> TestResponse:
    return client.request("POST", PATH, {"messages": messages, **body}, headers)


def text_of(response: TestResponse) -> str:
    assert response.status_code == 200, response.text
    text: str = json_of(response)["choices"][0]["message"]["content"]
    return text


def streamed_text(response: TestResponse) -> str:
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def asked(client: Client) -> list[str]:
    """What the model was asked last."""
    return [message["content"] for message in client.model.requests[-1]["messages"]]


def stored(client: Client) -> list[str]:
    """The texts of the only session."""
    [session] = json_of(client.get("/sessions"))["sessions"]
    return [message["content"] for message in client.messages(session)]


def everything(client: Client) -> list[str]:
    """Its texts, with those of all versions."""
    [session] = json_of(client.get("/sessions"))["sessions"]
    found = json_of(client.get(f"/sessions/{session}?replaced=true"))["messages"]
    return [message["content"] for message in found]


def readers(client: Client) -> int:
    """How many requests wait for a turn. Nothing that a client sees tells of it."""
    responses = client.app.extensions["turn_responses"]
    return sum(places._initial_value - places._value for places in (responses._responses, responses._watchers))


# --- the transcript is the truth ---


@pytest.mark.parametrize(
    ("texts", "reach"),
    [
        (["Q1", "A1", "Q2", "A2", "Q3"], ["Q1", "A1", "Q2", "A2", "Q3"]),
        (["Q2", "A2", "Q3"], ["Q1", "A1", "Q2", "A2", "Q3"]),
        (["A1", "Q2", "A2", "Q3"], ["Q1", "A1", "Q2", "A2", "Q3"]),
        (["Q1", "A1", "Edited"], ["Q1", "A1", "Edited"]),
        (["Edited"], ["Edited"]),
        (["Q1", "By hand", "Q2"], ["Q1", "By hand", "Q2"]),
        (["Q1", "A1", "Q2", "By hand", "Q3"], ["Q1", "A1", "Q2", "By hand", "Q3"]),
        (["Q1", "<details>Hm.</details>\nA1 ", "Q2", "<think>Hm.</think>A2", "Q3"], ["Q1", "A1", "Q2", "A2", "Q3"]),
        (["New", "one", "here"], ["New", "one", "here"]),
    ],
)
def test_what_reaches_the_model_is_what_the_person_sees(client: Client, texts: list[str], reach: list[str]) -> None:
    client.model.then(answer("A1"), answer("A2"))
    post(client, said("Q1"))
    post(client, said("Q1", "A1", "Q2"))
    post(client, said(*texts))
    assert asked(client) == reach
    assert stored(client) == [*reach, "OK"]
    assert everything(client).count("A1") == 1


def test_an_answer_that_was_written_anew_and_is_left_for_the_older_one(client: Client) -> None:
    client.model.then(answer("A1"), answer("A2"))
    post(client, said("Q1"))
    post(client, said("Q1"))
    post(client, said("Q1", "A1", "Q2"))
    assert asked(client) == ["Q1", "A1", "Q2"]
    post(client, said("Q1", "A2", "Q3"))
    assert asked(client) == ["Q1", "A2", "Q3"]
    assert everything(client).count("A1") == everything(client).count("A2") == 1


def test_the_calls_and_results_that_the_client_does_not_have_reach_the_model(client: Client) -> None:
    client.model.then(tool_call("calculator", {"expression": "1+1"}, text="Let me see. "), answer("It is 2."))
    post(client, said("Q1"))
    post(client, said("Q1", "Let me see. It is 2.", "Q2"))
    roles = [message["role"] for message in client.model.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_parts_of_an_answer_that_are_no_text_are_no_error(client: Client) -> None:
    post(client, said("Q1"))
    copy = [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "OK"},
        {"type": "refusal", "refusal": "x"},
    ]
    post(client, [*said("Q1"), {"role": ASSISTANT, "content": copy}, *said("Q2")])
    assert asked(client) == ["Q1", "OK", "Q2"]


# --- a question that is wrapped ---


def test_a_wrapped_question_is_stored_as_it_was_sent_and_its_title_shows_itself(client: Client) -> None:
    post(client, said(WRAPPED))
    assert stored(client) == [WRAPPED, "OK"]
    [details] = json_of(client.get("/sessions?details=true"))["sessions"]
    assert details["title"] == "What is it?"
    post(client, said("What is it?", "OK", "Q2"))
    assert asked(client) == [WRAPPED, "OK", "Q2"]
    assert everything(client) == [WRAPPED, "OK", "Q2", "OK"]


@pytest.mark.parametrize("before", [WRAPPED.removesuffix("What is it?"), ""])
def test_a_list_of_files_before_a_question_is_no_part_of_its_title(client: Client, before: str) -> None:
    files = '<attached_files>\n<file type="file" id="1" name="notes.txt"/>\n</attached_files>\n\n'
    post(client, said(f"{before}{files}What is it?"))
    [details] = json_of(client.get("/sessions?details=true"))["sessions"]
    assert details["title"] == "What is it?"
    for number, first in enumerate(("What is it?", f"{files}What is it?"), 2):
        post(client, said(first, "OK", f"Q{number}"))
        assert asked(client) == [f"{before}{files}What is it?", "OK", f"Q{number}"]


@pytest.mark.parametrize(
    "text",
    ["### Task:\n" * 20_000, "### Task:\n<context>" * 20_000, "<details>" * 20_000, "<attached_files>" * 20_000],
)
def test_no_question_takes_long(client: Client, text: str) -> None:
    began_at = time.process_time()
    post(client, said(text))
    post(client, said(text, "OK", text))
    assert time.process_time() - began_at < 2


# --- which session ---


@pytest.mark.parametrize("value", ["", "{{CHAT_ID}}", "temporary:3fa9", "local:3fa9", "channel:3fa9"])
@pytest.mark.parametrize("name", ["X-OpenWebUI-Chat-Id", "X-Session-Id"])
def test_a_chat_that_is_not_to_be_kept_is_one_shot(client: Client, name: str, value: str) -> None:
    response = post(client, said("Q1"), {name: value})
    assert text_of(response) == "OK" and "X-Session-Id" not in response.headers
    assert json_of(client.get("/sessions"))["sessions"] == []


def test_the_session_of_x_session_id_wins(client: Client) -> None:
    named = post(client, said("Q1"), {"X-Session-Id": "mine"}).headers["X-Session-Id"]
    assert post(client, said("Q2"), {**CHAT, "X-Session-Id": "mine"}).headers["X-Session-Id"] == named
    assert stored(client) == ["Q1", "OK", "Q2", "OK"]


def test_a_question_alone_goes_on_with_x_session_id_and_is_a_whole_chat_of_a_front_end(client: Client) -> None:
    for text in ("Q1", "Q2"):
        post(client, said(text), SESSION)
    assert asked(client) == ["Q1", "OK", "Q2"]
    post(client, said("Q3"), CHAT)
    assert asked(client) == ["Q3"]
    assert stored(client) == ["Q3", "OK"]


# --- several requests at once ---


def test_several_models_that_are_asked_at_once_answer_for_themselves(client: Client) -> None:
    go = threading.Event()
    client.model.then(answer("From ", wait(go), "one"), answer("From other"))
    first = client.later(post, client, said("Q1"), model="gpt-3.5-turbo")
    client.model.wait_for(1)
    second = post(client, said("Q1"), model="other")
    assert text_of(second) == "From other" and "X-Session-Id" not in second.headers
    go.set()
    assert text_of(first.result(TIMEOUT)) == "From one"
    post(client, said("Q1", "From other", "Q2"))
    assert asked(client) == stored(client)[:-1] == ["Q1", "From other", "Q2"]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"response_format": {"type": "json_object"}}, {}),
        ({"model": "other"}, {}),
        ({}, {"Idempotency-Key": "k"}),
    ],
)
def test_another_wish_while_a_turn_runs_is_409_where_the_session_is_named(
    client: Client, body: dict[str, Any], headers: dict[str, str]
) -> None:
    client.model.then(answer("Hel", STALL))
    first = client.later(post, client, said("Q1"), SESSION)
    client.model.wait_for(1)
    other = post(client, said("Q1"), {**SESSION, **headers}, **body)
    assert error_of(other) == (409, "session_busy")
    client.cancel(json_of(client.get("/sessions"))["sessions"][0])
    assert first.result(TIMEOUT).status_code == 200
    assert len(client.model.requests) == 1


def test_a_retry_of_a_whole_chat_joins_the_turn_that_runs(client: Client) -> None:
    go = threading.Event()
    client.model.then(answer("OK"), answer("Hel", wait(go), "lo"))
    post(client, said("Q1"))
    both = [client.later(post, client, said("Q1", "OK", "Q2"), temperature=0.5) for _ in range(2)]
    client.model.wait_for(2)
    wait_until(lambda: readers(client) == 2)
    go.set()
    assert [text_of(one.result(TIMEOUT)) for one in both] == ["Hello", "Hello"]
    assert len(client.model.requests) == 2


# --- an answer that is to be continued ---


@pytest.mark.parametrize("stream", [True, False])
def test_a_transcript_that_ends_with_an_answer_continues_it(client: Client, stream: bool) -> None:
    client.model.then(answer("One, two", finish_reason="length"), answer(", three."))
    post(client, said("Count."))
    response = post(client, said("Count.", "One, two", last=ASSISTANT), stream=stream)
    assert (streamed_text(response) if stream else text_of(response)) == ", three."
    assert asked(client) == ["Count.", "One, two"]
    assert stored(client)[-1] == "One, two, three."
    post(client, said("Count.", "One, two, three.", "Q2"))
    assert asked(client) == ["Count.", "One, two, three.", "Q2"]


@pytest.mark.parametrize("headers", [CHAT, {}])
def test_an_answer_that_the_server_does_not_have_is_continued_too(client: Client, headers: dict[str, str]) -> None:
    client.model.then(answer(" more."))
    response = post(client, said("Q1", "A1", "Q2", "Some", last=ASSISTANT), headers)
    assert text_of(response) == " more."
    assert asked(client) == ["Q1", "A1", "Q2", "Some"]
    if headers:
        assert stored(client) == ["Q1", "A1", "Q2", "Some more."]


def test_a_whole_answer_that_is_continued_is_another_version(client: Client) -> None:
    client.model.then(answer("One."), answer(" Two."))
    post(client, said("Count."))
    post(client, said("Count.", "One.", last=ASSISTANT))
    assert stored(client) == ["Count.", "One. Two."]
    assert everything(client) == ["Count.", "One.", "Count.", "One. Two."]


def test_a_continued_answer_that_is_replayed_has_all_that_the_first_had(client: Client) -> None:
    client.model.then(answer(", two"), answer(" more."))
    headers = {**CHAT, "Idempotency-Key": "k"}
    first = streamed_text(post(client, said("Count.", "One", last=ASSISTANT), headers, stream=True))
    post(client, said("Count.", "One, two", "Q2"))
    again = post(client, said("Count.", "One", last=ASSISTANT), headers, stream=True)
    assert (first, streamed_text(again), again.headers["Idempotency-Replayed"]) == (", two", ", two", "true")


def test_a_refused_question_with_the_beginning_of_its_answer_is_left_out_too(client: Client) -> None:
    refused = status(400, {"error": {"message": "no"}})
    client.model.default = lambda asked: (refused if "bad" in str(asked) else answer("OK"))(asked)
    assert error_of(post(client, said("bad", "Some", last=ASSISTANT)))[0] >= 400
    [session] = json_of(client.get("/sessions"))["sessions"]
    assert client.run(session, "next").status_code == 200
    assert asked(client) == ["next"]


def test_what_a_client_brought_with_a_refused_question_stays_in_the_conversation(client: Client) -> None:
    refused = status(400, {"error": {"message": "no"}})
    client.model.default = lambda asked: (refused if "bad" in str(asked) else answer("OK"))(asked)
    post(client, said("Q1", "A1", "bad"))
    [session] = json_of(client.get("/sessions"))["sessions"]
    client.run(session, "next")
    assert asked(client) == ["Q1", "A1", "next"]


# --- parameters ---


def test_a_tool_that_must_be_called_is_called_once(client: Client) -> None:
    client.model.then(tool_call("calculator", {"expression": "1+1"}), answer("It is 2."))
    assert text_of(post(client, said("How much?"), {}, tool_choice="required", logprobs=True)) == "It is 2."
    first, second = client.model.requests
    assert (first["tool_choice"], first["logprobs"]) == ("required", True)
    assert "tool_choice" not in second and second["logprobs"] is True


@pytest.mark.parametrize("stream", [True, False])
def test_a_parameter_that_the_model_server_refuses_is_400_and_leaves_no_question_out(
    client: Client, stream: bool
) -> None:
    client.model.then(status(400, {"error": {"message": "Unknown parameter: min_q", "param": "min_q"}}))
    refused = post(client, said("Q1"), min_q=1, stream=stream)
    assert error_of(refused) == (400, "invalid_request")
    assert "min_q" in refused.text
    post(client, said("Q1", "", "Q2"))
    assert asked(client) == ["Q1\n\nQ2"]


# --- what the client hears ---


@pytest.mark.parametrize(("code", "expected"), [(429, 429), (401, 502), (400, 502)])
def test_what_fails_before_the_first_byte_is_a_status_also_with_stream(
    client: Client, code: int, expected: int
) -> None:
    client.model.default = status(code, {"error": {"message": "No."}}, {"Retry-After": "0"})
    for headers in (SESSION, {}):
        response = post(client, said("Q1"), headers, stream=True)
        assert (response.status_code, response.mimetype) == (expected, "application/json")
        assert response.headers.get("Retry-After") == ("0" if code == 429 else None)
    assert readers(client) == 0


def test_what_fails_after_it_is_a_frame(client: Client) -> None:
    client.model.then(answer("Hel", BREAK))
    response = post(client, said("Q1"), stream=True)
    assert response.status_code == 200 and '"code":"model_error"' in response.text


def test_a_silent_model_does_not_hold_the_head_back_and_comments_end_with_one_line_break() -> None:
    go = threading.Event()
    with Client(answer(wait(go), "Hi"), keep_alive=0.1) as client:
        response = client.app.test_client().post(PATH, json={"messages": said("Q1"), "stream": True})
        assert response.status_code == 200  # though the model has said nothing yet
        writes = iter(response.response)
        assert next(write for write in writes if write.startswith(b":")) == b": keep-alive\n"
        go.set()
        assert b"".join(writes).endswith(b"data: [DONE]\n\n")  # type: ignore[arg-type]
        response.close()
