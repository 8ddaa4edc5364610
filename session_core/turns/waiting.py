"""Calls that wait for answers: what is pending in a session, and what the answers are to the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from session_core.data.message import (
    INTERRUPTED_CALL,
    NOT_EXECUTED,
    WENT_ON,
    StoredMessage,
)
from session_core.model.events import ToolCall, ToolResult
from session_core.model.outgoing_messages import read_tool_calls
from session_core.turns.turn_request import Answers, TurnRefused

_WAYS = {"approval": {"approve"}, "client": {"result", "error"}}
_DENIED = "the user did not allow it"
_MAX_FAULTS = 10  # that one refusal names


def pending_calls(message: StoredMessage) -> list[dict[str, str]]:
    """What a message waits for whose status is `waiting`, as callers see it."""
    pending = message["pending"]
    return [
        {"id": call.id, "name": call.name, "arguments": call.arguments, "for": pending[call.id]}
        for call in read_tool_calls(message)
        if call.id in pending
    ]


def check_answers(waiting: StoredMessage, answers: Answers) -> None:
    """Raises TurnRefused where the answers are not those to all that the message waits for."""
    pending = waiting["pending"]
    faults = [f"{id} is missing" for id in pending if id not in answers]
    for id, answer in answers.items():
        if id not in pending:
            faults.append(f"{id} does not wait")
        elif not answer.keys() & _WAYS[pending[id]]:
            faults.append(f"{id} waits for {' or '.join(sorted(_WAYS[pending[id]]))}")
    if faults:
        raise TurnRefused(f"answers must answer all that waits, and nothing else: {'; '.join(faults[:_MAX_FAULTS])}.")


def fitting_answers(waited: Mapping[str, str], answers: Answers | None) -> Answers:
    """Those of the answers that calls wait, or waited, for, in the way that they do (by their ids)."""
    return {id: one for id, one in (answers or {}).items() if one.keys() & _WAYS.get(waited.get(id, ""), set())}


def settle(calls: Sequence[ToolCall], answers: Answers) -> list[ToolCall | ToolResult]:
    """The calls that run now by these answers, and the results of all others. Without an answer a call is denied."""
    return [_settle(call, answers.get(call.id, {})) for call in calls]


def answers_left(answers: Any) -> dict[str, Mapping[str, Any]]:
    """What stored answers are to an attempt that was interrupted: what was approved may have run."""
    found = (
        {id: answer for id, answer in answers.items() if isinstance(answer, dict)}
        if isinstance(answers, dict)
        else {}
    )
    return {id: {"error": INTERRUPTED_CALL} if answer.get("approve") else answer for id, answer in found.items()}


def _settle(call: ToolCall, answer: Mapping[str, Any]) -> ToolCall | ToolResult:
    match answer:
        case {"approve": True}:
            return call
        case {"approve": False}:
            return ToolResult(call.id, call.name, error=NOT_EXECUTED + (answer.get("reason") or _DENIED))
        case {"result": str(result)}:
            return ToolResult(call.id, call.name, result, given=True)
        case {"error": str(error)}:
            return ToolResult(call.id, call.name, error=error, given=error != INTERRUPTED_CALL)
    return ToolResult(call.id, call.name, error=WENT_ON)
