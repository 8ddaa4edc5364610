"""What a message is, as it is stored: its fields, how each kind is built, and what it says of its turn."""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Required, TypedDict, TypeGuard, Unpack, cast, get_args, get_origin, get_type_hints

Status = Literal["completed", "incomplete", "cancelled", "waiting"]
SHA256 = re.compile(r"[0-9a-f]{64}")

ERROR = "error: "  # what the text of a tool's result begins with where the tool failed
NOT_EXECUTED = "not executed: "  # or where the call was denied
WENT_ON = f"{NOT_EXECUTED}the user went on"  # of a call that waited, and was not answered
INTERRUPTED_CALL = "interrupted; the tool may have run"  # the error of any other call without a result
_REFUSED = " refused"  # stood behind the code of an error where the model server refused the question
_OLD_NAMES = {"provider_state": "provider_metadata", "goes_on": "continues"}
_REWRITTEN = {
    *_OLD_NAMES,
    "previous_error",
    "history",
    "pending",
}  # where they stand, a message may have to be changed


class ContentPart(TypedDict, total=False):
    """A part of a message: a `text`, or an `image` or a `file` by what its bytes are, which stand beside the session.
    A file may have a name."""

    type: Required[str]
    text: str
    sha256: str
    media_type: str
    size: int
    name: str


Content = str | list[ContentPart]  # a text, or parts of which at least one is no text


class AttemptFields(TypedDict, total=False):
    """What the messages of a second or later attempt at a turn have, beside `continues` where that attempt goes on
    with the one before, and the `idempotency_key` that asked for that. `answers_digest` is of the answers that it
    goes on with. `recovery` counts the attempts that the server itself has begun. The first message has the
    `response` that the attempt belongs to."""

    attempt: int
    continues: bool
    idempotency_key: str
    answers_digest: str
    recovery: int
    response: dict[str, Any]  # see `session_core/web/response_object.py`


class AnswerFields(AttemptFields, total=False):
    """What an assistant's message may have beside its text and its tool calls."""

    reasoning: str
    model: str
    provider_metadata: dict[str, Any]  # see `session_core/model/provider_metadata.py`
    status: str  # where the answer is not complete, with the reason
    reason: str
    usage: dict[str, Any]
    finish_reason: str
    leaves_out: list[str]  # ids of earlier questions without which alone the model server answers
    request: dict[str, Any]  # that it answers: its `tokens`, and the id of the `first` message in it
    pending: dict[str, str]  # by id of a call that waits: what for, "approval" or "client"
    deltas: list[int]  # the lengths of the pieces in which it was told, those of reasoning below zero


class QuestionFields(TypedDict, total=False):
    """What a user's message may have beside its text and its `idempotency_key`."""

    previous_error: str
    previous_refused: bool
    replaces: str
    after: str
    client_id: str
    terms: str
    history: "list[StoredMessage]"
    steered: bool  # it has come into a turn that ran, and begins none
    response: dict[str, Any]


class MessageFields(AnswerFields, QuestionFields, total=False):
    """A message that is not stored yet. `docs/files.md` says what each field means, and who writes it."""

    role: Required[str]
    content: Required[Content]
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    is_error: bool
    imported: bool  # the last message of an import or a copy: no turn of this session wrote it
    added: bool  # by itself, beside all turns


class StoredMessage(MessageFields):
    """A message as it is stored."""

    id: str
    created_at: str


_ALWAYS = ("id", "role", "created_at", "content")  # of every message; strings, and a content may be parts
_OPTIONAL_TYPES = {
    name: get_origin(hint) or hint for name, hint in get_type_hints(StoredMessage).items() if name not in _ALWAYS
}


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, without its pictures and files."""
    return content_text(message.get("content"))


def content_text(content: object) -> str:
    """The text of a content, empty where it is none."""
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def as_parts(content: Content) -> list[ContentPart]:
    """The content as parts."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def with_files(text: str, files: Sequence[ContentPart]) -> Content:
    """The content that has this text, and behind it these pictures and files."""
    return [{"type": "text", "text": text}, *files] if files else text


def file_parts(content: Content | None) -> list[ContentPart]:
    """The pictures and files of a content."""
    parts = content if isinstance(content, list) else []
    return [part for part in parts if isinstance(part, dict) and "sha256" in part]


def named_files(messages: Iterable[MessageFields]) -> set[str]:
    """The SHA-256 of all pictures and files that messages name, also those of their `history`."""
    found: set[str] = set()
    for message in messages:
        found |= {part["sha256"] for part in file_parts(message["content"])}
        found |= named_files(message["history"]) if "history" in message else set()
    return found


def same_content(one: Content, other: Content) -> bool:
    """Whether both say the same: the same text with the same pictures and files."""
    return one == other or _said(one) == _said(other)


def _said(content: Content) -> tuple[str, list[str]]:
    return content_text(content), [part["sha256"] for part in file_parts(content)]


def user_message(content: Content, key: str | None = None, **fields: Unpack[QuestionFields]) -> MessageFields:
    """A question, with the idempotency key of its turn. Fields that are empty are left out, here and below."""
    return _message("user", content, {"idempotency_key": key, **fields})


def begins_turn(message: Mapping[str, Any]) -> bool:
    """Whether a message is a question, with which a turn begins: a user's, that has not come into one that ran."""
    return message.get("role") == "user" and not message.get("steered")


def assistant_message(
    content: str, calls: Sequence[dict[str, Any]] = (), **fields: Unpack[AnswerFields]
) -> MessageFields:
    """An answer, or what the model said before the results of these calls."""
    return _message("assistant", content, {"tool_calls": calls, **fields})


def tool_message(call_id: str, name: str, content: Content, is_error: bool | None) -> MessageFields:
    """What a call of a tool has given, as the model gets it, and whether the tool failed (None: the text tells)."""
    message: MessageFields = {"role": "tool", "tool_call_id": call_id, "name": name, "content": content}
    if is_error or (is_error is False and content_text(content).startswith(ERROR)):
        message["is_error"] = is_error
    return message


def tool_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call, as the Chat Completions API has it. The arguments are JSON, as the model wrote it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_failed(message: MessageFields) -> bool:
    """Whether the tool failed whose message this is. Earlier versions wrote no `is_error`: then the text tells."""
    return message.get("is_error", message_text(message).startswith(ERROR))


def read_status(message: MessageFields) -> Status:
    """Whether an assistant's message is a whole answer, and why not."""
    status = message.get("status", "completed")
    return cast(Status, status) if status in get_args(Status) else "incomplete"


def read_error(stored: str | None) -> tuple[str | None, bool]:
    """The code of the error that ended a turn, and whether the model server refused the question, as earlier versions
    stored both in one text."""
    return (stored, False) if stored is None else (stored.removesuffix(_REFUSED), stored.endswith(_REFUSED))


def answer_fields(value: dict[str, Any]) -> AnswerFields:
    """What an assistant's message may have of the fields of a JSON object."""
    copy = dict(value)
    _normalize(copy)
    return cast(AnswerFields, {name: copy[name] for name in copy if name in AnswerFields.__annotations__})


def is_message(value: Any) -> TypeGuard[StoredMessage]:
    """Whether a JSON value is a message: an object with the fields that every message has."""
    return are_messages([value])


def are_messages(values: list[Any]) -> TypeGuard[list[StoredMessage]]:
    """Whether all these JSON values are messages."""
    try:
        types = [set(map(type, map(operator.itemgetter(name), values))) for name in _ALWAYS]
        if types[-1] == {str, list} or types[-1] == {list}:
            types[-1] = {str} if all(is_content(value["content"]) for value in values) else {list}
        return all(found <= {str} for found in types)
    except (KeyError, TypeError):  # a field is missing, or the value is no object
        return False


def is_content(value: Any) -> TypeGuard[Content]:
    """Whether a JSON value is what a message may hold. Parts of types that are not known are nothing here."""
    return isinstance(value, str) or (isinstance(value, list) and all(map(_is_part, value)))


def normalize(messages: list[Any]) -> None:
    """Gives stored messages the fields of this version: those of earlier ones get their new names, and known fields
    whose values are of a wrong type are left out. Fields that are not known stay."""
    names: set[str] = set().union(*messages)  # in one pass for each name, since histories are long
    odd = names & _REWRITTEN
    for name in names & _OPTIONAL_TYPES.keys():
        if {type(message[name]) for message in messages if name in message} != {_OPTIONAL_TYPES[name]}:
            odd.add(name)
    for message in messages if odd else ():
        if not odd.isdisjoint(message):
            _normalize(message)


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        return False
    if part["type"] == "text":
        return isinstance(part.get("text"), str)
    if part["type"] not in ("image", "file"):
        return "sha256" not in part
    known = SHA256.fullmatch(str(part.get("sha256"))) and isinstance(part.get("media_type"), str)
    return bool(known) and type(part.get("size")) is int and isinstance(part.get("name", ""), str)


def _normalize(message: dict[str, Any]) -> None:
    for old, new in _OLD_NAMES.items():
        if old in message:
            message[new] = message.pop(old)
    for name in message.keys() & _OPTIONAL_TYPES.keys():
        if type(message[name]) is not _OPTIONAL_TYPES[name]:
            del message[name]
    code, refused = read_error(message.get("previous_error"))
    if refused:
        message |= {"previous_error": code, "previous_refused": True}
    if "pending" in message:
        message["pending"] = {id: way for id, way in message["pending"].items() if way in ("approval", "client")}
    if "history" in message:
        message["history"] = [one for one in message["history"] if is_message(one)]
        normalize(message["history"])


def _message(role: str, content: Content, fields: dict[str, Any]) -> MessageFields:
    kept = {name: value for name, value in fields.items() if value}
    return cast(MessageFields, {"role": role, "content": content, **kept})
