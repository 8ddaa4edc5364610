"""What real model servers refuse, in which words, and what is told and logged of it."""

import logging
from typing import Any

import pytest

from agent import Agent, Cancellation
from session_core.model.events import Answer, ModelError
from tests.support.model_answers import QUESTION, converse, failure, text_delta
from tests.support.model_server import (
    BREAK,
    ModelServer,
    ReplyTo,
    answer,
    body,
    frames,
    nobody_listens,
    raw,
    status,
    whole,
)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (401, {"error": {"message": "Incorrect API key provided: sk-1234", "code": "invalid_api_key"}}),
        (403, b"Forbidden"),
        (400, {"error": {"message": "Authentication Error, LiteLLM Virtual Key expected", "type": "auth_error"}}),
        (400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}]),
    ],
)
def test_a_key_that_is_refused_is_model_unauthorized(code: int, data: Any) -> None:
    with ModelServer(status(code, data)) as model, pytest.raises(ModelError) as caught:
        converse(model)
    assert caught.value.code == "model_unauthorized"
    assert len(model.requests) == 1


OVERFLOWS = {
    "code": status(400, {"error": {"message": "Too long", "code": "context_length_exceeded"}}),
    "type": status(400, {"error": {"code": 400, "message": "Too long", "type": "exceed_context_size_error"}}),
    "sentence": status(400, {"error": {"message": "This model's maximum context length is 4097 tokens."}}),
    "text": status(400, {"error": "the request exceeds the available context size"}),
    "detail": status(422, {"detail": [{"msg": "prompt does not fit the context window", "loc": []}]}),
    "bare text": status(400, b"litellm.ContextWindowExceededError: too long"),
    "server error": status(500, {"error": {"message": "context size exceeded"}}),
    "too large": status(413, b"<html>Request Entity Too Large</html>"),
    "vllm": status(
        400, {"object": "error", "message": "The prompt (length 9) is longer than the maximum model length"}
    ),
    "anthropic": status(400, {"error": {"message": "prompt is too long: 208310 tokens > 200000 maximum"}}),
    "gemini": status(400, [{"error": {"message": "The input token count (9) exceeds the maximum"}}]),
    "status 200": whole({"error": {"message": "This model's maximum context length is 512 tokens."}}),
    "first frame": frames({"error": {"message": "context length exceeded"}}),
}


@pytest.mark.parametrize("reply", OVERFLOWS.values(), ids=OVERFLOWS)
def test_a_context_overflow_is_understood(reply: ReplyTo) -> None:
    with ModelServer(reply) as model, pytest.raises(ModelError) as caught:
        converse(model)
    assert caught.value.code == "context_length_exceeded"
    assert len(model.requests) == 1


@pytest.mark.parametrize("reply", OVERFLOWS.values(), ids=OVERFLOWS)
def test_after_a_context_overflow_half_the_history_is_sent(reply: ReplyTo) -> None:
    earlier = [{"role": role, "content": f"{number}"} for number in range(4) for role in ("user", "assistant")]
    with ModelServer(reply) as model:
        assert converse(model, *earlier, QUESTION)[-1] == Answer("OK", "stop", None, None)
        assert model.requests[1]["messages"] == [*earlier[4:], QUESTION]


def test_an_echo_of_the_request_in_a_refusal_is_no_context_overflow() -> None:
    detail = [{"msg": "field required", "loc": ["body"], "input": "In this context, …"}]
    assert failure(*[status(422, {"detail": detail})] * 2).code == "model_error"


def test_the_sdk_does_not_retry_by_itself() -> None:
    with ModelServer(default=status(429, {}, {"Retry-After": "0"})) as model, pytest.raises(ModelError) as caught:
        converse(model)
    assert caught.value.code == "model_rate_limited"
    assert len(model.requests) == 3


def test_a_wait_that_is_longer_than_the_time_left_is_not_waited(caplog: pytest.LogCaptureFixture) -> None:
    with ModelServer(status(429, {}, {"Retry-After": "100"})) as model, pytest.raises(ModelError) as caught:
        converse(model, timeout=20)
    assert (caught.value.code, caught.value.retry_after) == ("model_rate_limited", "100")
    assert len(model.requests) == 1


SECRETS = (
    "Incorrect API key: sk-test-key. Received API Key = sk-...1234, Key Hash (Token) =88dc28d0f030c55ed4ab77",
    "Authorization: Bearer abcdef",
    "gsk_abcdefgh12345678 and 88dc28d0f030c55ed4ab77ed8faf0981 and password=hunter2",
)


@pytest.mark.parametrize("words", SECRETS)
def test_keys_in_the_words_of_a_server_reach_neither_log_nor_error(
    words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        error = failure(status(401, {"error": {"message": words}}))
    for secret in ("sk-test-key", "1234", "88dc28d0", "abcdef", "hunter2"):
        assert secret not in caplog.text
        assert secret not in str(error)


def test_our_own_key_is_masked_in_whatever_form_it_has(caplog: pytest.LogCaptureFixture) -> None:
    with ModelServer(status(401, {"error": {"message": "not good: opensesame"}})) as model:
        agent = Agent(api_key="opensesame", base_url=model.base_url, model="m")
        with pytest.raises(ModelError):
            list(agent.run([QUESTION], Cancellation()))
        agent.close()
    assert "not good" in caplog.text
    assert "opensesame" not in caplog.text


def test_the_words_of_a_server_are_logged_on_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    failure(*[status(400, {"error": {"message": "no such\nparameter " + "x " * 1000}})] * 2)
    assert "no such parameter" in caplog.messages[0]
    assert all(len(message) < 400 and "\n" not in message for message in caplog.messages)


def test_the_text_of_an_answer_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    confidential = {"choices": [{"message": {"content": "confidential"}, "finish_reason": "stop"}]}
    with caplog.at_level(logging.DEBUG):
        failure(whole(confidential))
        failure(body(b"confidential", "text/plain"))
        failure(frames(text_delta("confidential"), b"data: {confidential\n\n"))
        failure(answer("confidential", BREAK))
    assert caplog.messages
    assert "confidential" not in caplog.text


def test_a_server_that_is_not_there_is_model_error() -> None:
    agent = Agent(api_key="k", base_url=nobody_listens(), model="m", timeout=10)
    with pytest.raises(ModelError) as caught:
        list(agent.run([QUESTION], Cancellation()))
    assert caught.value.code == "model_error"
    assert "could not be reached" in str(caught.value)


def test_a_server_that_speaks_no_http_is_model_error() -> None:
    noise = (b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", b"\0" * 1000)
    assert failure(*map(raw, noise)).code == "model_error"


def test_a_redirect_is_followed() -> None:
    with ModelServer(answer("Hello")) as target:
        moved = status(307, b"", {"Location": f"{target.base_url}/chat/completions"})
        with ModelServer(moved) as model:
            assert converse(model)[-1] == Answer("Hello", "stop", None, None)
            assert target.requests == model.requests
