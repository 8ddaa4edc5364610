"""A turn's events as the frames of the AI SDK's UI message stream, and a session as its UI messages.

The frames are those of the npm package `ai`, 5 to 7 (`src/ui-message-stream/ui-message-chunks.ts`). The client builds
one assistant's message of them for each turn (`src/ui/process-ui-message-stream.ts`). `ui_messages` builds the same
message from the same frames, so that a client has the same parts after a reload.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from session_core.data.message import (
    INTERRUPTED_CALL,
    NOT_EXECUTED,
    ContentPart,
    StoredMessage,
    as_parts,
    begins_turn,
)
from session_core.data.strict_json import from_json
from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from session_core.turns.event_log import Ended, Event, Failed, LoggedEvent, Started, Steered
from session_core.turns.stored import StoredTurn, last_turn, turn_at, with_messages, without_failed_attempts
from session_core.web.errors import describe_error
from session_core.web.turn_responses import DONE, encode_json, sse_data
from storage import Session

UI_MESSAGES = "application/vnd.ai-sdk.ui-messages+json"
ANSWER = "-answer"  # behind the id of the question in the id of the assistant's message, which is known at the start

_OUTCOMES = {
    "tool-output-available": "output",
    "tool-output-error": "errorText",
}  # of a call, by the type of its chunk
_FINISH_REASONS = {None: "stop", "length": "length", "content_filter": "content-filter"}  # by the answer's reason

_Json = dict[str, Any]


def _as_data(chunk: _Json) -> bytes:
    return sse_data(encode_json(chunk))


class UiRenderer:
    """The frames of one turn, from its first event to its last.

    Each step is one model call. A text, a reasoning and a call that are open when the turn ends are closed first.
    """

    headers: ClassVar[Mapping[str, str]] = {"X-Vercel-AI-UI-Message-Stream": "v1"}
    comment = b": keep-alive\n\n"
    # A client takes an end without a last frame for a good one.
    broken_off = _as_data({"type": "error", "errorText": describe_error("storage_unavailable")[2]}) + DONE

    def __init__(self, message_id: str, earlier: Sequence[Event] = ()) -> None:
        """`earlier` are events of the turn from before those that come, where the client has not seen them."""
        self._earlier = earlier
        self._metadata: _Json = {"questionId": message_id}
        self._open = ""  # the type of the part that grows: text or reasoning
        self._parts = 0  # how many of those there were
        self._calls: list[str] = []  # without a result
        self._answers = True  # what comes are results of calls that the client has from before
        self._called = False  # the step has results, so that whatever comes next is of the next one

    def render(self, entry: LoggedEvent) -> bytes:
        """The frames of the next event, and `[DONE]` behind the last."""
        event = entry.event
        if type(event) is Chunk and self._open == "text" and not self._called:  # most events, see `EventRenderer`
            return sse_data(f'{{"type":"text-delta","id":"{self._parts}","delta":{encode_json(event.content)}}}')
        block = b"".join(map(_as_data, self.ui_chunks(event)))
        return block + DONE if isinstance(event, Ended | Failed) else block

    def ui_chunks(self, event: Event) -> Iterator[_Json]:
        """The chunks that the next event is to the client, as objects."""
        match event:
            case Started():
                yield {
                    "type": "start",
                    "messageId": self._metadata["questionId"] + ANSWER,
                    "messageMetadata": self._metadata,
                }
                yield {"type": "start-step"}
                for one in self._earlier:
                    yield from self.ui_chunks(one)
            case Reasoning() | Chunk():
                yield from self._delta("text" if isinstance(event, Chunk) else "reasoning", event.content)
            case ToolCall():
                yield from self._next_step()
                yield from self._close()
                yield from self._call(event)
            case Steered():
                yield from self._next_step()
                yield from self._close()
                yield {"type": "data-message", "id": event.message_id, "data": {"content": event.content}}
            case ToolResult() if event.id in self._calls:
                self._called = True
                self._calls.remove(event.id)
                yield _output(event)
            case ToolResult() if (
                self._answers and not event.given
            ):  # any other without a call is an error of the client
                denied = {"type": "tool-output-denied", "toolCallId": event.id}
                yield denied if (event.error or "").startswith(NOT_EXECUTED) else _output(event)
            case Ended():
                yield from self._ended(event)
            case Failed():
                yield from self._failed(event)

    def _call(self, event: ToolCall) -> Iterator[_Json]:
        self._calls.append(event.id)
        call = {"toolCallId": event.id, "toolName": event.name, "input": _parse_input(event.arguments)}
        yield {"type": "tool-input-available", **call, **_by_whom(event.waits_for == "client")}
        if event.waits_for == "approval":
            yield {"type": "tool-approval-request", "approvalId": event.id, "toolCallId": event.id}

    def _delta(self, kind: str, text: str) -> Iterator[_Json]:
        yield from self._next_step()
        if self._open != kind:
            yield from self._close()
            self._open, self._parts = kind, self._parts + 1
            yield {"type": f"{kind}-start", "id": str(self._parts)}
        yield {"type": f"{kind}-delta", "id": str(self._parts), "delta": text}

    def _ended(self, event: Ended) -> Iterator[_Json]:
        fields: Mapping[str, object] = event.message
        found = {name: fields[name] for name in ("reason", "usage") if name in fields}
        waiting = event.status == "waiting"
        if waiting:
            self._calls = [id for id in self._calls if id not in event.message["pending"]]
        yield from self._end({"answerId": fields["id"], "status": event.status, **found})
        if event.status == "cancelled":
            yield {"type": "abort"}
        else:
            reason = _FINISH_REASONS.get(event.message.get("reason"), "other")
            yield {"type": "finish", "finishReason": "tool-calls" if waiting else reason}

    def _failed(self, event: Failed) -> Iterator[_Json]:
        code, _, text = describe_error(event.code)
        answer = {} if event.message_id is None else {"answerId": event.message_id}
        yield from self._end({**answer, "status": "failed", "reason": code})
        yield {"type": "error", "errorText": event.text or text}

    def _next_step(self) -> Iterator[_Json]:
        self._answers = False
        if self._called:
            self._called = False
            yield from self._close()
            yield {"type": "finish-step"}
            yield {"type": "start-step"}

    def _close(self) -> Iterator[_Json]:
        if self._open:
            yield {"type": f"{self._open}-end", "id": str(self._parts)}
            self._open = ""

    def _end(self, metadata: _Json) -> Iterator[_Json]:
        yield from self._close()
        for call_id in self._calls:
            yield _output(ToolResult(call_id, "", error=INTERRUPTED_CALL))
        yield {"type": "finish-step"}
        yield {"type": "message-metadata", "messageMetadata": self._metadata | metadata}


def queued_frames(message_id: str, position: int) -> bytes:
    """The frames that tell that a message waits. They are no part of the client's transcript."""
    return (
        _as_data({"type": "data-queued", "data": {"id": message_id, "position": position}, "transient": True}) + DONE
    )


def ui_messages(session: Session, files_at: str, *, running: bool, show_reasoning: bool) -> list[_Json]:
    """The conversation as UI messages: one of the user and one of the assistant for each turn.

    `files_at` is the address below which the session's pictures and files are.
    An answer that is being written is left out: `GET /ui/chat/{id}/stream` tells all of it.
    """
    session = with_messages(session, session.conversation)
    questions = [index for index, message in enumerate(session.messages) if begins_turn(message)]
    found = []
    if greeting := session.messages[: questions[0]] if questions else session.messages:  # of an import
        found.append(_answer(StoredTurn([greeting[0], *greeting], None, is_last=False), show_reasoning))
    for index in questions:
        question = session.messages[index]
        found.append(
            {
                "id": question["id"],
                "role": "user",
                "parts": [_user_part(part, files_at) for part in as_parts(question["content"])],
            }
        )
        turn = turn_at(session, index)
        if not (running and turn.is_last and turn.interrupted) and (turn.error or len(turn.messages) > 1):
            found.append(_answer(turn, show_reasoning))
    return found


def _user_part(part: ContentPart, files_at: str) -> _Json:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    name = {"filename": part["name"]} if "name" in part else {}
    return {"type": "file", "mediaType": part["media_type"], "url": f"{files_at}/{part['sha256']}", **name}


def _answer(turn: StoredTurn, show_reasoning: bool) -> _Json:
    """The assistant's message of an ended turn: of its last attempt, and of those with which that one went on."""
    attempt = turn.attempt
    question, *answers = turn.messages
    kept = [question, *without_failed_attempts(answers, attempt)]
    stored = StoredTurn([{**one, "attempt": attempt} for one in kept], turn.error, turn.is_last)
    renderer = UiRenderer(turn.messages[0]["id"])
    told = [event for event in stored.events()[:-1] if show_reasoning or not isinstance(event, Reasoning)]
    settled = {event.id for event in told if isinstance(event, ToolResult)}
    events = [_without_approval(one) if isinstance(one, ToolCall) and one.id in settled else one for one in told]
    events.append(turn.last_event())
    made = [chunk for event in events for chunk in renderer.ui_chunks(event)]
    metadata = next(chunk["messageMetadata"] for chunk in made if chunk["type"] == "message-metadata")
    return {"id": made[0]["messageId"], "role": "assistant", "metadata": metadata, "parts": _parts(made)}


def earlier_events(session: Session) -> list[Event]:
    """What the session's last turn has told before the attempt that goes on with it now."""
    turn = last_turn(session)
    if turn is None:
        return []
    attempt = turn.attempt
    kept = without_failed_attempts(turn.messages[1:], attempt, continues=turn.continues.get("attempt") == attempt)
    before: list[StoredMessage] = [{**one, "attempt": 1} for one in kept if one.get("attempt", 1) < attempt]
    events = StoredTurn([turn.messages[0], *before], None, is_last=False).events()[1:-1]
    return [_without_approval(event) for event in events]


def _without_approval(event: Event) -> Event:
    """The event, where its call needs no approval any more."""
    if isinstance(event, ToolCall) and event.waits_for == "approval":
        return replace(event, waits_for=None)
    return event


def _parts(chunks: Iterable[Mapping[str, Any]]) -> list[_Json]:
    """The parts of the message that a client builds from these chunks."""
    parts: list[_Json] = []
    texts: list[list[str]] = []  # of the parts that have one
    calls: defaultdict[str, _Json] = defaultdict(dict)  # a result without a call is of a file by another hand
    for chunk in chunks:
        match chunk["type"]:
            case "start-step":
                parts.append({"type": "step-start"})
            case "text-start" | "reasoning-start" as kind:
                texts.append([])
                parts.append({"type": kind.removesuffix("-start"), "text": texts[-1], "state": "done"})
            case "text-delta" | "reasoning-delta":
                texts[-1].append(chunk["delta"])
            case "data-message":
                parts.append(dict(chunk))
            case "tool-input-available":
                call = {name: value for name, value in chunk.items() if name not in ("type", "dynamic")}
                parts.append({"type": "dynamic-tool", "state": "input-available", **call})
                calls[chunk["toolCallId"]] = parts[-1]
            case "tool-approval-request":
                approval = {"id": chunk["approvalId"]}
                calls[chunk["toolCallId"]] |= {"state": "approval-requested", "approval": approval}
            case "tool-output-error" if "providerExecuted" in chunk and chunk["errorText"].startswith(NOT_EXECUTED):
                reason = chunk["errorText"].removeprefix(NOT_EXECUTED)
                approval = {"id": chunk["toolCallId"], "approved": False, "reason": reason}
                calls[chunk["toolCallId"]] |= {"state": "output-denied", "approval": approval}
            case "tool-output-available" | "tool-output-error" as kind:
                name = _OUTCOMES[kind]
                calls[chunk["toolCallId"]] |= {"state": kind.removeprefix("tool-"), name: chunk[name]}
    return [{**part, "text": "".join(part["text"])} if "text" in part else part for part in parts]


def _parse_input(arguments: str) -> _Json:
    """The arguments of a call as an object, which front ends go through by its names."""
    try:
        value = from_json(arguments.encode())
    except (ValueError, RecursionError):
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


def _output(result: ToolResult) -> _Json:
    frame = {"toolCallId": result.id, **_by_whom(result.given)}
    if result.error is None:
        return {"type": "tool-output-available", **frame, "output": _given(result) if result.given else result.result}
    return {"type": "tool-output-error", **frame, "errorText": result.error}


def _given(result: ToolResult) -> Any:
    """What the client gave, of which the model has got the text."""
    text = result.result or ""
    try:
        return from_json(text.encode()) if text[:1] in ("{", "[") else text
    except ValueError:
        return text


def _by_whom(client: bool) -> _Json:
    """What tells whether a call runs at the client."""
    return {"dynamic": True} if client else {"dynamic": True, "providerExecuted": True}
