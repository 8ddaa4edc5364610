"""`GET /openapi.json` against what the server does.

Every answer that the document tells of, each operation with each status and code, is brought about once and held
against its description. Then schemathesis looks for answers that it does not tell of.
"""

import configparser
import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from werkzeug.datastructures import Headers
from werkzeug.test import TestResponse

from session_core.stores.files import FileStorage
from session_core.turns.turn import MAX_WATCHERS
from session_core.web.errors import ERRORS
from session_core.web.hardened_waitress import MAX_BODY_BYTES
from session_core.web.page_files import PAGE_FILE_ROUTES
from session_core.web.ui_messages import UI_MESSAGES
from storage import TITLE_LENGTH, LockedSession, MemoryStorage, Storage
from tests.support.client import Client, Stream
from tests.support.model_server import (
    BREAK,
    STALL,
    ModelServer,
    ReplyTo,
    answer,
    frames,
    status,
    tool_call,
    tool_calls,
)
from tests.support.server import ROOT, TIMEOUT, Server

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


# --- the document by itself ---


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    validate(DOCUMENT)


def test_the_server_sends_the_document() -> None:
    with Client() as client:
        assert json.loads(client.get("/openapi.json").data) == DOCUMENT


def test_the_document_has_the_version_of_the_package() -> None:
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg", encoding="utf-8")
    assert DOCUMENT["info"]["version"] == package["metadata"]["version"]


def test_every_route_of_the_app_is_an_operation_and_every_operation_a_route() -> None:
    with Client(metrics=True) as client:
        routes = {
            (method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule))
            for rule in client.app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        }
    assert routes - {("GET", route) for route in PAGE_FILE_ROUTES} == {
        (method, path) for method, path, _ in OPERATIONS.values()
    }


def test_only_operations_that_are_open_to_all_do_without_the_token() -> None:
    assert {name for name, (_, _, operation) in OPERATIONS.items() if operation.get("security") == []} == {
        "health",
        "ready",
        "page",
        "openapi",
    }


def test_every_error_code_is_in_the_document() -> None:
    assert DOCUMENT["components"]["schemas"]["ErrorCode"]["enum"] == list(ERRORS)


def test_every_error_code_can_come_from_an_operation() -> None:
    told = {code for case in ALL_CASES for code in [case[2]] if code}
    assert told | {"method_not_allowed"} == set(ERRORS)


def test_every_error_code_is_told_under_its_status() -> None:
    wrong = [case for case in ALL_CASES if case[2] and ERRORS[case[2]][0] != case[1]]
    assert not wrong


@pytest.mark.parametrize("code", DOCUMENT["components"]["schemas"]["TurnErrorCode"]["enum"])
def test_an_error_event_has_the_status_of_its_code(code: str) -> None:
    event = {
        "type": "error",
        "id": "evt-1-1",
        "created_at": "2026-01-31T12:34:56Z",
        "data": {"error": "It failed.", "code": code, "status": ERRORS[code][0]},
    }
    check(event, "/components/schemas/Event")
    event["data"]["status"] = 418
    assert not _validator("/components/schemas/Event").is_valid(event)


def test_a_title_has_the_length_that_the_document_says() -> None:
    assert DOCUMENT["components"]["schemas"]["NewTitle"]["maxLength"] == TITLE_LENGTH
    with Client() as client:
        path = f"/sessions/{client.create()}"
        assert client.request("PATCH", path, {"title": "é" * TITLE_LENGTH}).status_code == 200
        assert client.request("PATCH", path, {"title": "é" * (TITLE_LENGTH + 1)}).status_code == 400


@pytest.mark.parametrize("operation", ["list_sessions", "get_session"])
def test_a_limit_has_the_bounds_that_the_document_says(operation: str) -> None:
    limit = OPERATIONS[operation][2]["parameters"][0]["schema"]
    with Client() as client:
        path = OPERATIONS[operation][1].format(session_id=client.create())
        for number, expected in (("minimum", 200), ("maximum", 200)):
            assert client.get(f"{path}?limit={limit[number]}").status_code == expected
        assert client.get(f"{path}?limit={limit['minimum'] - 1}").status_code == 400
        assert client.get(f"{path}?limit={limit['maximum'] + 1}").status_code == 400


@pytest.mark.parametrize("key", ["k", "~" * 255, "", "~" * 256, "two words", "é"])
def test_an_idempotency_key_has_the_form_that_the_document_says(key: str) -> None:
    fits = re.fullmatch(DOCUMENT["components"]["parameters"]["IdempotencyKey"]["schema"]["pattern"], key)
    with Client() as client:
        assert client.run(client.create(), Idempotency_Key=key).status_code == (200 if fits else 400)


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
                for error in properties.get("code", {}).get("enum", [""]):
                    yield name, int(code), error


ALL_CASES = list(_cases())


class World:
    """A session in a directory, a model server, and apps over both."""

    def __init__(self, directory: Path, model: ModelServer) -> None:
        self.directory = directory / "sessions"
        self.storage: Storage = FileStorage(str(self.directory))
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
            body = {"id": self.session_id, "message": question}
        if operation == "complete_chat" and (body is None or isinstance(body, dict)):
            text = (body or {}).pop("message", "Hello")
            body = {"messages": [{"role": "user", "content": text}], **(body or {})}
        if operation == "complete_chat":
            headers.setdefault("X_Session_Id", self.session_id)
        if operation == "get_openai_model":
            path = path.replace("{model}", (body or {}).get("model", "gpt-3.5-turbo"))
            body = None
        if body is None and operation == "configure_session":
            body = {"title": "Greetings"}
        if body is None and operation == "create_session":
            body = {"copy_of": self.session_id}
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return (app or self.app()).request(method, path.format(session_id=self.session_id) + query, body, sent)

    def begin_turn(self, app: Client) -> Stream:
        """A turn that has begun and stays silent."""
        self.model.default = answer("Hel", STALL)
        stream = app.stream(self.session_id, "Hello")
        assert stream.next("stream_chunk")
        return stream

    def close(self) -> None:
        for app in self._apps:
            app.close()


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with ModelServer() as model:
        yield model


@pytest.fixture
def world(tmp_path: Path, model: ModelServer) -> Iterator[World]:
    model.default = answer("Hello")
    world = World(tmp_path, model)
    yield world
    world.close()


Cause = Callable[[World, str], TestResponse]
CAUSES: dict[str, Cause] = {}


def cause(name: str) -> Callable[[Cause], Cause]:
    return lambda function: CAUSES.setdefault(name, function)


def _model_says(reply: ReplyTo) -> Cause:
    def ask(world: World, operation: str) -> TestResponse:
        world.model.default = reply
        return world.ask(operation)

    return ask


CAUSES["context_length_exceeded"] = _model_says(status(400, {"error": {"code": "context_length_exceeded"}}))
CAUSES["model_rate_limited"] = _model_says(status(429, {}, {"Retry-After": "3600"}))
CAUSES["model_error"] = _model_says(status(404, {}))
CAUSES["model_unauthorized"] = _model_says(status(401, {}))
CAUSES["too_many_tool_rounds"] = _model_says(tool_call("calculator", {"expression": "1 + 1"}))


@cause("model_timeout")
def _(world: World, operation: str) -> TestResponse:
    world.model.default = answer(STALL)
    return world.ask(operation, app=world.app(timeout=0.2))


@cause("invalid_request")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, query="?limit=0", body=None if operation.startswith(("get", "list")) else b"[]")


@cause("unauthorized")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, app=world.app(auth_token="token"), Authorization="Bearer tokem")


@cause("forbidden_host")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, Host="chat.example.org")


@cause("forbidden_origin")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, ModelId="https://chat.example.org")


@cause("session_not_found")
def _(world: World, operation: str) -> TestResponse:
    world.session_id = "session-unknown"
    return world.ask(operation)


@cause("not_found")
def _(world: World, operation: str) -> TestResponse:
    world.session_id = "session-a%2Fb"
    return world.ask(operation, app=world.app(metrics=False))


@cause("session_busy")
def _(world: World, operation: str) -> TestResponse:
    with FileStorage(str(world.directory)).lock(world.session_id, turn=True):
        return world.ask(operation)


@cause("model_not_found")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, body={"model": "gpt-9"})


@cause("nothing_to_continue")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, body={"continue": True})


@cause("event_gone")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, Last_Event_ID="evt-unknown-1")


@cause("request_too_large")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, body=b" " * (MAX_BODY_BYTES + 1))


@cause("unsupported_media_type")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, body=b"message=Hello", Content_Type="application/x-www-form-urlencoded")


@cause("idempotency_key_reused")
def _(world: World, operation: str) -> TestResponse:
    app = world.app()
    assert world.ask("run", app=app, Idempotency_Key="k").status_code == 200
    return world.ask(operation, app=app, body={"message": "Hello again"}, Idempotency_Key="k")


@cause("session_corrupt")
def _(world: World, operation: str) -> TestResponse:
    (world.directory / f"{world.session_id}.json").write_text("{]")
    return world.ask(operation)


@cause("internal_error")
def _(world: World, operation: str) -> TestResponse:
    world.storage = _Faulty()
    return world.ask(operation)


class _Faulty(MemoryStorage):
    """Somebody's own storage, with a fault."""

    def check(self) -> None:
        raise ZeroDivisionError

    def create(self, *_: Any, **__: Any) -> str:
        raise ZeroDivisionError

    def get(self, session_id: str) -> Any:
        raise ZeroDivisionError

    def page(self, limit: int | None = None, after: str | None = None) -> Any:
        raise ZeroDivisionError

    def running(self, session_id: str) -> bool:
        raise ZeroDivisionError

    def lock(self, session_id: str, *, turn: bool = False) -> LockedSession:
        raise ZeroDivisionError


@cause("storage_unavailable")
def _(world: World, operation: str) -> TestResponse:
    shutil.rmtree(world.directory)
    return world.ask(operation)


@cause("shutting_down")
def _(world: World, operation: str) -> TestResponse:
    app = world.app()
    app.shut_down()
    return world.ask(operation, app=app)


@cause("overloaded")
def _(world: World, operation: str) -> TestResponse:
    app = world.app(max_streams=1)
    turn = world.begin_turn(app)
    watchers = [app.watch(world.session_id) for _ in range(MAX_WATCHERS if operation.startswith("resume") else 0)]
    if not operation.startswith("resume"):
        world.session_id = app.create()
    response = world.ask(operation, app=app)
    for stream in (turn, *watchers):
        stream.close()
    return response


@cause("204")
@cause("200")
@cause("201")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation)


@cause("resume_stream 200")
def _(world: World, operation: str) -> TestResponse:
    app = world.app()
    assert world.ask("run", app=app).status_code == 200
    return world.ask(operation, app=app)


@cause("resume_chat 200")
def _(world: World, operation: str) -> TestResponse:
    app = world.app(timeout=2.0)
    world.begin_turn(app).close()
    return world.ask(operation, app=app)


@pytest.mark.parametrize(
    "operation,code,error", ALL_CASES, ids=[f"{name}-{error or code}" for name, code, error in ALL_CASES]
)
def test_an_answer_is_as_the_document_says(world: World, operation: str, code: int, error: str) -> None:
    bring_about = CAUSES.get(error) or CAUSES.get(f"{operation} {code}") or CAUSES[str(code)]
    response = bring_about(world, operation)
    assert response.status_code == code
    if error:
        said = json.loads(response.data)
        assert said.get("code", said["error"]["code"] if isinstance(said["error"], dict) else None) == error
    check_answer(operation, response.status_code, response.headers, response.text)


@pytest.mark.parametrize("path", ["/", "/health", "/sessions", "/sessions/session-x", "/sessions/session-x/run"])
def test_a_method_that_a_path_does_not_have_is_refused_as_the_document_says(path: str) -> None:
    with Client() as client:
        response = client.request("PUT", path)
    assert response.status_code == 405
    described = DOCUMENT["components"]["responses"]["MethodNotAllowed"]
    _check_headers(described["headers"], response.headers)
    check(json.loads(response.data), "/components/responses/MethodNotAllowed/content/application~1json/schema")


@pytest.mark.parametrize("query", ["?details=true", "?details=true&limit=1", "?limit=1", "?limit=1&details=false"])
def test_a_list_of_sessions_is_as_the_document_says(world: World, query: str) -> None:
    app = world.app()
    world.ask("run", app=app)
    corrupt = app.create()
    (world.directory / f"{corrupt}.json").write_text("{]")
    app.create()
    response = world.ask("list_sessions", app=app, query=query)
    check_answer("list_sessions", 200, response.headers, response.text)


@pytest.mark.parametrize("query", ["", "?limit=1", "?limit=1000"])
@pytest.mark.parametrize("operation", ["run", "run_stream"])
def test_the_messages_of_a_turn_are_as_the_document_says(world: World, query: str, operation: str) -> None:
    world.model.then(tool_calls(("calculator", {"expression": "15 * 23"}), ("calculator", "{"), ("abacus", {})))
    world.model.then(answer("It is 345.", usage={"total_tokens": 3, "details": {"cached_tokens": 1}}))
    app = world.app()
    world.ask(operation, app=app)
    response = world.ask("get_session", app=app, query=query)
    check_answer("get_session", 200, response.headers, response.text)


def test_a_partial_answer_is_as_the_document_says(world: World) -> None:
    world.model.default = answer("Hel", BREAK)
    app = world.app()
    world.ask("run", app=app)
    response = world.ask("get_session", app=app)
    assert json.loads(response.data)["messages"][-1]["reason"] == "model_error"
    check_answer("get_session", 200, response.headers, response.text)


@pytest.mark.parametrize("operation", ["run", "run_stream"])
def test_an_answer_that_is_told_again_is_as_the_document_says(world: World, operation: str) -> None:
    for app in (world.app(), world.app()):
        response = world.ask(operation, app=app, Idempotency_Key="k")
    assert response.headers["Idempotency-Replayed"] == "true"
    check_answer(operation, 200, response.headers, response.text)


def test_an_error_that_is_told_again_is_as_the_document_says(world: World) -> None:
    app = world.app()
    world.model.then(status(401, {}))
    world.ask("run", app=app, Idempotency_Key="k")
    world.ask("run", app=app)
    response = world.ask("run", app=app, Idempotency_Key="k")
    assert response.headers["Idempotency-Replayed"] == "true"
    check_answer("run", HTTPStatus.BAD_GATEWAY, response.headers, response.text)


SETTINGS = {"title": "Sums", "model": "other", "system_prompt": "Be brief."}


def test_settings_replaced_messages_and_usage_are_as_the_document_says(world: World) -> None:
    world.model.default = answer("Hello", usage={"total_tokens": 3})
    app = world.app(models=("other",))
    response = world.ask("configure_session", app=app, body=SETTINGS)
    check_answer("configure_session", 200, response.headers, response.text)
    world.ask("run", app=app)
    first = app.messages(world.session_id)[0]["id"]
    response = world.ask("run", app=app, body={"replaces": first})
    check_answer("run", 200, response.headers, response.text)
    response = world.ask("get_session", app=app, query="?replaced=true")
    check_answer("get_session", 200, response.headers, response.text)
    found = json.loads(response.data)
    assert found.items() >= SETTINGS.items()
    assert found["usage"] == {"total_tokens": 6}
    response = world.ask("create_session", app=app, body={"messages": found["messages"]})
    check_answer("create_session", 201, response.headers, response.text)


def test_a_document_in_markdown_is_as_the_document_says(world: World) -> None:
    response = world.ask("get_session", Accept="text/markdown")
    check_answer("get_session", 200, response.headers, response.text)
    assert response.mimetype == "text/markdown"


@pytest.mark.parametrize(
    "kind", ["stream_reasoning", "stream_tool_call", "stream_tool_result", "stream_end", "error"]
)
def test_ui_messages_and_their_frames_are_as_the_document_says(world: World, kind: str) -> None:
    world.model.then(*TURNS[kind])
    app = world.app()
    response = world.ask("chat", app=app)
    check_answer("chat", 200, response.headers, response.text)
    response = world.ask("get_session", app=app, Accept=UI_MESSAGES)
    check_answer("get_session", 200, response.headers, response.text)
    assert [message["role"] for message in json.loads(response.data)] == ["user", "assistant"]


# --- streams, event by event ---

THINKING: dict[str, Any] = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}
TURNS: dict[str, tuple[ReplyTo, ...]] = {
    "stream_start": (answer("Hello"),),
    "stream_reasoning": (frames(THINKING, {"choices": [{"delta": {"content": "15"}, "finish_reason": "stop"}]}),),
    "stream_chunk": (answer("15 ", "* 23", " is 345.", usage={"total_tokens": 3}),),
    "stream_tool_call": (tool_call("calculator", {"expression": "15 * 23"}, text="Let me see. "), answer("345")),
    "stream_tool_result": (tool_calls(("calculator", {"expression": "1/0"}), ("abacus", {})), answer("None.")),
    "stream_end": (answer("Hel", finish_reason="length"),),
    "error": (answer("Hel", BREAK),),
}


@pytest.mark.parametrize("kind", DOCUMENT["components"]["schemas"]["Event"]["discriminator"]["mapping"])
def test_events_are_as_the_document_says(world: World, kind: str) -> None:
    world.model.then(*TURNS[kind])
    app = world.app()
    for operation in ("run_stream", "resume_stream"):
        response = world.ask(operation, app=app)
        events = check_answer(operation, 200, response.headers, response.text)
        assert kind in [event["type"] for event in events]


@pytest.mark.parametrize("reason", ["something_new", None, "cancelled"])
def test_a_stored_error_that_nobody_knows_is_told_again_as_the_document_says(
    world: World, reason: str | None
) -> None:
    app = world.app()
    world.model.default = answer("Hel", BREAK)
    world.ask("run_stream", app=app, Idempotency_Key="k")
    world.ask("run_stream", app=app)
    path = world.directory / f"{world.session_id}.json"
    path.write_text(path.read_text().replace('"model_error"', json.dumps(reason)))
    response = world.ask("run_stream", Idempotency_Key="k")
    assert check_answer("run_stream", 200, response.headers, response.text)[-1]["data"]["code"] == "internal_error"


@pytest.mark.parametrize("finish_reason", ["stop", "length", "content_filter", None, "something_new"])
def test_an_end_is_as_the_document_says(world: World, finish_reason: str | None) -> None:
    world.model.default = answer("Hel", finish_reason=finish_reason)
    response = world.ask("run_stream")
    assert check_answer("run_stream", 200, response.headers, response.text)[-1]["type"] == "stream_end"


def test_the_end_of_a_cancelled_turn_is_as_the_document_says(world: World) -> None:
    app = world.app()
    stream = world.begin_turn(app)
    cancelled = world.ask("cancel", app=app)
    check_answer("cancel", 200, cancelled.headers, cancelled.text)
    last = stream.last()
    check(last, "/components/schemas/StreamEnd")
    assert last["data"]["status"] == "cancelled"


# --- anything else ---


def test_schemathesis_finds_no_answer_that_the_document_does_not_tell_of(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    config = tmp_path / "schemathesis.toml"
    # What is in order by its form, and refused for what came before: unknown ids, and a key for another message.
    # A session that is copied, a message that is replaced and a model that is chosen must exist.
    refused = {
        "list_sessions": 400,
        "get_session": 400,
        "resume_stream": 410,
        "run": 422,
        "run_stream": 422,
        "chat": 422,
        "complete_chat": 422,
    }
    refused |= {"create_session": 400, "configure_session": 400}
    config.write_text(
        "".join(
            f'[[operations]]\ninclude-operation-id = "{operation}"\n'
            f'checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "{code}"]\n'
            for operation, code in refused.items()
        )
    )
    calls = tool_call("calculator", {"expression": "15 * 23"})
    replies = {"user": calls, "tool": answer("It is ", "345.", usage={"total_tokens": 9})}
    with ModelServer(default=lambda request: replies[request["messages"][-1]["role"]](request)) as model:
        server = serve(f"-base_url={model.base_url}", "-metrics")
        found = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", f"--config-file={config}", "--no-color"),
                *("run", f"{server.url}/openapi.json", "--seed=1", "--max-examples=5", "--continue-on-failure"),
                *("--generation-database=none", f"--request-timeout={TIMEOUT}"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=20 * TIMEOUT,
        )
        assert found.returncode == 0, found.stdout + found.stderr
        assert "Traceback" not in server.log.read_text()
