"""Every answer that `GET /openapi.json` tells of, brought about and held against it."""

import json
import shutil
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest
from werkzeug.test import TestResponse

from session_core.data.message import StoredMessage
from session_core.data.message_queue import MAX_QUEUED, QueuedMessage
from session_core.stores.files import FileStorage
from session_core.turns.turn import MAX_READERS
from session_core.web.hardened_waitress import MAX_BODY_BYTES
from session_core.web.ui_messages import UI_MESSAGES
from storage import LockedSession, MemoryStorage, timestamp
from tests.support.client import Client, error_of
from tests.support.model_server import BREAK, STALL, ReplyTo, answer, status, tool_call, tool_calls
from tests.support.openapi import ALL_CASES, DOCUMENT, TEXT, TURNS, World, _check_headers, check, check_answer
from tests.support.pictures import file, image, png, text

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
    return world.ask(
        operation, query="?limit=0&message=x", body=None if operation.startswith(("get", "list")) else b"[]"
    )


@cause("unauthorized")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, app=world.app(auth_token="token"), Authorization="Bearer tokem")


@cause("forbidden_host")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, Host="chat.example.org")


@cause("forbidden_origin")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, Origin="https://chat.example.org")


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
    with FileStorage.open(str(world.directory)).lock_for_turn(world.session_id):
        return world.ask(operation)


@cause("conversation_locked")
def _(world: World, operation: str) -> TestResponse:
    world.ask("get_response")  # which there is from now on
    with FileStorage.open(str(world.directory)).lock_for_turn(world.session_id):
        return world.ask(operation)


@cause("get_item 200")
@cause("delete_item 200")
def _(world: World, operation: str) -> TestResponse:
    world.ask("get_response")  # with whose question the session begins
    return world.ask(operation)


@cause("get_response invalid_request")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, query="?starting_after=-1")


@cause("get_response overloaded")
def _(world: World, operation: str) -> TestResponse:
    app = world.app()
    turn = world.begin_turn(app)
    watchers = [app.watch(world.session_id) for _ in range(MAX_READERS["watching"])]
    response = world.ask(operation, app=app, query="?stream=true")
    for stream in (turn, *watchers):
        stream.close()
    return response


@cause("model_not_found")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, body={"model": "gpt-9"})


@cause("nothing_to_continue")
def _(world: World, operation: str) -> TestResponse:
    return world.ask(operation, body={"continue": True})


@cause("turn_waiting")
def _(world: World, operation: str) -> TestResponse:
    app = world.waiting()
    return world.ask(operation, app=app, body={"continue": True})


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
    return world.ask(operation, query="?message=msg-0" if operation == "resume_stream" else "")


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

    def queue(self, session_id: str) -> Any:
        raise ZeroDivisionError

    def page(self, limit: int | None = None, after: str | None = None) -> Any:
        raise ZeroDivisionError

    def running(self, session_id: str) -> bool:
        raise ZeroDivisionError

    def lock(self, session_id: str) -> LockedSession:
        raise ZeroDivisionError

    def lock_for_turn(self, session_id: str) -> LockedSession:
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
    watchers = [
        app.watch(world.session_id) for _ in range(MAX_READERS["watching"] if operation.startswith("resume") else 0)
    ]
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


@cause("202")
def _(world: World, operation: str) -> TestResponse:
    app = world.app()
    turn = world.begin_turn(app)
    response = world.ask(operation, app=app, body={"message": "Hello again", "if_busy": "queue"})
    turn.close()
    return response


@cause("queue_full")
def _(world: World, operation: str) -> TestResponse:
    for number in range(MAX_QUEUED):
        message: QueuedMessage = {"id": f"msg-{number}", "content": "Hi", "created_at": "2026-01-31T12:34:56Z"}
        world.storage.queue(world.session_id).add(message)
    app = world.app()
    app.app.extensions["turns"].turns.queues.close()  # so that none of them begins
    return world.ask(operation, app=app, body={"message": "Hello", "if_busy": "queue"})


@cause("take_back 200")
def _(world: World, operation: str) -> TestResponse:
    message: QueuedMessage = {"id": "msg-0", "content": "Hi", "created_at": "2026-01-31T12:34:56Z"}
    world.storage.queue(world.session_id).add(message)
    return world.ask(operation)


@cause("304")
def _(world: World, operation: str) -> TestResponse:
    app = world.app()
    tag = world.ask(operation, app=app).headers["ETag"]
    return world.ask(operation, app=app, If_None_Match=tag)


@cause("get_file 200")
def _(world: World, operation: str) -> TestResponse:
    app = world.app()
    world.ask("run", app=app, body={"message": [file(TEXT)]})
    return world.ask(operation, app=app)


@cause("get_file 304")
def _(world: World, operation: str) -> TestResponse:
    world.ask("run", body={"message": [file(TEXT)]})
    return CAUSES["304"](world, operation)


@cause("render_text 404")
def _(world: World, operation: str) -> TestResponse:
    with pytest.MonkeyPatch.context() as patch:  # as where the extra is not installed
        patch.setitem(sys.modules, "markdown_it", None)
        patch.delitem(sys.modules, "session_core.web.render", raising=False)
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
    if operation == "compact":
        world.session_id = world.storage.create(old_messages())
    of_operation = CAUSES.get(f"{operation} {error}") or CAUSES.get(f"{operation} {code}")
    bring_about = of_operation or CAUSES.get(error) or CAUSES[str(code)]
    response = bring_about(world, operation)
    assert response.status_code == code
    if error:
        assert error_of(response) == (code, error)
    check_answer(operation, response.status_code, response.headers, response.text)


def old_messages() -> list[StoredMessage]:
    """Of which some are to be summed up."""
    return [
        {"id": f"msg-{n}", "role": role, "content": "word " * 99, "created_at": timestamp()}
        for n, role in enumerate(["user", "assistant"] * 4)
    ]


@pytest.mark.parametrize("status", ["completed", "nothing_to_sum_up"])
def test_what_a_summary_answers_is_as_the_document_says(world: World, status: str) -> None:
    world.session_id = world.storage.create(old_messages() if status == "completed" else ())
    app = world.app()
    response = world.ask("compact", app=app)
    assert json.loads(response.data)["status"] == status
    check_answer("compact", 200, response.headers, response.text)
    response = world.ask("get_session", app=app)
    check_answer("get_session", 200, response.headers, response.text)


@pytest.mark.parametrize("path", ["/", "/health", "/sessions", "/sessions/session-x", "/sessions/session-x/run"])
def test_a_method_that_a_path_does_not_have_is_refused_as_the_document_says(path: str) -> None:
    with Client() as client:
        response = client.request("PUT", path)
    assert response.status_code == 405
    described = DOCUMENT["components"]["responses"]["MethodNotAllowed"]
    _check_headers(described["headers"], response.headers)
    check(json.loads(response.data), "/components/responses/MethodNotAllowed/content/application~1json/schema")


@pytest.mark.parametrize(
    "query",
    [
        "?details=true",
        "?details=true&limit=1",
        "?limit=1",
        "?limit=1&details=false",
        "?q=hello",
        "?q=hello&details=true",
    ],
)
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


@pytest.mark.parametrize("operation", ["run", "run_stream"])
def test_a_turn_that_waits_and_goes_on_is_as_the_document_says(world: World, operation: str) -> None:
    app = world.waiting(operation)
    for body in ({"answers": {"call_1": {"approve": False, "reason": "no"}}}, {"message": "Hello"}):
        response = world.ask("get_session", app=app)
        check_answer("get_session", 200, response.headers, response.text)
        response = world.ask(operation, app=app, body=body)
        check_answer(operation, 200, response.headers, response.text)


def test_an_error_that_is_told_again_is_as_the_document_says(world: World) -> None:
    app = world.app()
    world.model.then(status(401, {}))
    world.ask("run", app=app, Idempotency_Key="k")
    world.ask("run", app=app)
    response = world.ask("run", app=app, Idempotency_Key="k")
    assert response.headers["Idempotency-Replayed"] == "true"
    check_answer("run", HTTPStatus.BAD_GATEWAY, response.headers, response.text)


def test_a_message_with_a_picture_is_as_the_document_says(world: World) -> None:
    app = world.app()
    body = {"message": [text("What?"), image(png()), file(TEXT, name="x.txt")]}
    response = world.ask("run", app=app, body=body)
    check_answer("run", 200, response.headers, response.text)
    response = world.ask("get_session", app=app)
    check_answer("get_session", 200, response.headers, response.text)


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
