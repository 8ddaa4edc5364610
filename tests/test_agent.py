"""The agent against a real HTTP server: its events, its rounds, its usage."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent import Cancellation
from session_core.model.events import Answer, Chunk, Message, ModelError, ToolCall, ToolResult
from tests.support.agent import (
    MEBIBYTE,
    OK,
    QUESTION,
    MakeAgent,
    calling,
    delta,
    failure,
    run,
    sent_result,
    told,
    user,
)
from tests.support.model_server import ModelServer, answer, frames, tool_call, tool_calls, wait

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
        Message({**told("call_2", "error: cannot read bad"), "is_error": True}, None),
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
