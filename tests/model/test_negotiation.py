"""What is learned of a model server from its refusals: for whom, for how long, and what is never learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent import Agent, Cancellation
from session_core.model.capabilities import REMEMBERED_SECONDS, Capabilities, Negotiation, RequestForm
from session_core.model.events import Answer, Event, Message, ModelError
from session_core.model.failures import Failure
from tests.support.model_server import STALL, ModelServer, ReplyTo, answer, frames, status, tool_call

QUESTION = {"role": "user", "content": "Hi"}


def calculator(expression: str) -> str:
    """Calculates."""
    return f"<{expression}>"


def weather(place: str) -> str:
    """Tells the weather."""
    return "fine"


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def agent(model: ModelServer) -> Iterator[Agent]:
    made = Agent(api_key="k", base_url=model.base_url, model="m", tools=[calculator, weather])
    yield made
    made.close()


def ask(agent: Agent, *history: Any, **settings: Any) -> list[Event]:
    return list(agent.run(history or [QUESTION], Cancellation(), **settings))


def refused(message: str, http: int = 400, **more: Any) -> ReplyTo:
    return status(http, {"error": {"message": message, **more}}, {"Retry-After": "0"})


def offered(model: ModelServer) -> list[list[str]]:
    return [[tool["function"]["name"] for tool in request.get("tools", ())] for request in model.requests]


BOTH = ["calculator", "weather"]
JSON = {"response_format": {"type": "json_object"}}
BAD_CALL = refused(
    "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more details.",
    http=400,
    type="invalid_request_error",
)


def test_a_server_without_tools_is_asked_without_them_from_then_on(
    model: ModelServer, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    model.then(refused("registry.ollama.ai/library/gemma:2b does not support tools"))
    ask(agent)
    ask(agent)
    assert offered(model) == [BOTH, [], []]
    (warning,) = [message for message in caplog.messages if "is asked without tools" in message]
    assert "does not support tools" in warning
    assert "10 minutes" in warning


@pytest.mark.parametrize(
    "refusal",
    [
        BAD_CALL,
        refused("tool choice is none, but the model called a tool", type="tool_use_failed"),
        refused('Cannot read the answer: "I have no tools available"', http=500),
        refused("Failed to parse input at pos 3: my tools are not supported or available", http=500),
    ],
    ids=["Groq", "tool_use_failed", "a quotation", "the model's words"],
)
def test_a_bad_answer_of_the_model_takes_no_tools_away(model: ModelServer, agent: Agent, refusal: ReplyTo) -> None:
    model.then(refusal)
    ask(agent)
    ask(agent)
    assert offered(model) == [BOTH, BOTH, BOTH]


def test_what_a_callers_own_options_rule_out_is_missing_from_that_request_alone(
    model: ModelServer, agent: Agent
) -> None:
    model.then(refused("json mode cannot be combined with tool/function calling"))
    ask(agent, options=JSON)
    ask(agent)
    assert offered(model) == [BOTH, [], BOTH]


def test_stream_options_refused_beside_a_callers_own_options_are_sent_again_later(
    model: ModelServer, agent: Agent
) -> None:
    model.then(refused("extra fields not permitted: stream_options"))
    ask(agent, options=JSON)
    ask(agent)
    assert ["stream_options" in request for request in model.requests] == [True, False, True]


def test_what_a_server_took_before_is_never_remembered_as_refused(model: ModelServer, agent: Agent) -> None:
    ask(agent)
    model.then(refused("tools are not supported while the model is loading"))
    ask(agent)
    ask(agent)
    assert offered(model) == [BOTH, BOTH, [], BOTH]


@pytest.mark.parametrize(
    "refusal",
    [
        refused("Invalid schema for function 'weather': 'anyOf' is not allowed", param="tools[1].function"),
        refused("Invalid value", param="tools[1].function.parameters", code="invalid_function_parameters"),
        refused("tools[0].function_declarations[1].parameters.properties: should be non-empty"),
        status(
            422, {"detail": [{"loc": ["body", "tools", 1, "function", "parameters"], "msg": "Input is no schema"}]}
        ),
    ],
    ids=["by name", "by number", "Gemini", "by its place"],
)
def test_a_tool_whose_schema_is_refused_is_left_out_alone_and_named(
    model: ModelServer, agent: Agent, refusal: ReplyTo, caplog: pytest.LogCaptureFixture
) -> None:
    model.then(refusal)
    ask(agent)
    ask(agent)
    assert offered(model) == [BOTH, ["calculator"], ["calculator"]]
    assert any("without tool weather" in message for message in caplog.messages)


def strict(request: dict[str, Any], *fields: str) -> str | None:
    """The first of the fields that a server does not know and the request has."""
    messages = [part for message in request["messages"] for part in (message, *message.get("tool_calls", ()))]
    return next((field for field in fields if any(field in part for part in messages)), None)


def test_a_strict_server_costs_one_request_more_though_it_names_one_field_after_the_other(
    model: ModelServer, agent: Agent
) -> None:
    call = {
        "index": 0,
        "id": "call_1",
        "function": {"name": "calculator", "arguments": '{"expression":"1"}'},
        "extra_content": {"google": {"thought_signature": "s"}},
    }
    thinks = {
        "choices": [{"delta": {"reasoning_content": "hm", "tool_calls": [call]}, "finish_reason": "tool_calls"}]
    }

    def reply(request: dict[str, Any]) -> Any:
        if field := strict(request, "reasoning_content", "extra_content"):
            return refused(f"property '{field}' is unsupported")(request)
        return answer("OK")(request)

    model.default = reply
    model.then(frames(thinks))
    ask(agent)
    assert len(model.requests) == 3
    ask(agent)
    assert len(model.requests) == 4


# For how long


def failure(words: str, code: int = 400) -> Failure:
    made = Failure("model_error", "refused")
    made.status, made.words, made.reason = code, words, words
    return made


def test_what_was_learned_is_tried_again_after_ten_minutes() -> None:
    now = [0.0]
    capabilities = Capabilities(RequestForm(), lambda: now[0])
    negotiation = Negotiation(capabilities)
    negotiation.sent = ["usage", "tools"]
    assert negotiation.change(failure("tools are not supported"))
    negotiation.sent = ["usage"]
    negotiation.accept()
    now[0] = REMEMBERED_SECONDS - 1
    assert not capabilities.form.has("tools")
    now[0] = REMEMBERED_SECONDS
    assert capabilities.form.has("tools")


# Parameters of the caller's own


def error_of(call: Callable[[], object]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("refusal", "named"),
    [
        (refused("temperature must be at most 2"), True),
        (refused("Invalid value", param="temperature"), True),
        (status(422, {"detail": [{"loc": ["body", "temperature"], "msg": "too high"}]}), True),
        (refused("no"), False),
    ],
    ids=["in words", "as param", "as loc", "not named"],
)
def test_a_parameter_of_the_callers_own_that_is_refused_is_told_and_no_question_is_left_out(
    model: ModelServer, agent: Agent, refusal: ReplyTo, named: bool
) -> None:
    model.default = refusal
    error = error_of(lambda: ask(agent, options={"temperature": 9}))
    assert (error.code, error.refused) == ("invalid_request", False)
    assert ("temperature" in str(error)) is named
    assert len(model.requests) <= 3


def test_a_parameter_of_the_servers_own_is_no_callers_fault(model: ModelServer) -> None:
    agent = Agent(api_key="k", base_url=model.base_url, model="m", options={"temperature": 9})
    model.default = refused("temperature must be at most 2")
    assert error_of(lambda: ask(agent)).code == "model_error"
    agent.close()


# Questions that take a session down


def user(text: str) -> dict[str, Any]:
    return {"id": f"msg-{text}", "role": "user", "content": text}


def poisoned(word: str, refusal: ReplyTo) -> ReplyTo:
    """A server that fails for each request in which the word stands."""
    return lambda request: (refusal if any(word in m["content"] for m in request["messages"]) else answer("OK"))(
        request
    )


def texts(request: dict[str, Any]) -> list[str]:
    return [message["content"] for message in request["messages"]]


@pytest.mark.parametrize(
    "refusal",
    [
        frames({"error": "the input is bad"}),
        frames(b": nothing\n\n"),
        refused("broken", http=500),
        refused("broken", http=418),
        status(200, b"<html></html>"),
    ],
    ids=["an error frame", "an empty stream", "500", "418", "html"],
)
def test_a_question_that_a_server_refuses_in_whatever_way_takes_no_later_one_down(
    model: ModelServer, agent: Agent, refusal: ReplyTo
) -> None:
    model.default = poisoned("poison", refusal)
    history = [user("before"), {"role": "assistant", "content": "OK"}, user("poison"), user("next")]
    last = ask(agent, *history)[-1]
    assert isinstance(last, Answer)
    assert last.fields["leaves_out"] == ["msg-poison"]
    assert texts(model.requests[-1]) == ["before", "OK", "next"]


def test_a_silent_server_leaves_time_to_ask_without_the_earlier_question(model: ModelServer) -> None:
    agent = Agent(api_key="k", base_url=model.base_url, model="m", timeout=2.0)
    model.default = poisoned("poison", answer(STALL))
    assert isinstance(ask(agent, user("poison"), user("next"))[-1], Answer)
    assert [texts(request) for request in model.requests] == [["poison\n\nnext"], ["next"]]
    agent.close()


def test_questions_are_left_out_of_what_follows_in_the_turn_too(model: ModelServer, agent: Agent) -> None:
    calls_then_answers = iter([tool_call("calculator", {"expression": "1"}), answer("OK")])
    broken = refused("broken", http=418)

    def reply(request: dict[str, Any]) -> Any:
        return (broken if "poison" in str(request["messages"]) else next(calls_then_answers))(request)

    model.default = reply
    events = ask(agent, user("poison"), user("next"))
    first = next(event for event in events if isinstance(event, Message))
    assert first.data["leaves_out"] == ["msg-poison"]
    assert "poison" not in str(model.requests[-1])


@pytest.mark.parametrize(
    "refusal", [refused("slow down", http=429), refused("no", http=401), refused("no", http=404)]
)
def test_a_failure_that_no_question_causes_leaves_none_out(
    model: ModelServer, agent: Agent, refusal: ReplyTo
) -> None:
    model.default = refusal
    error_of(lambda: ask(agent, user("first"), user("next")))
    assert all("first" in str(request) for request in model.requests)


def test_no_question_is_left_out_where_that_does_not_help(model: ModelServer, agent: Agent) -> None:
    model.then(*[refused("broken", http=418)] * 2)
    error_of(lambda: ask(agent, user("first"), user("next")))
    assert [texts(request) for request in model.requests] == [["first\n\nnext"], ["next"]]
    last = ask(agent, user("first"), user("next"), user("last"))[-1]
    assert isinstance(last, Answer)
    assert last.fields["leaves_out"] == []
    assert texts(model.requests[-1]) == ["first\n\nnext\n\nlast"]


# Cuts


def metadata(events: list[Event]) -> Any:
    last = events[-1]
    assert isinstance(last, Answer)
    return last.fields["provider_metadata"]


@pytest.mark.parametrize(
    ("refusal", "is_kept"),
    [
        (refused("This model's maximum context length is 4097 tokens."), True),
        (refused("too long", code="context_length_exceeded"), True),
        (frames({"error": {"message": "the context length is exceeded"}}), False),
        (refused("context size exceeded", http=500), False),
        (frames(b": nothing\n\n"), False),
    ],
    ids=["400", "code", "a sentence in a stream", "500", "nothing"],
)
def test_a_cut_is_kept_after_a_clear_overflow_only(
    model: ModelServer, agent: Agent, refusal: ReplyTo, is_kept: bool
) -> None:
    history = [one for n in range(4) for one in (user(f"q{n}"), {"role": "assistant", "content": f"a{n}"})]
    model.then(refusal)
    kept = metadata(ask(agent, *history, user("now")))
    assert [len(request["messages"]) for request in model.requests] == [9, 5]
    assert ("first" in kept) is is_kept
