"""Calls of tools by the agent: what the model is told of them, their arguments, results and errors."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from agent import Agent, Tool
from session_core.model.events import ToolResult
from tests.support.agent import MakeAgent, calculator, run, sent, sent_result, user
from tests.support.model_server import ModelServer, tool_call

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
