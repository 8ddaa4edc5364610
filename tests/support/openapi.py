"""Answers of the server held against `GET /openapi.json`."""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from werkzeug.datastructures import Headers
from werkzeug.test import TestResponse

from agent import tool
from session_core.data.message import assistant_message, user_message
from session_core.data.message_queue import QueuedMessage
from session_core.stores.files import FileStorage
from storage import Storage
from tests.support.client import Client, Stream
from tests.support.model_server import BREAK, STALL, ModelServer, ReplyTo, answer, frames, tool_call, tool_calls
from tests.support.pictures import sha256
from tests.support.server import ROOT

DOCUMENT = json.loads((ROOT / "session_core" / "web" / "page" / "openapi.json").read_text(encoding="utf-8"))


METHODS = ("get", "post", "patch", "delete")


OPERATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method in METHODS
}


# What HTTP itself has, and what the document says of every answer in its description.
COMMON_HEADERS = {"Content-Type", "Content-Length", "Date", "X-Content-Type-Options", "Vary"}


# --- answers against the document ---


def _strict(schema: Any) -> Any:
    """The schema with nothing allowed beside what it names."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _strict(value) for name, value in schema.items()}
    if made.get("type") == "object" and "properties" in made:
        made.setdefault("additionalProperties", False)
    return made


_REGISTRY: Registry[Any] = Registry().with_resource(
    "urn:openapi", Resource(contents=_strict(copy.deepcopy(DOCUMENT)), specification=DRAFT202012)
)


TEXT = b"Hello\n"  # a file that a session may have


def _validator(pointer: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"urn:openapi#{pointer}"}, registry=_REGISTRY, format_checker=FormatChecker()
    )


def _resolved(value: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """What a reference stands for, and its pointer."""
    if "$ref" not in value:
        return value, None
    found: Any = DOCUMENT
    for name in value["$ref"].split("/")[1:]:
        found = found[name]
    return found, value["$ref"][1:]


def check(value: object, pointer: str) -> None:
    """Raises where the value is not what the schema at the pointer says."""
    _validator(pointer).validate(value)


def check_answer(operation: str, code: int, headers: Headers, body: str) -> list[dict[str, Any]]:
    """Raises where the answer is not one that the document tells of; gives the events, of a stream."""
    method, path, described = OPERATIONS[operation]
    assert str(code) in described["responses"], f"{operation} does not tell of {code}: {body}"
    escaped = path.replace("~", "~0").replace("/", "~1")
    response, pointer = _resolved(described["responses"][str(code)])
    pointer = pointer or f"/paths/{escaped}/{method.lower()}/responses/{code}"
    _check_headers(response.get("headers", {}), headers)
    if "content" not in response:
        assert body == ""
        return []
    content_type = headers["Content-Type"].split(";")[0]
    assert content_type in response["content"]
    schema = f"{pointer}/content/{content_type.replace('/', '~1')}/schema"
    if content_type == "text/event-stream":
        return list(_checked_events(body, schema, "UiChunk" if "chat" in operation else "Event"))
    check(json.loads(body) if content_type.endswith("json") else body, schema)
    return []


def _check_headers(described: dict[str, Any], headers: Headers) -> None:
    sent = {name.title(): value for name, value in headers.items()}
    for name, header in described.items():
        header, _ = _resolved(header)
        value: str | int | None = sent.pop(name.title(), None)
        if value is None:
            assert not header.get("required"), f"no {name}"
            continue
        if header["schema"].get("type") == "integer":
            value = int(value)
        Draft202012Validator(header["schema"]).validate(value)
    assert set(sent) <= {name.title() for name in COMMON_HEADERS}


def _checked_events(body: str, schema: str, kind: str) -> Iterator[dict[str, Any]]:
    for text in body.removesuffix("\n\n").split("\n\n"):
        if text.startswith(":"):
            continue
        frame = dict(line.split(": ", 1) for line in text.split("\n"))
        check(frame, schema)
        if kind == "UiChunk" and frame["data"] == "[DONE]":
            continue
        event = json.loads(frame["data"])
        check(event, f"/components/schemas/{kind}")
        yield event


# --- every answer that the document tells of, brought about ---


def _cases() -> Iterator[tuple[str, int, str]]:
    for name, (_, _, operation) in OPERATIONS.items():
        for code, response in operation["responses"].items():
            response, _ = _resolved(response)
            for content in response.get("content", {"": {}}).values():
                properties = content.get("schema", {}).get("properties", {})
                properties = properties.get("error", {}).get("properties", properties)  # in OpenAI's form
                codes = content.get("schema", {}).get("x-codes") or properties.get("code", {}).get("enum", [""])
                for error in codes:
                    yield name, int(code), error


ALL_CASES = list(_cases())


RESPONSE_BODIES: dict[str, dict[str, Any]] = {
    "create_response": {"input": "Hello"},
    "compact_response": {"model": "gpt-3.5-turbo"},
    "create_conversation": {"metadata": {"topic": "sums"}},
    "update_conversation": {"metadata": {"topic": "sums"}},
    "create_items": {"items": [{"role": "user", "content": "Hello"}]},
}


class World:
    """A session in a directory, a model server, and apps over both."""

    def __init__(self, directory: Path, model: ModelServer) -> None:
        self.directory = directory / "sessions"
        self.storage: Storage = FileStorage.open(str(self.directory))
        self.session_id = self.storage.create()
        self.model = model
        self._apps: list[Client] = []

    def app(self, **settings: Any) -> Client:
        self._apps.append(Client(model=self.model, storage=self.storage, **{"metrics": True, **settings}))
        return self._apps[-1]

    def ask(
        self, operation: str, *, app: Client | None = None, query: str = "", body: object = None, **headers: str
    ) -> TestResponse:
        """A request that is in order but for what is given here."""
        method, path, _ = OPERATIONS[operation]
        if body is None and operation in ("run", "run_stream"):
            body = {"message": "Hello"}
        if operation == "chat" and (body is None or isinstance(body, dict)):
            text = (body or {}).get("message", "Hello")
            question = {"role": "user", "parts": [{"type": "text", "text": text}]}
            body = {**(body or {}), "id": self.session_id, "message": question}
        if operation == "complete_chat" and (body is None or isinstance(body, dict)):
            text = (body or {}).pop("message", "Hello")
            body = {"messages": [{"role": "user", "content": text}], **(body or {})}
        if operation == "complete_chat":
            headers.setdefault("X_Session_Id", self.session_id)
        if operation in RESPONSE_BODIES and (body is None or isinstance(body, dict)):
            body = self._response_body(operation, body or {})
        if operation == "get_openai_model":
            path = path.replace("{model}", (body or {}).get("model", "gpt-3.5-turbo"))
            body = None
        if body is None and operation == "render_text":
            body = {"text": "# One"}
        if body is None and operation == "configure_session":
            body = {"title": "Greetings"}
        if body is None and operation == "create_session":
            body = {"copy_of": self.session_id}
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        suffix = self.session_id.removeprefix("session-")
        named = {"session_id": self.session_id, "item_id": f"msg_{suffix}_1", "id": f"conv_{suffix}"}
        named |= {"sha256": sha256(TEXT), "message_id": "msg-0"}
        if "/conversations/" in path or "/responses/{" in path:
            named["id"] = named["id"] if "/conversations/" in path else f"resp_{suffix}_{self._ask_before()}"
        return (app or self.app()).request(method, path.format(**named) + query, body, sent)

    def _ask_before(self) -> str:
        """The last question of the session, which has one from now on, where it can be written."""
        question = "1"
        with contextlib.suppress(Exception):
            if not self.storage.get(self.session_id).messages:
                with self.storage.lock(self.session_id) as session:
                    session.append(user_message("Hello"), "msg-1")
                    session.append(assistant_message("Hello"))
            asked = [one for one in self.storage.get(self.session_id).messages if one["role"] == "user"]
            question = asked[-1]["id"].removeprefix("msg-")
        return question

    def _response_body(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        """A body in order for an operation of OpenAI's Responses or Conversations."""
        sent = {**RESPONSE_BODIES[operation], **{name: body[name] for name in body if name != "message"}}
        if operation == "create_response":
            sent |= {"conversation": f"conv_{self.session_id.removeprefix('session-')}"}
            sent |= {"input": body["message"]} if "message" in body else {}
        if operation == "compact_response" and self.storage is not None:
            sent |= {"previous_response_id": f"resp_{self.session_id.removeprefix('session-')}_{self._ask_before()}"}
        return sent

    def begin_turn(self, app: Client) -> Stream:
        """A turn that has begun and stays silent."""
        self.model.default = answer("Hel", STALL)
        stream = app.stream(self.session_id, "Hello")
        assert stream.next("stream_chunk")
        return stream

    def steer(self) -> str:
        """Has a message of the user come into the turn that calls this."""
        question = self.storage.get(self.session_id).messages[-2]["id"]
        now = "2026-01-31T12:34:56Z"
        message: QueuedMessage = {"id": "msg-0", "content": "Hurry", "created_at": now, "steers": question}
        self.storage.queue(self.session_id).add(message)
        return "done"

    def waiting(self, operation: str = "run") -> Client:
        """An app in whose session a turn waits for approval of a call."""

        @tool(needs_approval=True)
        def send() -> str:
            """Sends a letter."""
            return "sent"

        self.model.then(tool_call("send", {}, id="call_1"))
        app = self.app(tools=[send])
        response = self.ask(operation, app=app)
        check_answer(operation, response.status_code, response.headers, response.text)
        return app

    def close(self) -> None:
        for app in self._apps:
            app.close()


# --- streams, event by event ---

THINKING: dict[str, Any] = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}


TURNS: dict[str, tuple[ReplyTo, ...]] = {
    "stream_start": (answer("Hello"),),
    "stream_reasoning": (frames(THINKING, {"choices": [{"delta": {"content": "15"}, "finish_reason": "stop"}]}),),
    "stream_chunk": (answer("15 ", "* 23", " is 345.", usage={"total_tokens": 3}),),
    "stream_tool_call": (tool_call("calculator", {"expression": "15 * 23"}, text="Let me see. "), answer("345")),
    "stream_tool_result": (tool_calls(("calculator", {"expression": "1/0"}), ("abacus", {})), answer("None.")),
    "stream_message": (tool_call("steer", {}), answer("OK")),
    "stream_end": (answer("Hel", finish_reason="length"),),
    "error": (answer("Hel", BREAK),),
}
