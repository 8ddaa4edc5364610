"""The built-in demo, over HTTP as any client meets it."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from session_core.model.demo import demo_script
from session_core.model.summarizing import ASK, INTRODUCTION
from tests.support.scripted_server import ModelServer

HELLO = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "stream": True})
CALCULATOR = [{"type": "function", "function": {"name": "calculator", "parameters": {}}}]


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer(demo_script(delay=0)) as server:
        yield server


def ask(model: ModelServer, *said: str | dict[str, Any], **more: Any) -> bytes:
    messages = [{"role": "user", "content": one} if isinstance(one, str) else one for one in said]
    connection = http.client.HTTPConnection("127.0.0.1", model.server_port, timeout=30)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps({"model": "demo", "messages": messages, **more})
        )
        return connection.getresponse().read()
    finally:
        connection.close()


def message(model: ModelServer, *said: str | dict[str, Any], **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(ask(model, *said, **more))["choices"][0]["message"]
    return answer


def events(model: ModelServer, *said: str | dict[str, Any], **more: Any) -> list[Any]:
    frames = ask(model, *said, stream=True, **more).decode().split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def test_of_a_message_with_a_picture_a_summary_has_the_text(model: ModelServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    look = {"role": "user", "content": [{"type": "text", "text": "Look"}, picture]}
    assert message(model, look, ASK)["content"] == "The user wrote:\n- Look"


def test_a_summary_has_what_the_user_wrote_and_the_summary_before(model: ModelServer) -> None:
    assert message(model, "One", "Two", ASK)["content"] == "The user wrote:\n- One\n- Two"
    system = {"role": "system", "content": f"Be brief.\n\n{INTRODUCTION}\n\nThe user wrote:\n- One"}
    assert message(model, system, "Two", ASK)["content"] == "The user wrote:\n- One\n- Two"


def expression_of(message: dict[str, Any]) -> str:
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "calculator"
    expression: str = json.loads(call["function"]["arguments"])["expression"]
    return expression


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("What is 15 * 23?", "15 * 23"),
        ("2+2", "2+2"),
        ("And (3 + 4) * 5, please.", "(3 + 4) * 5"),
        ("what is 2**200", "2**200"),
        ("How much is sqrt(16)?", "sqrt(16)"),
        ("1,234.5 × 2", "1,234.5 × 2"),
    ],
)
def test_an_expression_becomes_a_call_of_the_calculator(model: ModelServer, text: str, expression: str) -> None:
    assert expression_of(message(model, text, tools=CALCULATOR)) == expression


@pytest.mark.parametrize("text", ["Hello, I need to perform some calculations.", "I have 2 cats.", "", "+", "((("])
def test_other_text_gets_an_answer_that_names_itself_a_demo(model: ModelServer, text: str) -> None:
    answer = message(model, text, tools=CALCULATOR)
    assert "demo" in answer["content"]
    assert "tool_calls" not in answer


def test_a_text_of_a_megabyte_is_answered_too(model: ModelServer) -> None:
    assert "demo" in message(model, "(" * (1 << 20), tools=CALCULATOR)["content"]


def test_nothing_is_called_that_the_request_does_not_offer(model: ModelServer) -> None:
    assert "demo" in message(model, "What is 15 * 23?")["content"]


def after_the_tool(result: str) -> list[Any]:
    function = {"name": "calculator", "arguments": '{"expression": "15 * 23"}'}
    call = {"id": "call00001", "type": "function", "function": function}
    return [
        "What is 15 * 23?",
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": result},
    ]


def test_the_result_of_the_tool_is_told(model: ModelServer) -> None:
    assert message(model, *after_the_tool("345"), tools=CALCULATOR) == {
        "role": "assistant",
        "content": "15 * 23 is 345.",
    }


def test_the_error_of_the_tool_is_told(model: ModelServer) -> None:
    answer = message(model, *after_the_tool("error: too large"), tools=CALCULATOR)
    assert answer["content"] == "I could not calculate 15 * 23: too large."


def test_arguments_that_were_mended_are_no_trouble(model: ModelServer) -> None:
    said = after_the_tool("error: interrupted")
    said[1]["tool_calls"][0]["function"]["arguments"] = "{}"
    assert "interrupted" in message(model, *said)["content"]


def test_the_conversation_is_remembered(model: ModelServer) -> None:
    assert "first message" in message(model, "Hello")["content"]
    assert "message number 2" in message(model, "Hello", {"role": "assistant", "content": "Hi"}, "Again")["content"]


def test_a_stream_holds_the_same_words_one_a_chunk(model: ModelServer) -> None:
    chunks = [event["choices"][0] for event in events(model, "Hello")]
    texts = [choice["delta"]["content"] for choice in chunks if choice["delta"].get("content")]
    assert "".join(texts) == message(model, "Hello")["content"]
    assert all(len(text.split()) == 1 for text in texts)
    assert chunks[-1]["finish_reason"] == "stop"


def test_a_streamed_tool_call_is_the_same_call(model: ModelServer) -> None:
    chunks = [event["choices"][0] for event in events(model, "2+2", tools=CALCULATOR)]
    (call,) = (choice["delta"]["tool_calls"][0] for choice in chunks if "tool_calls" in choice["delta"])
    assert expression_of({"tool_calls": [call]}) == "2+2"
    assert chunks[-1]["finish_reason"] == "tool_calls"


def test_usage_comes_last_and_only_when_asked_for(model: ModelServer) -> None:
    last = events(model, "Hello there", stream_options={"include_usage": True})[-1]
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == 2
    assert all("usage" not in event for event in events(model, "Hello there"))


def test_the_words_are_spread_over_time() -> None:
    with ModelServer(demo_script(delay=0.01)) as model:
        began = time.monotonic()
        words = len(message(model, "Hello")["content"].split())
        whole = time.monotonic()
        events(model, "Hello")
        assert time.monotonic() - whole >= words * 0.01
        assert whole - began < 30


def test_a_connection_serves_several_requests(model: ModelServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", model.server_port, timeout=30)
    for _ in range(3):
        connection.request("POST", "/v1/chat/completions", HELLO)
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
        assert connection.sock is not None
    connection.close()


def test_a_client_that_leaves_ends_its_answer() -> None:
    with ModelServer(demo_script(delay=60)) as model:
        before = threading.active_count()
        connection = http.client.HTTPConnection("127.0.0.1", model.server_port, timeout=30)
        connection.request(
            "POST", "/v1/chat/completions", '{"messages":[{"role":"user","content":"a"}],"stream":true}'
        )
        response = connection.getresponse()
        (worker,) = (thread for thread in threading.enumerate() if "process_request" in thread.name)
        response.close()
        connection.close()
        worker.join(30)
        assert threading.active_count() == before


def test_stopping_ends_running_answers_and_frees_the_port() -> None:
    threads = set(threading.enumerate())
    model = ModelServer(demo_script(delay=60)).start()
    connection = http.client.HTTPConnection("127.0.0.1", model.server_port, timeout=30)
    connection.request("POST", "/v1/chat/completions", HELLO)
    response = connection.getresponse()
    model.stop()
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    connection.close()
    assert set(threading.enumerate()) == threads
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", model.server_port))
