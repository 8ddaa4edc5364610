"""A request as it waits in its session's queue, and which of those that wait begins next."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from session_core.data.message import MessageFields, user_message
from session_core.data.message_queue import MessageQueue, QueuedMessage
from session_core.tools.client_tools import ClientTool, ClientTools
from session_core.turns.attachments import keep_new_files
from session_core.turns.stored import question_message, waiting_message
from session_core.turns.turn_request import KeyReused, TurnRefused, TurnRequest
from storage import Session, SessionBusy, Storage, new_id, timestamp

_ASKED = ("replaces", "after", "model", "system_prompt", "options", "client_id", "terms")


def queued_message(storage: Storage, session: Session, request: TurnRequest, running: str | None) -> QueuedMessage:
    """The request as it waits, while the turn of this question runs, or none. The same key gives the same id.

    Keeps the pictures and files of the question. Raises TurnRefused and StorageUnavailable.
    """
    if request.if_busy == "steer" and (request.replaces or request.after):
        raise TurnRefused("Only a new message can come into a turn that runs.")
    question = question_message(session, request)
    keep_new_files(storage, session, request.files, [question])
    digest = hashlib.sha256(f"{session.id} {request.key}".encode()).hexdigest()[:32]
    asked: dict[str, Any] = {name: value for name in _ASKED if (value := getattr(request, name)) is not None}
    if request.client_tools is not None:
        asked["client_tools"] = {name: tool.schema for name, tool in request.client_tools.tools.items()}
    message: QueuedMessage = {
        "id": f"msg-{digest}" if request.key else new_id("msg"),
        "content": question["content"],
        "created_at": timestamp(),
        "asked": asked,
    }
    if request.key:
        message["idempotency_key"] = request.key
    if request.if_busy == "steer" and running:
        message["steers"] = running
    return message


def queued_request(message: QueuedMessage) -> TurnRequest:
    """What the request has asked for that waits as this message."""
    asked = {name: value for name, value in message.get("asked", {}).items() if name in _ASKED}
    tools = message.get("asked", {}).get("client_tools")
    made = ClientTools({name: ClientTool(schema) for name, schema in tools.items()}) if tools else None
    return TurnRequest(
        message["content"],
        key=message.get("idempotency_key"),
        client_tools=made,
        queued_id=message["id"],
        **asked,
    )


def steered_message(message: QueuedMessage, attempt: int) -> MessageFields:
    """The message as it is stored in this attempt of the turn into which it has come. Its key is its own: that of the
    attempt stands for something else."""
    fields = user_message(message["content"], message.get("idempotency_key"), steered=True)
    return {**fields, "attempt": attempt} if attempt > 1 else fields


def steering(queue: MessageQueue, message_id: str) -> list[QueuedMessage]:
    """The messages that go into the turn of this question."""
    return [one for one in queue.read() if one.get("steers") == message_id]


def still_waiting(messages: Sequence[QueuedMessage], session: Session) -> list[QueuedMessage]:
    """Those of the messages that wait, by the session as it was read after them: without those that stand in it."""
    stored = session.messages if messages else ()
    ids = {message["id"] for message in stored}
    keys = {
        message["idempotency_key"] for message in stored if "idempotency_key" in message
    }  # which may look like ids
    return [one for one in messages if one["id"] not in ids and one.get("idempotency_key") not in keys]


def find_queued(messages: Sequence[QueuedMessage], request: TurnRequest) -> QueuedMessage | None:
    """The message that waits under the key of the request. Raises KeyReused where it asks for something else."""
    found = next((one for one in messages if request.key and one.get("idempotency_key") == request.key), None)
    if found is not None and not request.is_same(queued_request(found)):
        raise KeyReused
    return found


def next_request(storage: Storage, session_id: str) -> TurnRequest | None:
    """The request whose turn begins next. None where none waits, or where the last turn waits for answers.

    Removes messages that do not wait any more. Raises what `MessageQueue.read` and `Storage.get` raise.
    """
    queue = storage.queue(session_id)
    messages = queue.read()
    if not messages:
        return None
    session = storage.get(session_id)
    waiting = still_waiting(messages, session)
    for message in messages:
        if message not in waiting:
            queue.remove(message["id"])
    return queued_request(waiting[0]) if waiting and not holds_queue(session) else None


def holds_queue(session: Session) -> bool:
    """Whether the session's last turn waits for answers, so that no other turn begins by itself."""
    return waiting_message(session) is not None


def check_order(queue: MessageQueue, session: Session, request: TurnRequest) -> None:
    """Raises SessionBusy where another message waits before a new question, or before this one that waits too."""
    waiting = still_waiting(queue.read(), session)
    first = waiting[0]["id"] if waiting else None
    if first != request.queued_id or (first is not None and holds_queue(session)):
        raise SessionBusy(session.id)


def render_queued(message: QueuedMessage) -> Mapping[str, Any]:
    """A message that waits, as callers see it."""
    asked = message.get("asked", {})
    shown = {"id": message["id"], "role": "user", "content": message["content"], "created_at": message["created_at"]}
    shown |= {name: asked[name] for name in ("replaces", "model") if name in asked}
    return shown | ({"steers": message["steers"]} if "steers" in message else {})
