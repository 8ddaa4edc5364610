"""The output items of a response, made from the events of its turn, and the events that tell of them."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from session_core.data.message import NOT_EXECUTED
from session_core.data.text import json_object
from session_core.model.events import Chunk, Reasoning, ToolCall, ToolResult
from session_core.turns.event_log import Ended, Event, Failed
from session_core.web.response_ids import ResponseId
from session_core.web.sealed import seal

APPROVAL = "mcpr_"  # begins the id of an item that asks for approval; the call's follows
CUSTOM_INPUT = "input"  # the one argument of a function that stands for a custom tool
_OWN_TOOLS = "session_server"  # the label of tools that are of no MCP server

Told = dict[str, Any]  # an event without its number


class _Kind(NamedTuple):
    """How a text is told: the kind of its item's id, and the names of its events."""

    id: str
    events: str
    part_events: str
    item: dict[str, Any]
    field: str  # of the item, which holds the part
    part: dict[str, Any]
    beside: dict[str, Any]  # the text, in its events


_MESSAGE = _Kind(
    *("msg", "response.output_text", "response.content_part"),
    {"type": "message", "role": "assistant"},
    "content",
    {"type": "output_text", "annotations": [], "logprobs": []},
    {"logprobs": []},
)
_REASONING = _Kind(
    *("rs", "response.reasoning_summary_text", "response.reasoning_summary_part"),
    {"type": "reasoning"},
    "summary",
    {"type": "summary_text"},
    {},
)


def server_label(tool: str) -> tuple[str, str]:
    """The label of a tool's server, and its name there."""
    label, separator, name = tool.partition("__")
    return (label, name) if separator and label and name else (_OWN_TOOLS, tool)


def full_tool_name(label: str, name: str) -> str:
    """The name of a tool, from the label of its server and its name there."""
    return name if label == _OWN_TOOLS else f"{label}__{name}"


def qualified_name(namespace: str | None, name: str) -> str:
    """The name by which the model calls a tool of the client."""
    return f"{namespace}__{name}" if namespace else name


def client_tools_of(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The tools of the client that a response was asked with, by the names by which the model calls them: their
    `type`, `name`, and `namespace` where they have one."""
    found = {}
    for tool in record.get("tools", ()):
        for inner in tool.get("tools", [tool]):
            space = {} if inner is tool else {"namespace": tool["name"]}
            called = qualified_name(space.get("namespace"), inner["name"])
            found[called] = {"type": inner["type"], "name": inner["name"], **space}
    return found


def custom_input(arguments: str) -> str:
    """The text that a custom tool is called with."""
    given = (json_object(arguments) or {}).get(CUSTOM_INPUT)
    return given if isinstance(given, str) else arguments


class ResponseItems:
    """The output of a response, which grows with each event that it is told.

    `earlier` are calls of earlier responses, by id, which may run in this one. `tools` are those of the client (see
    `client_tools_of`). Where reasoning is to be `sealed` for the client to send back, that names the model. Without
    `pieces` texts are told whole.
    """

    def __init__(
        self,
        id: ResponseId,
        *,
        earlier: Mapping[str, ToolCall] | None = None,
        tools: Mapping[str, Mapping[str, str]] | None = None,
        sealed: str = "",
        pieces: bool = True,
    ) -> None:
        self.output: list[dict[str, Any]] = []
        self._id = id
        self._earlier = earlier or {}
        self._tools = tools or {}
        self._sealed = sealed
        self._pieces = pieces
        self._kind: _Kind | None = None  # of the text that is being told
        self._text: list[str] = []
        self._name: str | None = None  # of the field of reasoning
        self._running: dict[str, int] = {}  # calls, by id the index of their item

    def tell(self, event: Event) -> Iterator[Told]:
        """Takes the turn's next event. Yields what tells of it."""
        match event:
            case Reasoning():
                self._name = event.name
                yield from self._add_text(_REASONING, event.content)
            case Chunk():
                yield from self._add_text(_MESSAGE, event.content)
            case ToolCall():
                yield from self.close("completed")
                yield from self._call(event)
            case ToolResult():
                yield from self._result(event)
            case Ended():
                yield from self._end("completed" if event.status in ("completed", "waiting") else "incomplete")
            case Failed():
                yield from self._end("incomplete")

    def close(self, status: str) -> Iterator[Told]:
        """Completes the text that is being told."""
        kind, text, self._kind = self._kind, "".join(self._text), None
        if kind is None:
            return
        item, place = self.output[-1], self._place(kind)
        if not self._pieces:
            yield self._delta(kind, text)
        yield {"type": f"{kind.events}.done", **place, "text": text, **kind.beside}
        part = {**kind.part, "text": text}
        yield {"type": f"{kind.part_events}.done", **place, "part": part}
        item |= {kind.field: [part], "status": status}
        if kind is _REASONING and self._sealed:
            item["encrypted_content"] = seal({"reasoning": text, "name": self._name, "model": self._sealed})
        yield self._done(item)

    def _end(self, status: str) -> Iterator[Told]:
        yield from self.close(status)
        for index in self._running.values():
            self.output[index]["status"] = "incomplete"
            yield self._done(self.output[index])
        self._running = {}

    def _add_text(self, kind: _Kind, text: str) -> Iterator[Told]:
        if self._kind is not kind:
            yield from self.close("completed")
            yield self._added({"id": self._next_id(kind.id), **kind.item, "status": "in_progress", kind.field: []})
            yield {"type": f"{kind.part_events}.added", **self._place(kind), "part": {**kind.part, "text": ""}}
            self._kind, self._text = kind, []
        self._text.append(text)
        if self._pieces:
            yield self._delta(kind, text)

    def _delta(self, kind: _Kind, text: str) -> Told:
        return {"type": f"{kind.events}.delta", **self._place(kind), "delta": text, **kind.beside}

    def _call(self, call: ToolCall) -> Iterator[Told]:
        if call.waits_for == "approval":
            label, name = server_label(call.name)
            yield self._added(
                {
                    "id": APPROVAL + call.id,
                    "type": "mcp_approval_request",
                    "server_label": label,
                    "name": name,
                    "arguments": call.arguments,
                }
            )
            yield self._done(self.output[-1])
        elif call.waits_for == "client":
            tool = self._tools.get(call.name, {"type": "function", "name": call.name})
            if tool["type"] == "custom":
                id, kind, field, value = "ctc", "custom_tool_call", "input", custom_input(call.arguments)
            else:
                id, kind, field, value = "fc", "function_call", "arguments", call.arguments
            item = {"id": self._next_id(id), "type": kind, "status": "in_progress", "call_id": call.id}
            item |= {**tool, "type": kind}
            yield from self._tell_call(item, f"{kind}_{field}", field, value)
            yield self._done(self.output[-1])
        else:
            yield from self._run(call, None)

    def _run(self, call: ToolCall, approval: str | None) -> Iterator[Told]:
        label, name = server_label(call.name)
        item: dict[str, Any] = {
            "id": self._next_id("mcp"),
            "type": "mcp_call",
            "status": "in_progress",
            "server_label": label,
            "name": name,
            "approval_request_id": approval,
            "output": None,
            "error": None,
        }
        self._running[call.id] = len(self.output)
        yield from self._tell_call(item, "mcp_call_arguments", "arguments", call.arguments)
        self.output[-1]["status"] = "in_progress"
        yield {"type": "response.mcp_call.in_progress", **self._of(self.output[-1])}

    def _tell_call(self, item: dict[str, Any], events: str, field: str, value: str) -> Iterator[Told]:
        """A call whose `field` is told in events of its own."""
        yield self._added({**item, field: ""})
        of = self._of(self.output[-1])
        yield {"type": f"response.{events}.delta", **of, "delta": value}
        yield {"type": f"response.{events}.done", **of, field: value}
        self.output[-1] |= {field: value, "status": "completed"}

    def _result(self, result: ToolResult) -> Iterator[Told]:
        """The outcome of a call that ran here. One that the client gives is its own item, and so is its refusal."""
        call = self._earlier.get(result.id)
        if result.id not in self._running:
            if call is None or result.given or (result.error or "").startswith(NOT_EXECUTED):
                return
            yield from self._run(call, APPROVAL + result.id)
        item = self.output[self._running.pop(result.id)]
        failed = result.error is not None
        error = {"type": "mcp_tool_execution_error", "content": result.error} if failed else None
        item |= {"status": "failed" if failed else "completed", "output": result.result, "error": error}
        yield {"type": f"response.mcp_call.{item['status']}", **self._of(item)}
        yield self._done(item)

    def _next_id(self, kind: str) -> str:
        return self._id.item(kind, len(self.output))

    def _place(self, kind: _Kind) -> dict[str, Any]:
        return {**self._of(self.output[-1]), f"{kind.field}_index": 0}

    def _of(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": self._index(item)}

    def _index(self, item: Mapping[str, Any]) -> int:
        return next(index for index in range(len(self.output) - 1, -1, -1) if self.output[index] is item)

    def _added(self, item: dict[str, Any]) -> Told:
        self.output.append(item)
        return {"type": "response.output_item.added", "output_index": len(self.output) - 1, "item": item.copy()}

    def _done(self, item: dict[str, Any]) -> Told:
        return {"type": "response.output_item.done", "output_index": self._index(item), "item": item.copy()}
