"""What of a long history goes to the model: whole turns, the newest, and always the current one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import MemoryStorage
from tests.support.client import Client, error_of, json_of, storages
from tests.support.model_server import BREAK, ReplyTo, answer, body, frames, status, tool_call, tool_calls, whole
from tests.support.well_formed import assert_well_formed

SENTENCE = "This model's maximum context length is 4097 tokens. However, your messages resulted in 4107 tokens."

# The ways in which model servers say that a request is too long for the context.
OVERFLOWS: dict[str, ReplyTo] = {
    "OpenAI": status(
        400, {"error": {"message": SENTENCE, "type": "invalid_request_error", "code": "context_length_exceeded"}}
    ),
    "a code and no words": status(400, {"error": {"message": "", "code": "context_length_exceeded"}}),
    "llama.cpp": status(
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available size",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 4107,
            }
        },
    ),
    "llama.cpp, as a failure": status(500, {"error": {"code": 500, "message": "Context size has been exceeded."}}),
    "vLLM": status(400, {"object": "error", "message": SENTENCE, "type": "BadRequestError", "code": 400}),
    "a sentence alone": status(400, {"error": SENTENCE}),
    "a message": status(400, {"message": SENTENCE}),
    "a detail": status(400, {"detail": SENTENCE}),
    "details": status(422, {"detail": [{"loc": ["body"], "msg": SENTENCE, "type": "value_error"}]}),
    "a gateway that wraps": status(400, {"error": {"message": f"litellm: {SENTENCE}", "code": "400"}}),
    "an error in the stream": frames({"error": {"message": SENTENCE, "code": 400}}, "[DONE]"),
    "an error in the stream by its code": frames({"error": {"message": "no", "code": "context_length_exceeded"}}),
    "an error in the stream behind a chunk without text": frames(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"error": {"message": "no", "code": "context_length_exceeded"}},
    ),
    "a whole body in place of a stream": whole({"error": {"message": SENTENCE, "code": "context_length_exceeded"}}),
}


@pytest.fixture(scope="module", params=["memory", "files"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(storage=storages(tmp_path_factory.mktemp("store"))[request.param]()) as client:
        yield client


@pytest.fixture
def client(shared: Client) -> Client:
    """The app, as if its model server had been asked nothing yet."""
    shared.model.forget()
    return shared


def with_turns(client: Client, *texts: str) -> str:
    """A session with a turn for each text, answered with "OK"."""
    session = client.create()
    for text in texts:
        assert client.run(session, text).status_code == 200
    return session


def sent(client: Client, number: int = -1) -> list[str]:
    """What the model was sent: the users' messages as they are, the others by their role."""
    request = client.model.requests[number]
    assert_well_formed(request)
    return [m["content"] if m["role"] == "user" else m["role"] for m in request["messages"]]


def newest(client: Client, count: int) -> list[list[str]]:
    """The last requests, oldest first."""
    return [sent(client, number - count) for number in range(count)]


# -max_history


@pytest.mark.parametrize(
    ("limit", "turns"), [(0, 4), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 2), (8, 4), (9, 4), (1000, 4)]
)
def test_at_most_so_many_messages_before_the_current_turn_are_sent(limit: int, turns: int) -> None:
    with Client(max_history=limit) as client:
        session = with_turns(client, "1", "2", "3", "4")
        client.run(session, "5")
        before = [part for text in ["1", "2", "3", "4"][4 - turns :] for part in (text, "assistant")]
        assert sent(client) == [*before, "5"]


def test_a_turn_with_tools_counts_with_all_its_messages() -> None:
    with Client(max_history=5) as client:
        session = with_turns(client, "1")
        client.model.then(tool_calls(("calculator", {"expression": "1"}), ("calculator", {"expression": "2"})))
        client.run(session, "2")
        client.run(session, "3")
        assert sent(client) == ["2", "assistant", "tool", "tool", "assistant", "3"]
        client.run(session, "4")
        assert sent(client) == ["3", "assistant", "4"]


def test_a_turn_that_is_too_long_by_itself_is_left_out_whole() -> None:
    with Client(max_history=3) as client:
        session = with_turns(client, "1")
        client.model.then(tool_calls(("calculator", {"expression": "1"}), ("calculator", {"expression": "2"})))
        client.run(session, "2")
        client.run(session, "3")
        assert sent(client) == ["3"]


def test_the_current_turn_is_sent_whole_however_long_it_is() -> None:
    with Client(max_history=1) as client:
        session = with_turns(client, "1")
        client.model.then(*[tool_call("calculator", {"expression": "1"})] * 5)
        client.run(session, "2")
        assert sent(client) == ["2", *["assistant", "tool"] * 5]


def test_the_instructions_are_sent_besides() -> None:
    with Client(max_history=2, system_prompt="Be brief.") as client:
        session = with_turns(client, "1", "2")
        client.model.then(OVERFLOWS["OpenAI"])
        client.run(session, "3")
        assert newest(client, 2) == [["system", "2", "assistant", "3"], ["system", "3"]]


def test_max_history_does_not_cut_what_is_stored() -> None:
    with Client(max_history=1) as client:
        session = with_turns(client, "1", "2", "3")
        assert [m["content"] for m in client.messages(session)] == ["1", "OK", "2", "OK", "3", "OK"]


@settings(max_examples=40, deadline=None, database=None)
@given(calls=st.lists(st.integers(0, 3), max_size=6), limit=st.integers(1, 12))
def test_whole_turns_are_sent_up_to_the_newest_and_no_more_than_fit(calls: list[int], limit: int) -> None:
    storage = MemoryStorage()
    session = storage.create()
    turns: list[list[str]] = []
    with storage.lock(session) as locked:
        for number, count in enumerate(calls):
            locked.append({"role": "user", "content": str(number)})
            for call in range(count):
                function = {"name": "calculator", "arguments": "{}"}
                made = [{"id": f"call-{number}-{call}", "type": "function", "function": function}]
                locked.append({"role": "assistant", "content": "", "tool_calls": made})
                locked.append({"role": "tool", "content": "0", "tool_call_id": f"call-{number}-{call}"})
            locked.append({"role": "assistant", "content": "OK"})
            turns.append([str(number), *["assistant", "tool"] * count, "assistant"])
    with Client(storage=storage, max_history=limit) as client:
        client.run(session, "now")
        *before, last = sent(client)
    endings = [[part for turn in turns[begin:] for part in turn] for begin in range(len(turns) + 1)]
    assert last == "now"
    assert before in endings
    assert len(before) <= limit
    assert before == endings[0] or len(endings[0]) > limit
    assert before or not turns or len(turns[-1]) > limit


def test_the_beginning_of_what_is_sent_stays_the_same_for_many_turns() -> None:
    with Client(max_history=12, system_prompt="Be brief.") as client:
        with_turns(client, *map(str, range(40)))
        requests = [request["messages"] for request in client.model.requests]
    moved = [
        number for number in range(1, 40) if requests[number][: len(requests[number - 1])] != requests[number - 1]
    ]
    assert moved == [7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37]
    assert {len(requests[number]) for number in moved} == {10}  # instructions, two thirds of twelve, the question


# When the model server says that the context is exceeded


@pytest.mark.parametrize(
    ("overflow", "stream"),
    [
        pytest.param(overflow, stream, id=f"{name}, {'streamed' if stream else 'whole'}")
        for stream in (True, False)
        for name, overflow in OVERFLOWS.items()
        if stream or "in the stream" not in name
    ],
)
def test_the_model_is_asked_again_with_the_newer_half(overflow: ReplyTo, stream: bool) -> None:
    with Client(stream=stream) as client:
        session = with_turns(client, "1", "2", "3", "4")
        client.model.then(overflow)
        assert json_of(client.run(session, "5"))["message"]["content"] == "OK"
        assert newest(client, 2) == [
            ["1", "assistant", "2", "assistant", "3", "assistant", "4", "assistant", "5"],
            ["3", "assistant", "4", "assistant", "5"],
        ]


@pytest.mark.parametrize("overflow", OVERFLOWS.values(), ids=[*OVERFLOWS])
def test_only_when_the_current_turn_alone_is_too_long_it_is_an_error(overflow: ReplyTo) -> None:
    with Client() as client:
        session = with_turns(client, "1", "2", "3", "4")
        client.model.then(*[overflow] * 6)
        assert error_of(client.run(session, "5")) == (400, "context_length_exceeded")
        assert [len(request["messages"]) for request in client.model.requests[4:]] == [9, 5, 3, 1]


def test_on_a_stream_it_is_an_error_event(client: Client) -> None:
    session = with_turns(client, "1", "2")
    client.model.then(OVERFLOWS["OpenAI"], OVERFLOWS["vLLM"], OVERFLOWS["OpenAI"])
    data = client.stream(session, "3").last()["data"]
    assert (data["code"], data["status"]) == ("context_length_exceeded", 400)
    assert SENTENCE not in data["error"]


def test_a_first_turn_that_is_too_long_is_an_error_at_once(client: Client) -> None:
    session = client.create()
    client.model.then(OVERFLOWS["OpenAI"])
    assert error_of(client.run(session, "1")) == (400, "context_length_exceeded")
    assert len(client.model.requests) == 1


def test_the_only_earlier_turn_is_left_out(client: Client) -> None:
    session = with_turns(client, "1")
    client.model.then(OVERFLOWS["OpenAI"])
    assert client.run(session, "2").status_code == 200
    assert sent(client) == ["2"]


def test_half_is_measured_by_text_and_not_by_turns(client: Client) -> None:
    session = with_turns(client, "1", "2", "3", "x" * 1000)
    client.model.then(OVERFLOWS["OpenAI"])
    client.run(session, "5")
    assert sent(client) == ["5"]


def test_a_long_old_turn_goes_first(client: Client) -> None:
    session = with_turns(client, "x" * 1000, "2", "3")
    client.model.then(OVERFLOWS["OpenAI"])
    client.run(session, "4")
    assert sent(client) == ["2", "assistant", "3", "assistant", "4"]


def test_turns_with_tools_are_kept_or_left_out_whole(client: Client) -> None:
    client.model.then(*[tool_call("calculator", {"expression": "1+1"}), answer("It is 2.")] * 4)
    session = with_turns(client, "1", "2", "3", "4")
    client.model.then(OVERFLOWS["OpenAI"])
    client.run(session, "5")
    assert sent(client) == ["3", "assistant", "tool", "assistant", "4", "assistant", "tool", "assistant", "5"]


def test_the_current_turn_is_whole_also_when_its_tools_make_it_too_long(client: Client) -> None:
    session = with_turns(client, "1", "2")
    tool = tool_call("calculator", {"expression": "1+1"})
    client.model.then(tool, tool, OVERFLOWS["OpenAI"])
    assert client.run(session, "3").status_code == 200
    assert newest(client, 2) == [
        ["1", "assistant", "2", "assistant", "3", "assistant", "tool", "assistant", "tool"],
        ["2", "assistant", "3", "assistant", "tool", "assistant", "tool"],
    ]


def test_what_was_left_out_stays_out_for_the_rest_of_the_turn(client: Client) -> None:
    session = with_turns(client, "1", "2")
    client.model.then(OVERFLOWS["OpenAI"], tool_call("calculator", {"expression": "1+1"}))
    client.run(session, "3")
    assert sent(client) == ["2", "assistant", "3", "assistant", "tool"]


def test_within_a_turn_the_history_is_halved_again_and_again(client: Client) -> None:
    session = with_turns(client, "1", "2", "3", "4")
    overflow = OVERFLOWS["OpenAI"]
    client.model.then(overflow, tool_call("calculator", {"expression": "1+1"}), overflow, overflow, overflow)
    assert error_of(client.run(session, "5")) == (400, "context_length_exceeded")
    assert [len(request["messages"]) for request in client.model.requests[4:]] == [9, 5, 7, 5, 3]


def test_the_next_turn_begins_where_the_last_one_fitted(client: Client) -> None:
    session = with_turns(client, "1", "2")
    client.model.then(OVERFLOWS["OpenAI"])
    client.run(session, "3")
    client.run(session, "4")
    assert sent(client) == ["2", "assistant", "3", "assistant", "4"]
    client.run(session, "5")
    assert sent(client) == ["2", "assistant", "3", "assistant", "4", "assistant", "5"]


def test_another_model_gets_all_of_the_history() -> None:
    storage = MemoryStorage()
    with Client(storage=storage) as client:
        session = with_turns(client, "1", "2")
        client.model.then(OVERFLOWS["OpenAI"])
        client.run(session, "3")
    with Client(storage=storage, model_name="with a larger context") as client:
        client.run(session, "4")
        assert sent(client) == ["1", "assistant", "2", "assistant", "3", "assistant", "4"]


def test_a_question_that_is_too_long_by_itself_is_left_out_of_later_requests(client: Client) -> None:
    session = with_turns(client, "1")
    client.model.then(*[OVERFLOWS["OpenAI"]] * 2)
    assert error_of(client.run(session, "2")) == (400, "context_length_exceeded")
    client.run(session, "3")
    assert sent(client) == ["1", "assistant", "3"]


def test_a_stream_without_any_event_counts_as_too_long_a_history(client: Client) -> None:
    session = with_turns(client, "1", "2")
    client.model.then(frames())
    assert client.run(session, "3").status_code == 200
    assert sent(client) == ["2", "assistant", "3"]
    client.model.then(*[frames()] * 3)
    assert error_of(client.run(session, "x" * 1000)) == (502, "model_error")
    assert client.run(session, "4").status_code == 200


def test_max_history_is_halved_further() -> None:
    with Client(max_history=4) as client:
        session = with_turns(client, "1", "2", "3", "4")
        client.model.then(OVERFLOWS["OpenAI"])
        client.run(session, "5")
        assert newest(client, 2) == [
            ["3", "assistant", "4", "assistant", "5"],
            ["4", "assistant", "5"],
        ]


def test_the_stored_history_is_not_cut(client: Client) -> None:
    session = with_turns(client, "1", "2", "3")
    client.model.then(OVERFLOWS["OpenAI"])
    client.run(session, "4")
    client.model.then(*[OVERFLOWS["OpenAI"]] * 6)
    client.run(session, "5")
    stored = ["1", "OK", "2", "OK", "3", "OK", "4", "OK", "5"]
    assert [message["content"] for message in client.messages(session)] == stored


def test_after_an_overflow_the_session_takes_a_shorter_message(client: Client) -> None:
    session = with_turns(client, "1")
    client.model.then(OVERFLOWS["OpenAI"], OVERFLOWS["OpenAI"])
    client.run(session, "x" * 1000)
    client.model.then(OVERFLOWS["OpenAI"])
    assert client.run(session, "3").status_code == 200
    assert sent(client) == ["3"]


NOT_OVERFLOWS: dict[str, ReplyTo] = {
    "a bad request": status(400, {"error": {"message": "messages: invalid role", "code": "invalid_request_error"}}),
    "a rate": status(429, {"error": {"message": "tokens per minute exceeded"}}, {"Retry-After": "9999"}),
    "a key": status(401, {"error": {"message": "Incorrect API key provided"}}),
    "a page": body(b"<html>context</html>", "text/html"),
    "an answer that breaks off": answer("Too long a context", BREAK),
}


@pytest.mark.parametrize("reply", NOT_OVERFLOWS.values(), ids=[*NOT_OVERFLOWS])
def test_other_errors_trim_nothing(reply: ReplyTo) -> None:
    with Client() as client:
        session = with_turns(client, "1", "2")
        client.model.then(*[reply] * 3)
        assert error_of(client.run(session, "3"))[1] != "context_length_exceeded"
        everything = ["1", "assistant", "2", "assistant", "3"]
        for number in range(2, len(client.model.requests)):
            assert sent(client, number) == everything
