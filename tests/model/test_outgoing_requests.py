"""What the agent sends to the model server, and how much of a history."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import Agent
from tests.support.agent import OK, QUESTION, MakeAgent, calling, failure, run, sent, sent_result, told, user
from tests.support.model_server import ModelServer, status, tool_call
from tests.support.well_formed import assert_well_formed


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


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
    history = [user("a"), told("c2", "2"), calling("c1", "c2"), assistant("b"), told("c1", "1"), user("c")]
    assert sent(model, agent_of(model), *history) == [
        user("a"),
        calling("c1", "c2"),
        sent_result("c1", "1"),
        sent_result("c2", "2"),
        assistant("b"),
        user("c"),
    ]


def test_results_without_a_call_are_left_out(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [
        told("x"),
        user("a"),
        told("c1"),
        assistant("b"),
        calling("c1"),
        user("c"),
        told("c1"),
        {"role": "tool"},
    ]
    assert sent(model, agent_of(model), *history) == [
        user("a"),
        {**calling("c1"), "content": "b"},
        sent_result("c1"),
        assistant("(interrupted)"),
        user("c"),
    ]


def test_each_call_has_one_result_though_ids_repeat(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [
        user("a"),
        calling("c", "c"),
        told("c", "1"),
        told("c", "2"),
        told("c", "3"),
        assistant("b"),
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
        model, agent_of(model, system_prompt="\ud800"), user("a\ud83d"), assistant("\ude00\ud83d\ude00"), user("b")
    ) == [
        {"role": "system", "content": "\ufffd"},
        user("a\ufffd"),
        assistant("\ufffd😀"),
        user("b"),
    ]


def test_a_message_of_another_role_is_left_out(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [
        {"role": "system", "content": "x"},
        user("a"),
        {"role": "developer", "content": "y"},
        assistant("b"),
        user("c"),
    ]
    assert sent(model, agent_of(model), *history) == [user("a"), assistant("b"), user("c")]


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
    assert_well_formed(model.requests[-1])
    assert model.requests[-1]["messages"][-1]["content"].endswith("Go on")


# Long histories


def turns(count: int, text: str = "") -> list[dict[str, Any]]:
    return [message for number in range(count) for message in (user(f"{text}{number}"), assistant(f"{text}{number}"))]


@pytest.mark.parametrize(("limit", "kept"), [(0, 10), (100, 10), (10, 10), (9, 6), (5, 2), (2, 2), (1, 0)])
def test_the_newest_messages_go_out_cut_between_turns_and_in_steps(
    model: ModelServer, agent_of: MakeAgent, limit: int, kept: int
) -> None:
    history = turns(5)
    assert sent(model, agent_of(model, max_history=limit), *history, QUESTION) == [*history[10 - kept :], QUESTION]


def test_a_turn_with_tools_is_kept_or_cut_as_a_whole(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [user("a"), assistant("a"), user("b"), calling("c"), told("c"), assistant("b")]
    assert len(sent(model, agent_of(model, max_history=4), *history, QUESTION)) == 5
    assert len(sent(model, agent_of(model, max_history=3), *history, QUESTION)) == 1


def test_the_current_turn_is_sent_whole_whatever_the_limit(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(tool_call("calculator", {"expression": "1"}))
    assert len(sent(model, agent_of(model, max_history=1), *turns(3), QUESTION)) == 3


OVERFLOW = status(400, {"error": {"code": "context_length_exceeded", "message": "x"}})


def test_after_an_overflow_the_newest_half_of_the_text_is_sent(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [user("a" * 1000), assistant("b" * 1000), *turns(3, "c" * 10)]
    model.then(OVERFLOW)
    assert sent(model, agent_of(model), *history, QUESTION) == [*history[2:], QUESTION]


def test_one_huge_turn_does_not_stay_after_an_overflow(model: ModelServer, agent_of: MakeAgent) -> None:
    history = [*turns(3), user("huge" * 1000), assistant("x"), *turns(1)]
    model.then(OVERFLOW)
    assert sent(model, agent_of(model), *history, QUESTION) == [*turns(1), QUESTION]


def test_the_limit_and_the_overflow_cut_one_after_the_other(model: ModelServer, agent_of: MakeAgent) -> None:
    model.then(OVERFLOW)
    run(agent_of(model, max_history=8), *turns(8), QUESTION)
    assert [len(request["messages"]) for request in model.requests] == [5, 3]


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
