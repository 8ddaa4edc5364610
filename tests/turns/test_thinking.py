"""Models that think: their reasoning in events, in the history, and back at the server that it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calculator import calculator
from session_core.stores.files import FileStorage
from storage import MemoryStorage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, frames, status
from tests.support.thinking_servers import SERVERS, SIGNATURE, deepseek, gemini
from tests.support.well_formed import assert_well_formed

SHAPES: dict[str, list[dict[str, Any]]] = {
    "reasoning_content": [{"reasoning_content": "Let me "}, {"reasoning_content": "think."}, {"content": "Hello"}],
    "reasoning": [{"reasoning": "Let me "}, {"reasoning": "think.", "content": ""}, {"content": "Hello"}],
    "two names": [{"reasoning_content": "Let me think.", "reasoning": "Let me think."}, {"content": "Hello"}],
    "reasoning_details": [
        {"reasoning_details": [{"type": "reasoning.text", "text": "Let me ", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "think.", "index": 1}]},
        {"content": "Hello"},
    ],
    "parts": [
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Let me think."}]}]},
        {"content": [{"type": "text", "text": "Hello"}]},
    ],
    "tags": [{"content": piece} for piece in ("<thi", "nk>Let me", " think.</th", "ink>\n\nHel", "lo")],
    "tags in one piece": [{"content": "\n<think>Let me think.</think>\nHello"}],
}


def streamed(*deltas: dict[str, Any], reason: str | None = "stop") -> ReplyTo:
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return frames(*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}, "[DONE]")


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as client:
        yield client


def seen(client: Client, session: str, text: str = "Hi", **headers: str) -> tuple[str, str, list[str]]:
    """The reasoning and the text of a turn's events, and the types of the events without repetitions."""
    events = client.stream(session, text, **headers).rest()
    found = {"stream_reasoning": "", "stream_chunk": ""}
    types: list[str] = []
    sequences = {"stream_reasoning": 0, "stream_chunk": 0}
    for event in events:
        kind = event["type"]
        if kind in found:
            found[kind] += event["data"]["content"]
            sequences[kind] += 1
            assert event["data"]["sequence"] == sequences[kind]
        types += [] if types[-1:] == [kind] else [kind]
    numbers = [int(event["id"].rpartition("-")[2]) for event in events]
    assert numbers == list(range(1, len(events) + 1))
    return found["stream_reasoning"], found["stream_chunk"], types


# --- what callers see ---


@pytest.mark.parametrize("deltas", SHAPES.values(), ids=[*SHAPES])
def test_reasoning_is_told_and_stored_apart_from_the_text(client: Client, deltas: list[dict[str, Any]]) -> None:
    session = client.create()
    client.model.then(streamed(*deltas))
    types = ["stream_start", "stream_reasoning", "stream_chunk", "stream_end"]
    assert seen(client, session) == ("Let me think.", "Hello", types)
    answered = client.messages(session)[-1]
    assert (answered["content"], answered["reasoning"], answered["model"]) == (
        "Hello",
        "Let me think.",
        "gpt-3.5-turbo",
    )
    assert "provider_metadata" not in answered


def test_reasoning_is_no_part_of_the_complete_text(client: Client) -> None:
    client.model.then(streamed({"reasoning": "Hm."}, {"content": "Hello"}))
    assert client.stream(client.create()).last()["data"]["complete_text"] == "Hello"


def test_run_shows_the_reasoning(client: Client) -> None:
    client.model.then(streamed({"reasoning": "Hm."}, {"content": "Hello"}))
    message = json_of(client.run(client.create()))["message"]
    assert (message["reasoning"], message["content"]) == ("Hm.", "Hello")


def test_whole_answers_have_reasoning_too() -> None:
    with Client(stream=False) as client:
        client.model.then(lambda request: deepseek()(request))
        session = client.create()
        assert seen(client, session)[0] == "One and one."
        assert client.messages(session)[1]["reasoning"] == "One and one."


@pytest.mark.parametrize(
    ("text", "reasoning", "shown"),
    [
        ("<think>only", "only", ""),
        ("<th", "", "<th"),
        ("<thing>", "", "<thing>"),
        ("a <think>b</think>", "", "a <think>b</think>"),
        ("<think></think>x", "", "x"),
        ("<think>a</think><think>b</think>", "a", "<think>b</think>"),
        ("  leading", "", "  leading"),
    ],
)
def test_only_tags_at_the_very_beginning_are_reasoning(client: Client, text: str, reasoning: str, shown: str) -> None:
    for pieces in ([text], list(text)):
        client.model.then(streamed(*({"content": piece} for piece in pieces)))
        assert seen(client, client.create())[:2] == (reasoning, shown)


def test_reasoning_can_be_hidden_from_callers() -> None:
    storage = MemoryStorage()
    with Client(storage=storage, show_reasoning=False) as client:
        client.model.then(streamed({"reasoning_content": "Hm."}, {"content": "Hello"}), answer("OK"))
        session = client.create()
        assert seen(client, session) == ("", "Hello", ["stream_start", "stream_chunk", "stream_end"])
        assert "reasoning" not in client.messages(session)[-1]
        assert storage.get(session).messages[-1]["reasoning"] == "Hm."
        client.run(session)
        assert client.model.requests[-1]["messages"][1]["reasoning_content"] == "Hm."


@pytest.mark.parametrize(("how", "text"), [("cancel", ""), ("cancel", "Hel"), ("break", "Hel")])
def test_a_partial_answer_keeps_its_reasoning(client: Client, how: str, text: str) -> None:
    session = client.create()
    deltas = [{"reasoning": "Hm, "}, {"reasoning": "yes"}, {"content": text}]
    chunks = [{"choices": [{"delta": delta}]} for delta in deltas]
    client.model.then(frames(*chunks, STALL if how == "cancel" else BREAK))
    stream = client.stream(session)
    while stream.next()["type"] != "stream_reasoning":
        pass
    if how == "cancel":
        stream.next()
        if text:
            stream.next("stream_chunk")
        client.request("POST", f"/sessions/{session}/cancel")
    stream.rest()
    message = client.messages(session)[-1]
    assert (message["role"], message["content"]) == ("assistant", text)
    assert message["reasoning"] == "Hm, yes"


def test_a_replayed_turn_tells_its_reasoning_again() -> None:
    storage = MemoryStorage()
    with Client(deepseek(), deepseek(), storage=storage) as client:
        session = client.create()
        first = seen(client, session, Idempotency_Key="k")
    with Client(storage=storage) as client:  # as after a restart
        assert seen(client, session, Idempotency_Key="k") == first
        assert not client.model.requests


# --- what goes back ---


def converse(client: Client, session: str, turns: int) -> None:
    for number in range(turns):
        response = client.run(session, f"What is 1+1? ({number})")
        assert response.status_code == 200, response.text
        assert json_of(response)["message"]["content"] == "It is 2."


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("server", SERVERS)
def test_a_server_gets_back_what_it_wants_in_all_turns(server: str, stream: bool, tmp_path: Path) -> None:
    script = SERVERS[server]()
    refusals = 2 if server == "DeepSeek R1" else 1  # at most; its words read as if it missed what it refuses
    with ModelServer(default=script) as model:
        with Client(model=model, storage=FileStorage.open(str(tmp_path)), stream=stream) as client:
            session = client.create()
            converse(client, session, 3)
            taken = len(model.requests)
            assert taken <= 6 + refusals
        with Client(model=model, storage=FileStorage.open(str(tmp_path)), stream=stream) as client:  # after a restart
            converse(client, session, 1)
            assert len(model.requests) <= taken + 2 + refusals
            converse(client, session, 1)
            assert len(model.requests) <= taken + 4 + refusals  # it is known by now
        for request in model.requests:
            assert_well_formed(request, extra_fields=True)


@pytest.mark.parametrize("server", SERVERS)
def test_what_goes_out_changes_nothing_of_what_a_store_keeps_for_the_next_turn(server: str, tmp_path: Path) -> None:
    storage = FileStorage.open(str(tmp_path))
    session = storage.create()
    with storage.lock(session) as locked:
        locked.append({"role": "user", "content": "x" * (64 << 10)})  # a large session stays parsed between turns
        locked.append({"role": "assistant", "content": "Too long."})
    with ModelServer(default=SERVERS[server]()) as model, Client(model=model, storage=storage) as client:
        converse(client, session, 3)
    with storage.lock_for_turn(session) as locked:
        assert locked.session == FileStorage.open(str(tmp_path)).get(session)


@pytest.mark.parametrize("server", [name for name in SERVERS if name != "OpenRouter"])  # which misses nothing
def test_a_history_that_was_stored_before_or_by_another_model_works(server: str, tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:  # a server that sends nothing beside its calls
        client.model.then(*[_plain_call("c1"), answer("It is 2.")])
        session = client.create()
        client.run(session)
    with ModelServer(default=SERVERS[server]()) as model:
        with Client(model=model, storage=FileStorage.open(str(tmp_path)), model_name="one") as client:
            converse(client, session, 2)
        with Client(model=model, storage=FileStorage.open(str(tmp_path)), model_name="two") as client:
            converse(client, session, 2)
            last = model.requests[-1]["messages"]
        assert sum(len(message.get("tool_calls", ())) for message in last) == 1 + 4 * 2
        assert [message["content"] for message in last if message["role"] == "tool"] == ["2"] * 9


def test_what_one_model_left_is_sent_to_no_other() -> None:
    storage = MemoryStorage()
    with ModelServer(default=gemini()) as model:
        with Client(model=model, storage=storage, model_name="one") as client:
            session = client.create()
            converse(client, session, 1)
        with Client(storage=storage, model_name="one") as other_server:
            other_server.run(session)
            assert SIGNATURE not in json.dumps(other_server.model.requests, ensure_ascii=False)
        model.then(answer("OK"))
        with Client(model=model, storage=storage, model_name="two") as other_model:
            other_model.run(session)
            assert SIGNATURE not in json.dumps(model.requests[-1], ensure_ascii=False)


def test_a_signature_in_a_later_piece_without_an_index_belongs_to_the_last_call(client: Client) -> None:
    function = {"name": "calculator", "arguments": '{"expression": "1"}'}
    extra = {"extra_content": {"google": {"thought_signature": SIGNATURE}}}
    call = {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
    client.model.then(streamed(call, {"tool_calls": [extra]}, reason="tool_calls"))
    session = client.create()
    client.run(session)
    assert client.model.requests[-1]["messages"][1]["tool_calls"][0] == {
        "id": "c1",
        "type": "function",
        "function": function,
        **extra,
    }


def test_state_that_is_too_large_is_dropped(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    details = [{"type": "reasoning.encrypted", "data": "x" * (257 << 10), "index": 0}]
    client.model.then(streamed({"reasoning": "Hm.", "reasoning_details": details}, {"content": "Hello"}))
    session = client.create()
    assert client.run(session).status_code == 200
    assert "is dropped" in caplog.text
    client.run(session)
    assert client.model.requests[-1]["messages"][1] == {"role": "assistant", "content": "Hello", "reasoning": "Hm."}


def test_a_400_that_means_something_else_is_not_hidden(client: Client) -> None:
    client.model.then(streamed({"reasoning": "Hm."}, {"content": "Hello"}))
    session = client.create()
    client.run(session)
    refused = status(400, {"error": {"message": "temperature must be at most 2"}})
    client.model.then(refused, refused)
    assert error_of(client.run(session)) == (502, "model_error")
    client.run(session)
    assert client.model.requests[-1]["messages"][1]["reasoning"] == "Hm."  # the fields were not its reason


# --- tools that are refused ---


@pytest.mark.parametrize(
    "refused",
    [
        status(
            400,
            {
                "object": "error",
                "message": '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
                "code": 400,
            },
        ),
        status(500, {"error": {"code": 500, "message": "tools param requires --jinja flag", "type": "server_error"}}),
        status(400, {"error": {"message": "registry.ollama.ai/library/gemma:2b does not support tools"}}),
        status(422, {"detail": [{"loc": ["body", "tools"], "msg": "tools: extra fields not permitted"}]}),
    ],
)
def test_a_server_that_refuses_tools_is_asked_without_them(
    client: Client, refused: ReplyTo, caplog: pytest.LogCaptureFixture
) -> None:
    client.model.then(refused)
    session = client.create()
    assert client.run(session).status_code == 200
    assert client.run(session).status_code == 200
    assert ["tools" in request for request in client.model.requests] == [True, False, False]
    assert "--enable-auto-tool-choice" in caplog.text and "--jinja" in caplog.text


def test_tools_are_kept_where_dropping_them_does_not_help(client: Client) -> None:
    refused = status(400, {"error": {"message": "invalid tool_call_id in message 3"}})
    client.model.then(refused, refused, refused)
    assert error_of(client.run(client.create())) == (502, "model_error")
    client.run(client.create())
    assert "tools" in client.model.requests[-1]


# --- questions that are refused, or cancelled ---


def unless(bad: str, refused: ReplyTo) -> ReplyTo:
    """A script that refuses each request in which this text stands."""
    return lambda request: (refused if bad in json.dumps(request["messages"]) else answer("OK"))(request)


@pytest.mark.parametrize("code", [400, 413, 422])
def test_a_refused_question_is_left_out_of_later_requests(code: int, tmp_path: Path) -> None:
    error = {"error": {"message": "The response was filtered by the content policy", "code": "policy"}}
    script = unless("Bad", status(code, error))
    with Client(default=script, storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        client.run(session, "One")
        assert client.run(session, "Bad").status_code in (400, 502)
        assert client.run(session, "Two").status_code == 200
    with Client(default=script, storage=FileStorage.open(str(tmp_path))) as client:
        assert client.run(session, "Three").status_code == 200
        sent = [m["content"] for m in client.model.requests[-1]["messages"] if m["role"] == "user"]
        assert sent == ["One", "Two", "Three"]
        assert [m["content"] for m in client.messages(session) if m["role"] == "user"] == [
            "One",
            "Bad",
            "Two",
            "Three",
        ]


def test_a_turn_whose_tool_result_is_refused_is_left_out_too() -> None:
    with Client(default=unless("tool_call_id", status(400, {"error": {"message": "content policy"}}))) as client:
        session = client.create()
        client.model.then(_plain_call("c1"))
        assert error_of(client.run(session, "One")) == (502, "model_error")
        assert client.run(session, "Two").status_code == 200
        assert [m["content"] for m in client.model.requests[-1]["messages"]] == ["Two"]


def test_a_refused_question_is_asked_again_under_its_key(client: Client) -> None:
    policy = status(400, {"error": {"message": "content policy"}})
    client.model.then(policy, policy)
    session = client.create()
    assert client.run(session, "Bad", Idempotency_Key="k").status_code == 502
    assert client.run(session, "Bad", Idempotency_Key="k").status_code == 200
    assert client.model.requests[-1]["messages"][-1]["content"] == "Bad"
    client.run(session, "More")
    assert [m["content"] for m in client.model.requests[-1]["messages"]] == ["Bad", "OK", "More"]


@pytest.mark.parametrize("reply", [status(401), status(500), answer(BREAK), status(404)])
def test_a_question_that_failed_for_another_reason_goes_out_as_before(reply: ReplyTo) -> None:
    with Client() as client:
        session = client.create()
        client.model.then(*[reply] * 3)
        assert client.run(session, "One").status_code >= 400
        client.run(session, "Two")
        assert client.model.requests[-1]["messages"][-1]["content"] == "One\n\nTwo"


def test_a_cancelled_question_is_followed_by_a_mark(client: Client) -> None:
    client.model.then(answer(STALL))
    session = client.create()
    stream = client.stream(session, "One")
    stream.next()
    client.model.wait_for(1)
    client.request("POST", f"/sessions/{session}/cancel")
    stream.rest()
    client.run(session, "Two")
    assert [message["content"] for message in client.model.requests[-1]["messages"]] == ["One", "(cancelled)", "Two"]


def _plain_call(id: str) -> ReplyTo:
    function = {"name": calculator.__name__, "arguments": '{"expression": "1+1"}'}
    call = {"index": 0, "id": id, "type": "function", "function": function}
    return streamed({"tool_calls": [call]}, reason="tool_calls")
