"""Scripts of model servers that want back what they said, or refuse it, as real ones do.

Each calls the tool `calculator` for a question, and answers when the result is there. Each checks the whole history
of every request, and refuses it in the words of the server that it stands for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from session_core.model.demo import ScriptedReply, chunk, completion, event

KNOWN_FIELDS = {"role", "content", "tool_calls", "tool_call_id", "name"}
KNOWN_CALL_FIELDS = {"id", "type", "function"}
SIGNATURE = "Sig/+é=="

Messages = list[dict[str, Any]]


def refusal(text: str, code: int = 400, **more: Any) -> ScriptedReply:
    error = {"error": {"message": text, "type": "invalid_request_error", "code": None, **more}}
    return ScriptedReply([json.dumps(error).encode()], code, {"Content-Type": "application/json"})


def calling(messages: Messages) -> Iterator[tuple[int, dict[str, Any]]]:
    """The assistant's messages with tool calls, each with its index."""
    return ((index, message) for index, message in enumerate(messages) if message.get("tool_calls"))


def answering(
    check: Callable[[Messages], ScriptedReply | None],
    thought: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> Callable[[dict[str, Any]], ScriptedReply]:
    """A script. `thought` stands beside each tool call and each answer, `extra` on the first of the calls."""
    number = 0

    def script(request: dict[str, Any]) -> ScriptedReply:
        nonlocal number
        messages = request["messages"]
        if refused := check(messages):
            return refused
        number += 1
        if messages[-1]["role"] == "tool" or "tools" not in request:
            message: dict[str, Any] = {"content": f"It is {messages[-1]['content']}."}
            reason = "stop"
        else:
            function = {"name": "calculator", "arguments": '{"expression": "1+1"}'}
            calls = [{"id": f"call_{number}_{index}", "type": "function", "function": function} for index in (0, 1)]
            calls[0] = {**calls[0], **(extra or {})}
            message, reason = {"content": None, "tool_calls": calls}, "tool_calls"
        message = {**(thought or {}), **message}
        if not request["stream"]:
            body = json.dumps(completion(message, reason, {"total_tokens": 1})).encode()
            return ScriptedReply([body], headers={"Content-Type": "application/json"})
        deltas = [{key: value} for key, value in message.items() if key != "tool_calls"]
        deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(message.get("tool_calls", ()))]
        frames = [event(chunk(delta)) for delta in deltas]
        return ScriptedReply([*frames, event(chunk({}, reason)), event("[DONE]")])

    return script


def gemini() -> Callable[[dict[str, Any]], ScriptedReply]:
    """Wants the signature of the first call of each step back."""

    def check(messages: Messages) -> ScriptedReply | None:
        for index, message in calling(messages):
            google = message["tool_calls"][0].get("extra_content", {}).get("google", {})
            if google.get("thought_signature") not in (SIGNATURE, "skip_thought_signature_validator"):
                return refusal(
                    f"Function call is missing a thought_signature in functionCall parts, position {index}"
                )
            if any("extra_content" in call for call in message["tool_calls"][1:]):
                return refusal("a signature that was never given")
        return None

    return answering(check, extra={"extra_content": {"google": {"thought_signature": SIGNATURE}}})


def deepseek() -> Callable[[dict[str, Any]], ScriptedReply]:
    """Wants `reasoning_content` in each message with tool calls."""

    def check(messages: Messages) -> ScriptedReply | None:
        for index, message in calling(messages):
            if "reasoning_content" not in message:
                return refusal(f"Missing `reasoning_content` field in the assistant message at message index {index}")
        return None

    return answering(check, {"reasoning_content": "One and one."})


def kimi() -> Callable[[dict[str, Any]], ScriptedReply]:
    """As DeepSeek, in other words."""

    def check(messages: Messages) -> ScriptedReply | None:
        for index, message in calling(messages):
            if "reasoning_content" not in message:
                text = "thinking is enabled but reasoning_content is missing in assistant tool call message at index"
                return refusal(f"{text} {index}")
        return None

    return answering(check, {"reasoning_content": "One and one."})


def mistral() -> Callable[[dict[str, Any]], ScriptedReply]:
    """Refuses every field that it does not know, though it sends one."""

    def check(messages: Messages) -> ScriptedReply | None:
        for index, message in enumerate(messages):
            for field in sorted(message.keys() - KNOWN_FIELDS):
                detail = {"type": "extra_forbidden", "loc": ["body", "messages", index, field], "msg": "Extra inputs"}
                return ScriptedReply(
                    [json.dumps({"detail": [detail]}).encode()], 422, {"Content-Type": "application/json"}
                )
            for call in message.get("tool_calls", ()):
                if call.keys() - KNOWN_CALL_FIELDS:
                    return refusal("Extra inputs are not permitted", 422)
        return None

    return answering(check, {"reasoning_content": "One and one."})


def old_reasoner() -> Callable[[dict[str, Any]], ScriptedReply]:
    """Refuses the reasoning that it sends, in words that read as if it missed it."""

    def check(messages: Messages) -> ScriptedReply | None:
        if any("reasoning_content" in message for message in messages):
            return refusal("reasoning_content must not be in the input: requests are required to come without it")
        return None

    return answering(check, {"reasoning_content": "One and one."})


def groq() -> Callable[[dict[str, Any]], ScriptedReply]:
    """Refuses the reasoning that it sends under another name."""

    def check(messages: Messages) -> ScriptedReply | None:
        for index, message in enumerate(messages):
            if "reasoning" in message or "reasoning_content" in message:
                return refusal(f"'messages.{index}' : property 'reasoning' is unsupported")
        return None

    return answering(check, {"reasoning": "One and one."})


def openrouter() -> Callable[[dict[str, Any]], ScriptedReply]:
    """Wants its encrypted details back unchanged, in order."""
    details = [
        {"type": "reasoning.text", "text": "One and one.", "index": 0, "format": "x", "signature": None},
        {"type": "reasoning.encrypted", "data": "gAAA==", "index": 1},
    ]

    def check(messages: Messages) -> ScriptedReply | None:
        for _, message in calling(messages):
            if message.get("reasoning_details") != details or message.get("reasoning") != "One and one.":
                return refusal("reasoning_details were changed")
        return None

    return answering(check, {"reasoning": "One and one.", "reasoning_details": details})


SERVERS = {
    "Gemini": gemini,
    "DeepSeek": deepseek,
    "Kimi": kimi,
    "Mistral": mistral,
    "DeepSeek R1": old_reasoner,
    "Groq": groq,
    "OpenRouter": openrouter,
}
