"""The tools that a client of the Chat Completions dialect brings, and the calls of them in its transcript."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, StringConstraints

from session_core.data.message import (
    NOT_EXECUTED,
    MessageFields,
    StoredMessage,
    assistant_message,
    message_text,
    tool_call,
)
from session_core.model.events import ToolCall
from session_core.model.outgoing_messages import read_tool_calls
from session_core.tools.client_tools import ClientTool, ClientTools
from session_core.turns.stored import StoredTurn
from session_core.turns.waiting import pending_calls
from session_core.web.errors import ApiError

_ONE_AT_A_TIME = f"{NOT_EXECUTED}the client takes one call at a time"

FunctionName = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_-]{1,64}$")]


class Function(BaseModel, strict=True, extra="allow"):
    """A function that the model may call."""

    name: FunctionName


class ClientsTool(BaseModel, strict=True, extra="allow"):
    """A tool of the client."""

    type: Literal["function"]
    function: Function


def client_tools(body: Mapping[str, Any]) -> ClientTools:
    """The tools in a body, whose form was checked. The client cannot be asked for approval."""
    functions = [{"type": "function", "function": one} for one in body.get("functions") or ()]
    return ClientTools(
        {one["function"]["name"]: ClientTool(one) for one in [*functions, *(body.get("tools") or ())]},
        can_approve=False,
    )


def find_tool_choice(function_call: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """The `tool_choice` that an old `function_call` is."""
    return {"type": "function", "function": function_call} if isinstance(function_call, dict) else function_call


def stored_answer(text: str, calls: Sequence[ToolCall]) -> MessageFields:
    """An assistant's message of the client's transcript, as it is stored."""
    return assistant_message(
        text,
        [tool_call(call.id, call.name, call.arguments) for call in calls],
        pending={call.id: "client" for call in calls},
    )


def find_results(messages: Sequence[StoredMessage]) -> dict[str, dict[str, str]]:
    """The results that a transcript ends with, or has directly before its question, by the ids of their calls.

    Raises ApiError where it ends with results of which some are missing.
    """
    found: dict[str, dict[str, str]] = {}
    earlier = messages[:-1] if messages[-1]["role"] == "user" else messages
    last = len(earlier)
    while last and earlier[last - 1]["role"] == "tool":
        last -= 1
        found[earlier[last]["tool_call_id"]] = {"result": message_text(earlier[last])}
    called = earlier[last - 1].get("pending", {}) if last else {}
    if earlier is messages and (missing := [id for id in called if id not in found]):
        raise ApiError("invalid_request", f"messages ends without the result of the call {missing[0]}.")
    return found


def render_calls(message: StoredMessage, functions: bool) -> dict[str, Any]:
    """The calls that a message waits for with the status `waiting`, as fields of the API's message. A client of old
    `functions` knows one at a time: it gets the first."""
    calls = [tool_call(one["id"], one["name"], one["arguments"]) for one in pending_calls(message)]
    return {"function_call": calls[0]["function"]} if functions else {"tool_calls": calls}


def with_call_ids(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body, in whose messages calls and results of old `functions` are those of tools, with ids of ours."""
    messages, found, ids = body.get("messages"), [], dict[str, str]()
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        match message:
            case {"role": "assistant", "function_call": {"name": str(name)} as function}:
                ids[name] = f"function-{index}"
                message = message | {"tool_calls": [{"id": ids[name], "type": "function", "function": function}]}
            case {"role": "function", "name": str(name)}:
                message = message | {"tool_call_id": ids.get(name)}
        found.append(message)
    return {**body, "messages": found} if found else dict(body)


def answer_calls(turn: StoredTurn | None, result: StoredMessage) -> dict[str, dict[str, str]]:
    """The result of an old function, as answers to the calls that the turn waits, or waited, for: to the first one,
    and to the others that they were not executed. Empty where that is no call of this function."""
    asking = [message for message in turn.messages if "pending" in message] if turn else []
    calls = [call for call in read_tool_calls(asking[-1]) if call.id in asking[-1]["pending"]] if asking else []
    if not calls or calls[0].name != result["name"]:
        return {}
    others: dict[str, dict[str, str]] = {call.id: {"error": _ONE_AT_A_TIME} for call in calls[1:]}
    return others | {calls[0].id: {"result": message_text(result)}}
