"""The agent against a real HTTP server: events, tools, what goes out, limits, retries, stopping."""

import copy
import email.utils
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import Agent, Cancellation, Tool
from session_core.model.demo import ScriptedReply, event
from session_core.model.events import Answer, Cancelled, Chunk, Event, Message, ModelError, ToolCall, ToolResult
from tests.support.model_server import (
    BREAK,
    HEADERS,
    RESET,
    STALL,
    ModelServer,
    ReplyTo,
    answer,
    body,
    frames,
    pause,
    raw,
    status,
    tell,
    tool_call,
    tool_calls,
    wait,
)

TIMEOUT = 30.0
QUESTION = {"role": "user", "content": "Hi"}
MakeAgent = Callable[..., Agent]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calling(
    *ids: str, text: str = "", arguments: str = '{"expression": "1"}', name: str = "calculator"
) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    calls = [{"id": id, "type": "function", "function": function} for id in ids]
    return {"role": "assistant", "content": text, "tool_calls": calls}


def told(id: str, content: str = "1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "name": "calculator", "content": content}


def sent_result(id: str, content: str = "1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def calculator(expression: str) -> str:
    """Calculates an expression.

    Use it for all arithmetic.
    """
    if "bad" in expression:
        raise ValueError(f"cannot read {expression}")
    return f"<{expression}>"


@pytest.fixture
def agent_of() -> Iterator[MakeAgent]:
    """Makes agents that are closed at the end."""
    made: list[Agent] = []

    def make(server: ModelServer | None = None, **given: Any) -> Agent:
        defaults: dict[str, Any] = {"api_key": "sk-test", "model": "m", "tools": [calculator]}
        if server is not None:
            defaults["base_url"] = server.base_url
        made.append(Agent(**{**defaults, **given}))
        return made[-1]

    yield make
    for agent in made:
        agent.close()


def run(agent: Agent, *history: Mapping[str, Any]) -> list[Event]:
    return list(agent.run(history or [QUESTION], Cancellation()))


def failure(agent: Agent, *history: Mapping[str, Any]) -> ModelError:
    with pytest.raises(ModelError) as caught:
        run(agent, *history)
    return caught.value


OK = [Chunk("OK"), Answer("OK", "stop", None, None)]


# Events


def test_an_answer_is_its_chunks_and_then_the_whole(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(answer("Hel", "lo"))
    assert run(agent_of(model)) == [Chunk("Hel"), Chunk("lo"), Answer("Hello", "stop", None, None)]


def test_a_chunk_comes_before_the_model_has_said_the_next(model: ModelServer, agent_of: MakeAgent) -> None:
    go_on = threading.Event()
    model.then(answer("Hel", wait(go_on), "lo"))
    events = agent_of(model).run([QUESTION], Cancellation())
    assert next(events) == Chunk("Hel")
    go_on.set()
    assert next(events) == Chunk("lo")
    assert list(events) == [Answer("Hello", "stop", None, None)]


def test_calls_are_stored_then_shown_and_then_their_results(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(
        tool_calls(("calculator", {"expression": "1"}), ("calculator", {"expression": "bad"}), text="Let me see.")
    )
    first, second = '{"expression": "1"}', '{"expression": "bad"}'
    function = {"name": "calculator"}
    assert run(agent_of(model)) == [
        Chunk("Let me see."),
        Message(
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {**function, "arguments": first}},
                    {"id": "call_2", "type": "function", "function": {**function, "arguments": second}},
                ],
                "model": "m",
            },
            None,
        ),
        ToolCall("call_1", "calculator", first),
        ToolCall("call_2", "calculator", second),
        Message(told("call_1", "<1>"), None),
        ToolResult("call_1", "calculator", result="<1>"),
        Message(told("call_2", "error: cannot read bad"), None),
        ToolResult("call_2", "calculator", error="cannot read bad"),
        *OK,
    ]


def test_the_messages_of_a_run_go_to_the_model_in_the_next_round(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(
        tool_call("calculator", {"expression": "1"}, text="See:"),
        tool_call("calculator", {"expression": "2"}, id="b"),
    )
    run(agent_of(model))
    assert [request["messages"] for request in model.requests] == [
        [QUESTION],
        [QUESTION, calling("call_1", text="See:"), sent_result("call_1", "<1>")],
        [
            QUESTION,
            calling("call_1", text="See:"),
            sent_result("call_1", "<1>"),
            calling("b", arguments='{"expression": "2"}'),
            sent_result("b", "<2>"),
        ],
    ]


def test_the_answer_is_the_text_after_the_last_call(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(tool_call("calculator", {"expression": "1"}, text="Before. "), answer("After."))
    events = run(agent_of(model))
    assert [event.content for event in events if isinstance(event, Chunk)] == ["Before. ", "After."]
    assert events[-1] == Answer("After.", "stop", None, None)


def test_usage_is_summed_over_the_calls_of_the_model(model: ModelServer, agent_of: MakeAgent) -> None:
    first = {"total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1}, "cost": 0.5}
    second = {"total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 3}, "cost": 0.25}
    both = {"total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 3}, "cost": 0.75}
    model.then(tool_call("calculator", {"expression": "1"}, usage=first), answer("1", usage=second))
    usages = [event.usage for event in run(agent_of(model)) if isinstance(event, (Message, Answer))]
    assert usages == [first, first, both]


def test_usage_that_only_some_calls_tell_is_summed_as_far_as_it_goes(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(tool_call("calculator", {"expression": "1"}), answer("1", usage={"total_tokens": 7}))
    assert run(agent_of(model))[-1] == Answer("1", "stop", None, {"total_tokens": 7})


def test_runs_at_once_do_not_mix(model: ModelServer, agent_of: MakeAgent) -> None:
    model.default = lambda request: answer(*request["messages"][-1]["content"])(request)
    agent = agent_of(model)
    texts = [f"message number {number}" for number in range(50)]
    with ThreadPoolExecutor(10) as pool:
        answers = pool.map(lambda text: run(agent, user(text))[-1], texts)
        assert list(answers) == [Answer(text, "stop", None, None) for text in texts]


def test_the_history_is_not_changed(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [user("a"), user("b"), calling("x", arguments="{"), user("c")]
    before = copy.deepcopy(history)
    model.then(tool_call("calculator", {"expression": "1"}))
    run(agent_of(model), *history)
    assert history == before


# Tools


def test_the_model_is_told_what_the_function_itself_says(model: ModelServer, agent_of: MakeAgent) -> None:
    run(agent_of(model))
    assert model.requests[0]["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "calculator",
                "description": "Calculates an expression.\n\nUse it for all arithmetic.",
                "parameters": {
                    "type": "object",
                    "properties": {"expression": {"title": "Expression", "type": "string"}},
                    "required": ["expression"],
                    "additionalProperties": False,
                },
            },
        }
    ]


def book(seats: int, price: float, names: list[str], vip: bool = False, row: Literal["a", "b"] | None = None) -> Any:
    return {"seats": seats, "price": price, "names": names, "vip": vip, "row": row}


def test_all_annotations_of_a_function_are_told(model: ModelServer, agent_of: MakeAgent) -> None:
    run(agent_of(model, tools=[book]))
    parameters = model.requests[0]["tools"][0]["function"]["parameters"]
    types = {name: about.get("type") or about["anyOf"] for name, about in parameters["properties"].items()}
    row = [{"enum": ["a", "b"], "type": "string"}, {"type": "null"}]
    assert types == {"seats": "integer", "price": "number", "names": "array", "vip": "boolean", "row": row}
    assert parameters["required"] == ["seats", "price", "names"]


def result_of(model: ModelServer, agent: Agent, name: str, arguments: Mapping[str, Any] | str) -> ToolResult:
    """What comes of one call, which the model is told too."""
    model.then(tool_call(name, arguments))
    (result,) = (event for event in run(agent) if isinstance(event, ToolResult))
    content = result.result if result.error is None else f"error: {result.error}"
    assert model.requests[-1]["messages"][-1] == sent_result("call_1", content or "")
    return result


def test_arguments_arrive_with_the_types_of_the_annotations(model: ModelServer, agent_of: MakeAgent) -> None:
    result = result_of(
        model, agent_of(model, tools=[book]), "book", {"seats": 2, "price": 3, "names": ["é"], "row": "b"}
    )
    assert result.result == '{"seats":2,"price":3.0,"names":["é"],"vip":false,"row":"b"}'


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "expression: Missing required argument"),
        ({"expression": 5}, "expression: Input should be a valid string"),
        ({"expression": "1", "digits": 2}, "digits: Unexpected keyword argument"),
        ('{"expression": ', "the arguments are not a JSON object"),
        ('["1"]', "the arguments are not a JSON object"),
        ("null", "the arguments are not a JSON object"),
        ('{"expression": NaN}', "the arguments are not a JSON object"),
    ],
)
def test_arguments_that_do_not_fit_are_explained_to_the_model(
    model: ModelServer, agent_of: MakeAgent, arguments: Any, complaint: str
) -> None:
    assert complaint in (result_of(model, agent_of(model), "calculator", arguments).error or "")


def test_a_tool_that_does_not_exist_is_an_error_that_names_those_that_do(
    model: ModelServer, agent_of: MakeAgent
) -> None:
    assert "calculator" in (result_of(model, agent_of(model), "weather", {}).error or "")


def test_a_call_without_any_tools_is_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    assert result_of(model, agent_of(model, tools=[]), "weather", {}).error


def test_a_tool_that_would_end_the_program_fails_like_any_other(model: ModelServer, agent_of: MakeAgent) -> None:
    def leave() -> str:
        raise SystemExit(1)

    assert result_of(model, agent_of(model, tools=[leave]), "leave", "").error == "the tool failed (SystemExit)"


def test_of_an_unforeseen_exception_only_the_type_is_told(model: ModelServer, agent_of: MakeAgent) -> None:
    def broken() -> str:
        raise FileNotFoundError("/etc/secret")

    assert (
        result_of(model, agent_of(model, tools=[broken]), "broken", "").error == "the tool failed (FileNotFoundError)"
    )


def test_an_error_without_words_is_an_error_all_the_same(model: ModelServer, agent_of: MakeAgent) -> None:
    def broken() -> str:
        raise ValueError

    assert result_of(model, agent_of(model, tools=[broken]), "broken", "").error


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", ""),
        (None, "null"),
        (5, "5"),
        ({"é": [1, None]}, '{"é":[1,null]}'),
        ("a\ud83d", "a\ufffd"),
        (frozenset(), "[]"),
    ],
)
def test_what_a_tool_returns_becomes_text(model: ModelServer, agent_of: MakeAgent, value: Any, text: str) -> None:
    def tool() -> Any:
        return value

    assert result_of(model, agent_of(model, tools=[tool]), "tool", "").result == text


def test_a_result_is_cut_off_at_a_mebibyte(model: ModelServer, agent_of: MakeAgent) -> None:
    def tool() -> str:
        return "x" * (5 << 20)

    result = result_of(model, agent_of(model, tools=[tool]), "tool", "").result or ""
    assert 1 << 20 < len(result) < (1 << 20) + 50
    assert result.endswith("… (cut off)")


def positional(expression: str, /) -> str:
    return expression


@pytest.mark.parametrize("tool", [positional, lambda: "", object()])
def test_what_cannot_be_a_tool_is_refused(tool: Any) -> None:
    with pytest.raises(ValueError, match="cannot be a tool"):
        Agent(api_key="k", base_url="http://127.0.0.1:1/v1", model="m", tools=[tool])


def test_tools_of_a_source_come_and_go_between_runs(model: ModelServer, agent_of: MakeAgent) -> None:
    def later() -> str:
        return "from the source"

    found: list[Tool] = []
    agent = agent_of(model, tool_sources=[lambda: found])
    sent(model, agent, user("Hi"))
    found += [Tool(later), Tool(calculator, "another")]
    assert result_of(model, agent, "later", {}).result == "from the source"
    assert [(tool.name, tool.source) for tool in agent.tools] == [("calculator", "embedded"), ("later", "embedded")]
    offered = [[tool["function"]["name"] for tool in request["tools"]] for request in model.requests]
    assert offered == [["calculator"], ["calculator", "later"], ["calculator", "later"]]


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Agent(api_key="k", base_url="http://127.0.0.1:1/v1", model="m", tools=[calculator, calculator])


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8000", "localhost:8000/v1", "ftp://host/v1", "http://", "http://[", "x"]
)
def test_an_address_that_cannot_be_used_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        Agent(api_key="k", base_url=address, model="m")


# What goes out


def sent(model: ModelServer, agent: Agent, *history: Mapping[str, Any]) -> Any:
    run(agent, *history)
    return model.requests[-1]["messages"]


def test_the_system_prompt_comes_first(model: ModelServer, agent_of: MakeAgent) -> None:
    assert sent(model, agent_of(model, system_prompt="Be brief.")) == [
        {"role": "system", "content": "Be brief."},
        QUESTION,
    ]


def test_the_key_and_the_model_name_are_sent(model: ModelServer, agent_of: MakeAgent) -> None:
    run(agent_of(model, api_key="sk-1", model="gpt-x"))
    assert model.headers[0]["authorization"] == "Bearer sk-1"
    assert model.requests[0]["model"] == "gpt-x"


def test_the_environment_is_not_asked(
    model: ModelServer, agent_of: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert run(agent_of(model)) == OK
    assert model.headers[0]["authorization"] == "Bearer sk-test"


def test_results_stand_directly_after_their_calls_wherever_they_are_stored(
    model: ModelServer, agent_of: MakeAgent
) -> None:
    history = [user("a"), told("c2", "2"), calling("c1", "c2"), said("b"), told("c1", "1"), user("c")]
    assert sent(model, agent_of(model), *history) == [
        user("a"),
        calling("c1", "c2"),
        sent_result("c1", "1"),
        sent_result("c2", "2"),
        said("b"),
        user("c"),
    ]


def test_results_without_a_call_are_left_out(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [told("x"), user("a"), told("c1"), said("b"), calling("c1"), user("c"), told("c1"), {"role": "tool"}]
    assert sent(model, agent_of(model), *history) == [
        user("a"),
        {**calling("c1"), "content": "b"},
        sent_result("c1"),
        said("(interrupted)"),
        user("c"),
    ]


def test_each_call_has_one_result_though_ids_repeat(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [
        user("a"),
        calling("c", "c"),
        told("c", "1"),
        told("c", "2"),
        told("c", "3"),
        said("b"),
        user("d"),
        calling("c"),
    ]
    messages = sent(model, agent_of(model), *history, user("e"))
    results = [(message["tool_call_id"], message["content"]) for message in messages if message["role"] == "tool"]
    calls = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    assert [content for _, content in results] == ["1", "2", "error: interrupted; the tool may have run"]
    assert [id for id, _ in results] == calls
    assert len(set(calls)) == 3
    assert calls[0] == "c"


def test_the_name_of_a_call_goes_out_as_servers_accept_it(model: ModelServer, agent_of: MakeAgent) -> None:
    messages = sent(model, agent_of(model), user("a"), calling("c", name="my tool.v1/é" + "x" * 100), user("b"))
    assert messages[1]["tool_calls"][0]["function"]["name"] == "my_tool_v1__" + "x" * 52


def test_half_a_character_in_a_stored_message_is_replaced(model: ModelServer, agent_of: MakeAgent) -> None:
    assert sent(
        model, agent_of(model, system_prompt="\ud800"), user("a\ud83d"), said("\ude00\ud83d\ude00"), user("b")
    ) == [
        {"role": "system", "content": "\ufffd"},
        user("a\ufffd"),
        said("\ufffd😀"),
        user("b"),
    ]


def test_a_message_of_another_role_is_left_out(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [
        {"role": "system", "content": "x"},
        user("a"),
        {"role": "developer", "content": "y"},
        said("b"),
        user("c"),
    ]
    assert sent(model, agent_of(model), *history) == [user("a"), said("b"), user("c")]


def test_a_current_turn_that_has_called_tools_goes_on_where_it_is(model: ModelServer, agent_of: MakeAgent) -> None:
    assert sent(model, agent_of(model), user("a"), calling("c"), told("c")) == [
        user("a"),
        calling("c"),
        sent_result("c"),
    ]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ids = st.sampled_from(["c1", "c2", ""]) | junk
texts = st.sampled_from(["", " ", "a", "\ud83d", "{}", "[]", '{"a": 1}']) | junk
functions = st.fixed_dictionaries({}, optional={"name": texts, "arguments": texts}) | junk
calls = st.fixed_dictionaries({}, optional={"id": ids, "type": junk, "function": functions}) | junk
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | junk},
    optional={"content": texts, "tool_calls": st.lists(calls, max_size=3) | junk, "tool_call_id": ids, "extra": junk},
)


def assert_well_formed(messages: list[dict[str, Any]]) -> None:
    """Holds a request against every rule that some server insists on."""
    awaited: list[str] = []
    seen: set[str] = set()
    last = None
    for message in messages:
        role = message["role"]
        message["content"].encode()
        if role == "tool":
            assert message.keys() == {"role", "content", "tool_call_id"}
            assert message["tool_call_id"] == awaited.pop(0)
        else:
            assert not awaited
            assert role != last
            assert message.keys() <= {"role", "content", "tool_calls"}
        if role == "assistant":
            assert message["content"].strip() or message["tool_calls"]
            for call in message.get("tool_calls", ()):
                assert call["id"] and call["id"] not in seen
                assert call["type"] == "function"
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
                awaited.append(call["id"])
                seen.add(call["id"])
        elif role == "user":
            assert last != "tool"
        else:
            assert role == "tool"
        last = role
    assert not awaited


@pytest.fixture(scope="module")
def lasting() -> Iterator[tuple[ModelServer, Agent]]:
    with ModelServer() as server:
        agent = Agent(api_key="k", base_url=server.base_url, model="m")
        yield server, agent
        agent.close()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=st.lists(messages, max_size=8))
def test_no_history_makes_a_malformed_request(lasting: tuple[ModelServer, Agent], history: list[Any]) -> None:
    model, agent = lasting
    assert run(agent, *history, user("Go on")) == OK
    assert_well_formed(model.requests[-1]["messages"])
    assert model.requests[-1]["messages"][-1]["content"].endswith("Go on")


# Long histories


def turns(count: int, text: str = "") -> list[dict[str, Any]]:
    return [message for number in range(count) for message in (user(f"{text}{number}"), said(f"{text}{number}"))]


@pytest.mark.parametrize(("limit", "kept"), [(0, 10), (100, 10), (10, 10), (9, 8), (5, 4), (2, 2), (1, 0)])
def test_the_newest_messages_go_out_cut_between_turns(
    model: ModelServer, agent_of: MakeAgent, limit: int, kept: int
) -> None:
    history = turns(5)
    assert sent(model, agent_of(model, max_history=limit), *history, QUESTION) == [*history[10 - kept :], QUESTION]


def test_a_turn_with_tools_is_kept_or_cut_as_a_whole(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [user("a"), said("a"), user("b"), calling("c"), told("c"), said("b")]
    assert len(sent(model, agent_of(model, max_history=4), *history, QUESTION)) == 5
    assert len(sent(model, agent_of(model, max_history=3), *history, QUESTION)) == 1


def test_the_current_turn_is_sent_whole_whatever_the_limit(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(tool_call("calculator", {"expression": "1"}))
    assert len(sent(model, agent_of(model, max_history=1), *turns(3), QUESTION)) == 3


OVERFLOW = status(400, {"error": {"code": "context_length_exceeded", "message": "x"}})


def test_after_an_overflow_the_newest_half_of_the_text_is_sent(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [user("a" * 1000), said("b" * 1000), *turns(3, "c" * 10)]
    model.then(OVERFLOW)
    assert sent(model, agent_of(model), *history, QUESTION) == [*history[2:], QUESTION]


def test_one_huge_turn_does_not_stay_after_an_overflow(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [*turns(3), user("huge" * 1000), said("x"), *turns(1)]
    model.then(OVERFLOW)
    assert sent(model, agent_of(model), *history, QUESTION) == [*turns(1), QUESTION]


def test_the_limit_and_the_overflow_cut_one_after_the_other(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(OVERFLOW)
    run(agent_of(model, max_history=8), *turns(8), QUESTION)
    assert [len(request["messages"]) for request in model.requests] == [9, 5]


def test_after_six_overflows_it_is_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(*[OVERFLOW] * 9)
    assert failure(agent_of(model), *turns(64), QUESTION).code == "context_length_exceeded"
    lengths = [len(request["messages"]) for request in model.requests]
    assert len(lengths) == 6
    assert (lengths[0], lengths[-1]) == (129, 1)
    assert all(0.3 < shorter / longer < 0.6 for longer, shorter in itertools.pairwise(lengths[:-1]))


def test_an_overflow_without_anything_to_cut_is_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(OVERFLOW)
    assert failure(agent_of(model)).code == "context_length_exceeded"
    assert len(model.requests) == 1


def test_an_overflow_after_a_tool_cuts_only_the_turns_before(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(tool_call("calculator", {"expression": "1"}), OVERFLOW)
    assert sent(model, agent_of(model), *turns(4), QUESTION) == [
        *turns(4)[4:],
        QUESTION,
        calling("call_1"),
        sent_result("call_1", "<1>"),
    ]


def test_what_was_cut_stays_cut_for_the_run(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(OVERFLOW, tool_call("calculator", {"expression": "1"}))
    run(agent_of(model), *turns(4), QUESTION)
    assert [len(request["messages"]) for request in model.requests] == [9, 5, 7]


# Limits


def test_ten_rounds_of_tools_are_allowed(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(*[tool_call("calculator", {"expression": "1"})] * 10)
    assert run(agent_of(model))[-2:] == OK


def test_an_eleventh_round_of_tools_is_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    model.default = tool_call("calculator", {"expression": "1"})
    seen = []
    with pytest.raises(ModelError) as caught:
        for event in agent_of(model).run([QUESTION], Cancellation()):
            seen.append(event)
    assert caught.value.code == "too_many_tool_rounds"
    assert len([event for event in seen if isinstance(event, ToolResult)]) == 10
    assert len(model.requests) == 11


MEBIBYTE = "x" * (1 << 20)


def delta(**given: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": given}]}


@pytest.mark.parametrize(
    "frame",
    [
        delta(content=MEBIBYTE),
        delta(content="é" * (1 << 19)),
        delta(reasoning_content=MEBIBYTE),
        delta(reasoning=MEBIBYTE),
        delta(content=[{"type": "thinking", "thinking": MEBIBYTE}]),
        delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "calculator", "arguments": MEBIBYTE}}]),
    ],
    ids=["text", "text in two bytes", "reasoning_content", "reasoning", "parts", "arguments"],
)
def test_more_than_eight_mebibytes_are_too_long(
    model: ModelServer, agent_of: MakeAgent, frame: dict[str, Any]
) -> None:
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    model.then(frames(*[frame] * 7, end))
    run(agent_of(model))
    model.then(frames(*[frame] * 9, end))
    error = failure(agent_of(model))
    assert (error.code, str(error)) == ("model_error", "The model's answer is too long.")


def test_the_bound_is_for_the_whole_run(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(*[tool_call("calculator", {"expression": "1"}, text=MEBIBYTE)] * 9)
    assert str(failure(agent_of(model))) == "The model's answer is too long."


@pytest.mark.parametrize("beginning", [b"data: ", b": ", b"", b"data: x\n" * 2])
def test_a_line_without_end_is_too_long(model: ModelServer, agent_of: MakeAgent, beginning: bytes) -> None:
    model.then(frames(beginning, *[b"x" * (1 << 20)] * 20))
    assert str(failure(agent_of(model))) == "The model's answer is too long."


def test_an_event_without_end_is_too_long(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(frames(*[b"data: x\n" * 100_000] * 30))
    assert str(failure(agent_of(model))) == "The model's answer is too long."


def test_a_whole_answer_is_bounded_too(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(answer(MEBIBYTE * 9), body(b" " * (20 << 20), "application/json"))
    for _ in range(2):
        assert str(failure(agent_of(model, stream=False))) == "The model's answer is too long."


def test_a_refusal_without_end_is_not_read_to_its_end(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(status(400, b"x" * (50 << 20)), status(400, b"x" * (50 << 20)))
    began = time.monotonic()
    assert failure(agent_of(model)).code == "model_error"
    assert time.monotonic() - began < TIMEOUT


def test_too_many_calls_at_once_are_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(tool_calls(*[("calculator", {"expression": "1"})] * 65))
    assert failure(agent_of(model)).code == "model_error"


def test_the_time_is_for_the_whole_run(model: ModelServer, agent_of: MakeAgent) -> None:
    def slow() -> str:
        threading.Event().wait(1.2)
        return "done"

    model.then(tool_calls(("slow", {}), ("slow", {})))
    assert failure(agent_of(model, tools=[slow], timeout=1.0)).code == "model_timeout"
    assert len(model.requests) == 1


# Trying again

SOON = {"Retry-After": "0"}


@pytest.mark.parametrize(
    "broken",
    [
        status(408, None, SOON),
        status(429, {"error": {"message": "slow down"}}, SOON),
        status(500, None, SOON),
        status(502, b"<html>Bad Gateway</html>", SOON),
        status(503, None, SOON),
        status(529, None, SOON),
        answer(BREAK),
        answer(RESET),
        frames(HEADERS, BREAK),
    ],
    ids=["408", "429", "500", "502", "503", "529", "break", "reset", "break after headers"],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_that_may_pass_is_tried_again(
    model: ModelServer, agent_of: MakeAgent, broken: ReplyTo, stream: bool
) -> None:
    model.then(broken)
    assert run(agent_of(model, stream=stream)) == OK
    assert model.requests[0] == model.requests[1]


def test_an_error_in_the_first_frame_is_tried_again_if_it_may_pass(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(frames({"error": {"code": 503, "message": "overloaded"}}), frames({"error": {"code": "429"}}))
    assert run(agent_of(model)) == OK


def test_three_failures_are_an_error(model: ModelServer, agent_of: MakeAgent) -> None:
    model.default = status(503, {}, SOON)
    assert failure(agent_of(model)).code == "model_error"
    assert len(model.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422])
def test_a_refusal_that_will_stay_is_not_tried_again(model: ModelServer, agent_of: MakeAgent, code: int) -> None:
    model.default = status(code)
    failure(agent_of(model, stream=False))
    assert len(model.requests) == 1


@pytest.mark.parametrize("cut", [BREAK, {"error": {"code": 503, "message": "overloaded"}}])
def test_nothing_is_tried_again_once_the_answer_has_begun(model: ModelServer, agent_of: MakeAgent, cut: Any) -> None:
    model.then(answer("Hel", cut))
    failure(agent_of(model))
    assert len(model.requests) == 1


def test_each_call_of_the_model_may_be_tried_again(model: ModelServer, agent_of: MakeAgent) -> None:
    soon = status(503, {}, SOON)
    model.then(soon, soon, tool_call("calculator", {"expression": "1"}), soon, soon)
    assert run(agent_of(model))[-2:] == OK


@pytest.mark.parametrize(
    ("headers", "shortest"),
    [
        ({"Retry-After": "1"}, 1.0),
        ({"Retry-After": "0.7"}, 0.7),
        ({"Retry-After-Ms": "800", "Retry-After": "100"}, 0.8),
        ({"Retry-After": "soon"}, 0.3),
        ({"Retry-After": "-5"}, 0.3),
        ({"Retry-After": "nan"}, 0.3),
    ],
    ids=str,
)
def test_the_wait_before_the_next_try_is_what_the_server_asks(
    model: ModelServer, agent_of: MakeAgent, headers: dict[str, str], shortest: float
) -> None:
    model.then(status(503, {}, headers))
    began = time.monotonic()
    assert run(agent_of(model)) == OK
    assert time.monotonic() - began >= shortest


def test_a_date_to_try_again_after_is_kept(model: ModelServer, agent_of: MakeAgent) -> None:
    later = email.utils.formatdate(time.time() + 3, usegmt=True)
    model.then(status(503, {}, {"Retry-After": later}))
    began = time.monotonic()
    assert run(agent_of(model)) == OK
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize(
    ("headers", "retry_after"),
    [
        ({}, None),
        ({"Retry-After": "1000"}, "1000"),
        ({"Retry-After-Ms": "999500"}, "1000"),
        ({"Retry-After": "999.5"}, "1000"),
        ({"Retry-After": "whenever"}, None),
    ],
    ids=str,
)
def test_the_servers_own_retry_after_is_told_in_whole_seconds(
    model: ModelServer, agent_of: MakeAgent, headers: dict[str, str], retry_after: str | None
) -> None:
    model.default = status(429, {}, headers)
    error = failure(agent_of(model))
    assert (error.code, error.retry_after) == ("model_rate_limited", retry_after)


# Connections


@pytest.mark.parametrize("stream", [True, False])
def test_one_connection_serves_all_rounds_and_turns(model: ModelServer, agent_of: MakeAgent, stream: bool) -> None:
    agent = agent_of(model, stream=stream)
    for _ in range(3):
        model.then(tool_call("calculator", {"expression": "1"}))
        run(agent)
    assert len(model.requests) == 6
    assert model.connections == 1


def test_the_end_of_a_body_is_not_waited_for(model: ModelServer, agent_of: MakeAgent) -> None:
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    model.then(frames(delta(content="OK"), end, "[DONE]", STALL))
    assert run(agent_of(model, timeout=TIMEOUT)) == OK
    assert model.closed.wait(TIMEOUT)


def test_a_connection_that_the_server_has_closed_is_replaced(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.then(body(b'data: {"choices":[{"delta":{"content":"OK"},"finish_reason":"stop"}]}\n\n', Connection="close"))
    for _ in range(2):
        assert run(agent) == OK
    assert model.connections == 2


def test_a_connection_of_a_failed_run_is_not_used_again(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.then(status(400), status(400))
    failure(agent)
    assert run(agent) == OK
    assert model.connections == 2


def test_closing_the_agent_closes_its_connections(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    run(agent)
    (worker,) = model.workers
    agent.close()
    worker.join(TIMEOUT)
    assert not worker.is_alive()


def test_closing_the_agent_lets_a_run_end(model: ModelServer, agent_of: MakeAgent) -> None:
    go_on = threading.Event()
    model.then(answer("O", wait(go_on), "K"))
    agent = agent_of(model)
    events = agent.run([QUESTION], Cancellation())
    assert next(events) == Chunk("O")
    agent.close()
    go_on.set()
    assert list(events)[-1] == Answer("OK", "stop", None, None)


def test_few_connections_stay_open_after_many_runs_at_once(model: ModelServer, agent_of: MakeAgent) -> None:
    everybody = threading.Barrier(25)
    model.default = answer(lambda exchange: everybody.wait(TIMEOUT), "OK")
    agent = agent_of(model)
    with ThreadPoolExecutor(25) as pool:
        assert list(pool.map(lambda _: run(agent), range(25))) == [OK] * 25
    deadline = time.monotonic() + TIMEOUT
    while len(workers := model.workers) > 16 and time.monotonic() < deadline:
        workers[0].join(0.02)
    assert len(workers) <= 16


def test_closing_the_events_closes_the_connection(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(answer("Hel", STALL))
    events = agent_of(model).run([QUESTION], Cancellation())
    next(events)
    events.close()
    assert model.closed.wait(TIMEOUT)


def test_no_proxy_stands_between_here_and_this_machine(
    model: ModelServer, agent_of: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert run(agent_of(model)) == OK
    assert run(agent_of(model, base_url=model.base_url.replace("127.0.0.1", "localhost"))) == OK


def test_other_hosts_are_reached_through_the_proxy(
    model: ModelServer, agent_of: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", model.base_url.removesuffix("/v1"))
    monkeypatch.setenv("http_proxy", model.base_url.removesuffix("/v1"))
    assert run(agent_of(base_url="http://model.invalid/v1")) == OK
    assert model.headers[0]["host"] == "model.invalid"


def test_a_proxy_that_cannot_be_used_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "gopher://127.0.0.1:1")
    with pytest.raises(ValueError, match="gopher"):
        Agent(api_key="k", model="m")


# Stopping


def stop_when(happened: Callable[[], object], stop: Cancellation) -> threading.Thread:
    """Stops the run from another thread after something has happened."""

    def work() -> None:
        happened()
        stop.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def stopped(model: ModelServer, agent: Agent, happened: Callable[[], object]) -> float:
    """Stops a run when something has happened. Gives the seconds from then to its end."""
    times: list[float] = []

    def wait_and_note() -> None:
        happened()
        times.append(time.monotonic())

    stop = Cancellation()
    thread = stop_when(wait_and_note, stop)
    with pytest.raises(Cancelled):
        list(agent.run([QUESTION], stop))
    took = time.monotonic() - times[0]
    thread.join()
    return took


def test_a_run_that_is_stopped_before_it_begins_asks_nothing(model: ModelServer, agent_of: MakeAgent) -> None:
    stop = Cancellation()
    stop.cancel()
    with pytest.raises(Cancelled):
        list(agent_of(model).run([QUESTION], stop))
    assert model.connections == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("used_before", [False, True])
def test_stopping_reaches_a_server_that_has_not_answered_at_all(
    model: ModelServer, agent_of: MakeAgent, stream: bool, used_before: bool
) -> None:
    agent = agent_of(model, stream=stream)
    if used_before:
        run(agent)
    model.then(answer(STALL))
    asked = len(model.requests) + 1
    assert stopped(model, agent, lambda: model.wait_for(asked)) < 5
    assert model.closed.wait(5)
    assert model.connections == 1


@pytest.mark.parametrize(
    "silent",
    [
        lambda began: answer("Hel", tell(began), STALL),
        lambda began: frames(HEADERS, tell(began), STALL),
        lambda began: lambda request: ScriptedReply([HEADERS, tell(began), STALL], 400),
        lambda began: raw(b"HTTP/1.1 200 OK\r\n\r\n" + event(delta(content="Hel")), tell(began), STALL),
    ],
    ids=["in mid-stream", "after the headers", "in mid-refusal", "in a body without length"],
)
def test_stopping_reaches_a_server_that_is_silent_in_mid_answer(
    model: ModelServer, agent_of: MakeAgent, silent: Callable[[threading.Event], ReplyTo]
) -> None:
    began = threading.Event()
    model.then(silent(began))
    assert stopped(model, agent_of(model), lambda: began.wait(TIMEOUT)) < 5
    assert model.closed.wait(5)


def test_stopping_ends_the_wait_before_the_next_try(model: ModelServer, agent_of: MakeAgent) -> None:
    model.default = status(503, {}, {"Retry-After": "100"})
    assert stopped(model, agent_of(model), lambda: model.wait_for(1)) < 5
    assert len(model.requests) == 1


def test_stopping_while_tools_work_leaves_their_results_alone(model: ModelServer, agent_of: MakeAgent) -> None:
    stop = Cancellation()

    def tool(number: int) -> str:
        stop.cancel()
        return ""

    model.then(tool_calls(("tool", {"number": 1}), ("tool", {"number": 2})))
    with pytest.raises(Cancelled):
        list(agent_of(model, tools=[tool]).run([QUESTION], stop))
    assert len(model.requests) == 1


def test_stopping_reaches_a_server_that_does_not_answer_the_tls_handshake(agent_of: MakeAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        agent = agent_of(base_url=f"https://127.0.0.1:{server.getsockname()[1]}/v1", timeout=60)
        stop = Cancellation()
        accepted: list[socket.socket] = []
        began: list[float] = []

        def handshake_begun() -> None:
            accepted.append(server.accept()[0])
            assert accepted[0].recv(1)
            began.append(time.monotonic())

        thread = stop_when(handshake_begun, stop)
        with pytest.raises(Cancelled):
            list(agent.run([QUESTION], stop))
        assert time.monotonic() - began[0] < 15
        thread.join()
        with accepted[0] as connection:
            connection.settimeout(5)
            while connection.recv(65536):
                pass


def test_a_stop_may_be_set_many_times_from_many_threads(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(answer(STALL))
    stop = Cancellation()
    threads = [stop_when(lambda: model.wait_for(1), stop) for _ in range(8)]
    with pytest.raises(Cancelled):
        list(agent_of(model).run([QUESTION], stop))
    for thread in threads:
        thread.join()
    stop.cancel()
    assert stop.is_cancelled


def test_a_stop_that_comes_too_late_harms_no_other_run(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    late = Cancellation()
    assert list(agent.run([QUESTION], late)) == OK
    go_on = threading.Event()
    model.then(answer("O", wait(go_on), "K"))
    events = agent.run([QUESTION], Cancellation())
    assert next(events) == Chunk("O")
    late.cancel()
    go_on.set()
    assert list(events)[-1] == Answer("OK", "stop", None, None)
    assert model.connections == 1


def test_the_next_run_works_after_one_was_stopped(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.then(answer("Hel", STALL))
    stopped(model, agent, lambda: model.wait_for(1))
    assert run(agent) == OK


def test_stopping_at_any_moment_ends_the_run_in_one_way_or_the_other(model: ModelServer, agent_of: MakeAgent) -> None:
    agent = agent_of(model)
    model.default = answer(*"words", pause(0.005), *"words", finish_reason="stop")
    outcomes: set[type] = set()
    for number in range(40):
        stop = Cancellation()
        timer = threading.Timer(number / 4000, stop.cancel)
        timer.start()
        try:
            outcomes.add(type(list(agent.run([QUESTION], stop))[-1]))
        except Cancelled:
            outcomes.add(Cancelled)
        timer.join()
    assert outcomes <= {Answer, Cancelled}
    assert Cancelled in outcomes
