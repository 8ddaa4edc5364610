"""Streams as gateways mangle them: what a person sees is right, or told as incomplete."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import Agent, Cancellation
from session_core.model.events import Answer, Chunk, Event, ModelError, Reasoning, ToolCall
from tests.support.model_server import BREAK, ModelServer, Piece, answer, frames

MANY = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda text: "<" not in text)
HEARTBEATS = [
    b": ping\n\n",
    b"data:\n\n",
    b"event: ping\n\n",
    b"\n",
    b'data: {"choices":[]}\n\n',
    b"id: 7\n\n",
    b"retry: 1\n\n",
]


def choice(delta: Any, reason: str | None = None) -> dict[str, Any]:
    return {"id": "1", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str, str, str | None]:
    """The frames of an answer without its end; its reasoning and its text; the arguments of a call, if any."""
    thoughts = draw(st.lists(TEXTS, max_size=2))
    texts = draw(st.lists(TEXTS, min_size=1, max_size=5))
    call = draw(st.none() | st.sampled_from(['{"expression":"1"}', '{"expression": "é"}']))
    made = [choice({"role": "assistant", "content": ""})]
    made += [choice({draw(st.sampled_from(["reasoning_content", "reasoning"])): text}) for text in thoughts[:1]]
    made += [choice({name: text}) for text in thoughts[1:] for name in made[-1]["choices"][0]["delta"]]
    made += [choice({"content": text}) for text in texts]
    if call is not None:
        cut = draw(st.integers(0, len(call)))
        head = {
            "index": 0,
            "id": "call_1",
            "type": "function",
            "function": {"name": "calculator", "arguments": call[:cut]},
        }
        made.append(choice({"tool_calls": [head]}))
        made.append(choice({"tool_calls": [{"index": 0, "function": {"arguments": call[cut:]}}]}))
    return made, "".join(thoughts), "".join(texts), call


@st.composite
def mangled(draw: st.DrawFn, stream: list[dict[str, Any]]) -> list[bytes]:
    """These frames in bytes: with unknown fields, heartbeats, other line ends, and cut anywhere."""
    line_end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    blocks = [b"\xef\xbb\xbf"] if draw(st.booleans()) else []
    for frame in stream:
        if draw(st.booleans()):
            blocks.append(draw(st.sampled_from(HEARTBEATS)))
        frame = copy.deepcopy(frame)
        if draw(st.booleans()):
            frame |= {"x_unknown": {"a": [1]}, "error": None, "service_tier": "default"}
            for one in frame.get("choices", ()):
                one |= {"logprobs": None, "x_more": 1}
        space = draw(st.sampled_from([" ", ""]))
        text = json.dumps(frame, ensure_ascii=draw(st.booleans()))
        blocks.append(f"data:{space}{text}{line_end * 2}".encode())
    whole = b"".join(blocks)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def agent(model: ModelServer) -> Iterator[Agent]:
    def calculator(expression: str) -> str:
        """Calculates."""
        return "1"

    made = Agent(api_key="k", base_url=model.base_url, model="m", tools=[calculator])
    yield made
    made.close()


def run(model: ModelServer, agent: Agent, *pieces: Piece) -> list[Event]:
    model.forget()
    model.then(frames(*pieces), answer(""))
    return list(agent.run([{"role": "user", "content": "Hi"}], Cancellation()))


def seen(events: list[Event]) -> tuple[str, str, list[str]]:
    """The reasoning, the text and the arguments of calls that a person sees."""
    return (
        "".join(event.content for event in events if isinstance(event, Reasoning)),
        "".join(event.content for event in events if isinstance(event, Chunk)),
        [event.arguments for event in events if isinstance(event, ToolCall)],
    )


@MANY
@given(data=st.data(), made=answers())
def test_a_whole_answer_is_seen_once_however_it_is_mangled_on_the_way(
    model: ModelServer, agent: Agent, data: st.DataObject, made: Any
) -> None:
    stream, reasoning, text, call = made
    last = choice({}, data.draw(st.sampled_from(["stop", "tool_calls", "eos"])))
    usage = {"choices": [], "usage": {"total_tokens": 3}}
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if call is not None:
        function = {"name": "calculator", "arguments": call}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    endings = [[last], [last, last], [usage, last], [last, usage, usage], [whole], [last, whole], [whole, whole]]
    ending = data.draw(st.sampled_from(endings))
    begun = [stream[0]] * data.draw(st.integers(0, 2))
    events = run(model, agent, *data.draw(mangled([*begun, *stream, *ending])))
    assert seen(events) == (reasoning, text, [] if call is None else [call])
    assert isinstance(events[-1], Answer)
    assert events[-1].reason is None


@settings(MANY, max_examples=50)
@given(data=st.data(), made=answers())
def test_an_answer_that_was_cut_off_is_never_called_complete(
    model: ModelServer, agent: Agent, data: st.DataObject, made: Any
) -> None:
    stream, reasoning, text, _ = made
    kept = stream[: data.draw(st.integers(0, len(stream)))]
    nothing = choice({}, data.draw(st.sampled_from([None, "", "null", "none", "FINISH_REASON_UNSPECIFIED"])))
    ending = data.draw(st.sampled_from([[], [b"data: [DONE]\n\n"], [BREAK]]))
    parts = data.draw(mangled([*kept, nothing]))
    events: list[Event] = []
    model.forget()
    model.default = frames(*parts, *ending)
    try:
        for event in agent.run([{"role": "user", "content": "Hi"}], Cancellation()):
            events.append(event)
    except ModelError:
        pass
    seen_reasoning, seen_text, calls = seen(events)
    assert reasoning.startswith(seen_reasoning)
    assert text.startswith(seen_text)
    assert calls == []
    assert all(event.reason for event in events if isinstance(event, Answer))
