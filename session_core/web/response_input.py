"""The input of a response: its items as the messages that they are stored as, and the answers to calls among them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel

from session_core.data.message import (
    NOT_EXECUTED,
    AnswerFields,
    MessageFields,
    StoredMessage,
    assistant_message,
    tool_call,
    tool_message,
    user_message,
)
from session_core.data.session import new_message
from session_core.data.strict_json import to_json
from session_core.data.text import utf8_text
from session_core.tools.functions import result_text
from session_core.web.bodies import parse_body
from session_core.web.errors import ApiError
from session_core.web.response_items import APPROVAL, CUSTOM_INPUT, full_tool_name, qualified_name
from session_core.web.sealed import unseal
from session_core.web.uploads import Uploads

_SUMMARY = "A summary of the conversation before, with its answers:\n\n"


class _Part(BaseModel, strict=True):
    type: str
    text: str = ""
    refusal: str = ""
    image_url: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The part as `Uploads` takes it."""
        match self.type:
            case "input_image":
                return {"type": "image_url", "image_url": self.image_url}
            case "input_file":
                return {
                    "type": "file",
                    "file": {"file_data": self.file_data or self.file_url, "filename": self.filename},
                }
            case "input_audio" | "input_video":
                return {"type": self.type}
        return {"type": "text", "text": self.text}


class InputItem(BaseModel, strict=True):
    """An item that a client sends."""

    type: str = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None
    call_id: str = ""
    name: str = ""
    namespace: str | None = None
    arguments: str = ""
    input: str = ""
    output: Any = None
    error: Any = None
    server_label: str = ""
    approval_request_id: str | None = None
    approve: bool = False
    reason: str | None = None

    @property
    def text(self) -> str:
        """The texts of its content."""
        return self.content if isinstance(self.content, str) else _joined(self.content or ())

    @property
    def call(self) -> str:
        """The id of the call that it is, or is about, of a tool of the server."""
        return (self.approval_request_id or self.id or "").removeprefix(APPROVAL)

    @property
    def result(self) -> str:
        """The text of its output."""
        if isinstance(self.output, list) and all(isinstance(part, dict) for part in self.output):
            return "".join(str(part.get("text") or f"[{part.get('type')}]") for part in self.output)
        return result_text(self.output)


class ResponseInput:
    """What a client sends, item by item.

    `messages` are what is to be stored, `answers` those to calls that wait, as `TurnRequest` has them, and `system`
    the texts of system messages. `waiting` are the ids of stored calls that wait, of which the client may send its
    own copy. Results of calls that have `names` are messages. `find` gives an item by its id.
    `server` is the model server's address, to which reasoning goes back. `uploads` take its pictures and files.
    """

    def __init__(
        self,
        uploads: Uploads,
        find: Callable[[str], Mapping[str, Any]],
        waiting: Collection[str] = (),
        names: Mapping[str, str] | None = None,
        server: str = "",
    ) -> None:
        self.messages: list[StoredMessage] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.system: list[str] = []
        self.files = uploads.files
        self._uploads = uploads
        self._find = find
        self._server = server
        self._waiting = waiting
        self._names = dict(names or {})
        self._called: set[str] = set()
        self._thought: AnswerFields = {}  # before the answer that it belongs to

    def read(self, given: str | Sequence[Any]) -> Self:
        """Takes all that a client sends. Raises ApiError."""
        items: Sequence[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else given
        for item in items:
            self._add(parse_body(InputItem, item))
        return self

    @property
    def has_question(self) -> bool:
        """Whether it ends with a question."""
        return bool(self.messages) and self.messages[-1]["role"] == "user"

    def _add(self, item: InputItem) -> None:
        add = _ADD.get(item.type)
        if add is None:
            raise ApiError("invalid_request", f"input has an item of the type {item.type}, which is not served.")
        add(self, item)

    def _add_reasoning(self, item: InputItem) -> None:
        kept = unseal(item.encrypted_content)
        text = utf8_text(kept.get("reasoning")) or _joined(item.summary or ()) or item.text
        metadata = {"server": self._server, "reasoning_field": kept.get("name")}
        self._thought = {"reasoning": text, "model": str(kept.get("model", "")), "provider_metadata": metadata}

    def _add_client_call(self, item: InputItem) -> None:
        custom = item.type == "custom_tool_call"
        arguments = to_json({CUSTOM_INPUT: item.input}).decode() if custom else item.arguments
        self._add_call(item.call_id, qualified_name(item.namespace, item.name), arguments, "client")

    def _add_output(self, item: InputItem) -> None:
        if item.call_id in self._names:
            self._append(tool_message(item.call_id, self._names[item.call_id], item.result, None))
        else:
            self.answers[item.call_id] = {"result": item.result}

    def _add_server_call(self, item: InputItem) -> None:
        """A call that has run on the server, or is to be approved."""
        id, name = item.call, full_tool_name(item.server_label, item.name)
        self._add_call(id, name, item.arguments, "approval" if item.type == "mcp_approval_request" else None)
        if item.type == "mcp_call":
            self.answers.pop(id, None)
            self._append(tool_message(id, name, item.result, bool(item.error)))

    def _add_approval(self, item: InputItem) -> None:
        if item.approve or item.call not in self._names:
            self.answers[item.call] = {"approve": item.approve, "reason": item.reason or ""}
        else:
            self._append(tool_message(item.call, self._names[item.call], NOT_EXECUTED + (item.reason or ""), True))

    def _add_reference(self, item: InputItem) -> None:
        self._add(parse_body(InputItem, self._find(item.id or "")))

    def _add_compaction(self, item: InputItem) -> None:
        self.system.append(_SUMMARY + str(unseal(item.encrypted_content).get("summary", "")))

    def _pass_over(self, item: InputItem) -> None:
        """What a client may keep and the server knows by itself."""

    def _add_message(self, item: InputItem) -> None:
        if item.role is None:
            raise ApiError("invalid_request", "input has a message without a role.")
        if item.role == "user":
            given = item.content
            content = [part.content for part in given] if isinstance(given, list) else given
            self._append(user_message(self._uploads.parse_content(content, "input content")))
        elif item.role == "assistant":
            self._append(assistant_message(item.text, **self._take_thought()))
        else:
            self.system.append(item.text)

    def _add_call(self, id: str, name: str, arguments: str, way: str | None) -> None:
        """Adds a call to the answer that it belongs to. One that is stored is the client's own copy."""
        if id in self._waiting or id in self._called:
            return
        if not id or not name:
            raise ApiError("invalid_request", "input has a call without its id or its name.")
        self._names[id] = name
        self._called.add(id)
        if self._thought or not self.messages or self.messages[-1]["role"] != "assistant":
            self._append(assistant_message("", **self._take_thought()))
        calling = self.messages[-1]
        calling["tool_calls"] = [*calling.get("tool_calls", ()), tool_call(id, name, arguments)]
        if way is not None:
            calling["pending"] = {**calling.get("pending", {}), id: way}

    def _append(self, fields: MessageFields) -> None:
        self.messages.append(new_message(fields))

    def _take_thought(self) -> AnswerFields:
        thought, self._thought = self._thought, {}
        return thought


def _joined(parts: Sequence[_Part]) -> str:
    return "".join(part.text or part.refusal for part in parts)


_ADD: dict[str, Callable[[ResponseInput, InputItem], None]] = {
    "message": ResponseInput._add_message,
    "reasoning": ResponseInput._add_reasoning,
    "function_call": ResponseInput._add_client_call,
    "custom_tool_call": ResponseInput._add_client_call,
    "function_call_output": ResponseInput._add_output,
    "custom_tool_call_output": ResponseInput._add_output,
    "mcp_call": ResponseInput._add_server_call,
    "mcp_approval_request": ResponseInput._add_server_call,
    "mcp_approval_response": ResponseInput._add_approval,
    "mcp_list_tools": ResponseInput._pass_over,
    "item_reference": ResponseInput._add_reference,
    "compaction": ResponseInput._add_compaction,
}
