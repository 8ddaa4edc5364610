"""Conversations over HTTP.

`create_app` builds the Flask app from a storage, an agent and settings; `build_app` does so from the environment, for
any WSGI server; `main` is the command line. The order is: routes, the wire format, what comes in, and last how the
program starts and stops.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hmac
import importlib.resources
import ipaddress
import json
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn

from flask import Flask, Response, g, request
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from agent import Agent, Chunk, ToolCall, ToolResult
from calculator import calculator
from demo_model import ModelServer, demo_script
from runs import Ended, Entry, Failed, KeyReused, Overloaded, Runs, ShuttingDown, Started, Turn
from storage import (
    TITLE_LENGTH,
    FileStorage,
    MemoryStorage,
    SessionBusy,
    SessionCorrupt,
    SessionNotFound,
    Storage,
    StorageUnavailable,
    Summary,
)

log = logging.getLogger("session_server")

MAX_BODY = 1 << 20  # bytes of a request
BLOCK = 1 << 16  # bytes of events that are written together, and what a reader that has stalled holds up
PAGE = importlib.resources.files("chat_page")
PAGE_FILES = [file.name for file in PAGE.iterdir() if file.name.endswith((".css", ".js", ".svg"))]
OPEN_PATHS = {"/ready", "/", "/openapi.json", *(f"/{name}" for name in PAGE_FILES)}  # to all, without a token
_FILE_TYPES = {  # not left to the system's own table, which can be wrong
    "css": "text/css",
    "html": "text/html",
    "js": "text/javascript",
    "json": "application/json",
    "svg": "image/svg+xml",
}

# Every error that a caller can meet: its code, its HTTP status, and what is said where nothing more is known.
ERRORS: dict[str, tuple[int, str]] = {
    "invalid_request": (400, "The request is not valid."),
    "context_length_exceeded": (400, "The conversation is too long for the model."),
    "unauthorized": (401, "A valid token is needed: send Authorization: Bearer <token>."),
    "forbidden_host": (403, "The Host header names no loopback host. To serve other names, start with -auth_token."),
    "forbidden_origin": (403, "Pages of this origin may not call. Allow it with -cors_origin."),
    "not_found": (404, "There is nothing here. What there is, /openapi.json says."),
    "session_not_found": (404, "The session was not found."),
    "method_not_allowed": (405, "This method is not allowed here."),
    "session_busy": (409, "A turn is running in this session. Wait for its end, or cancel it."),
    "event_gone": (410, "This event is no longer held. Read the session instead."),
    "request_too_large": (413, "The request is larger than 1 MiB."),
    "unsupported_media_type": (415, "The body must be JSON: send Content-Type: application/json."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used for another message."),
    "model_rate_limited": (429, "The model server asks to slow down."),
    "internal_error": (500, "Something went wrong inside the server. Its log says what."),
    "session_corrupt": (500, "What is stored of this session cannot be understood. The server's log says why."),
    "model_error": (502, "The model server did not give a usable answer."),
    "model_unauthorized": (502, "The model server refused the API key."),
    "too_many_tool_rounds": (502, "The model called tools again and again, and never answered."),
    "overloaded": (503, "Too much is going on here right now. Try again soon."),
    "shutting_down": (503, "The server is shutting down."),
    "storage_unavailable": (503, "Sessions cannot be stored or read right now."),
    "model_timeout": (504, "The model server did not answer in time."),
}
_RETRY_AFTER = {"session_busy": "1", "overloaded": "1", "shutting_down": "5"}

_CODES: dict[type[Exception], str] = {
    SessionNotFound: "session_not_found",
    SessionBusy: "session_busy",
    SessionCorrupt: "session_corrupt",
    StorageUnavailable: "storage_unavailable",
    KeyReused: "idempotency_key_reused",
    Overloaded: "overloaded",
    ShuttingDown: "shutting_down",
}
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class Refusal(Exception):
    """A request that is refused with a code of `ERRORS`, and with other words than those there if any are given."""

    def __init__(self, code: str, text: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text or ERRORS[code][1])
        self.code = code
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Settings:
    """What can be set, by flag or in the environment; times are in seconds. `create_app` takes `timeout`,
    `keep_alive`, `auth_token`, `cors_origin` and `max_streams` from here, and the rest from its other arguments."""

    port: int = 8080
    host: str = "127.0.0.1"
    api_key: str = ""
    base_url: str = ""
    model: str = "gpt-3.5-turbo"
    stream: bool = True
    session_dir: str = ""
    redis_url: str = ""
    system_prompt: str = "You are a helpful assistant. Use the calculator for arithmetic."
    timeout: float = 120.0
    keep_alive: float = 15.0
    max_history: int = 0
    auth_token: str = ""
    cors_origin: tuple[str, ...] = ()
    max_streams: int = 500
    grace: float = 10.0
    log_level: str = "info"
    demo: bool = False

    @property
    def max_responses(self) -> int:
        """How many responses may wait for turns at once, those of ended turns to slow readers included."""
        return self.max_streams + 16

    @property
    def max_watchers(self) -> int:
        """How many clients may watch turns that others have started, all turns together."""
        return self.max_streams // 4 + 16


# --- the app ---


def create_app(storage: Storage, agent: Agent, settings: Settings | None = None) -> Flask:
    """The Flask app over these objects. `app.extensions["runs"]` holds its turns, for whoever shuts it down."""
    settings = settings or Settings()
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY
    app.url_map.merge_slashes = False  # a path with two is not found, and no redirect in HTML
    app.before_request(lambda: _guard(settings))
    app.after_request(lambda response: _finish(response, settings))
    app.register_error_handler(Exception, _answer_error)

    api = _Api(storage, agent, settings)
    app.extensions["runs"] = api.runs
    app.post("/sessions")(api.create_session)
    app.get("/sessions")(api.list_sessions)
    app.get("/sessions/<session_id>")(api.get_session)
    app.patch("/sessions/<session_id>")(api.rename_session)
    app.delete("/sessions/<session_id>")(api.delete_session)
    app.post("/sessions/<session_id>/run")(api.run)
    app.post("/sessions/<session_id>/run_stream")(api.run_stream)
    app.get("/sessions/<session_id>/run_stream")(api.resume_stream)
    app.post("/sessions/<session_id>/cancel")(api.cancel)
    app.get("/health")(api.health)
    app.get("/ready")(api.ready)
    for name in ("index.html", "openapi.json", *PAGE_FILES):
        app.add_url_rule("/" if name == "index.html" else f"/{name}", name, lambda name=name: _file(name))
    for rule in app.url_map.iter_rules("resume_stream"):  # some WSGI servers send a stream's body to a HEAD too
        assert rule.methods
        rule.methods.discard("HEAD")
    return app


class _Api:
    """The endpoints. Each answers with a response, or raises what `_answer_error` makes one of."""

    def __init__(self, storage: Storage, agent: Agent, settings: Settings) -> None:
        self.runs = Runs(storage, agent, timeout=settings.timeout, max_turns=settings.max_streams)
        self._storage = storage
        self._keep_alive = settings.keep_alive
        self._responses = threading.BoundedSemaphore(settings.max_responses)
        self._watchers = threading.BoundedSemaphore(settings.max_watchers)

    def create_session(self) -> Response:
        _body(optional=True)
        session_id = self._storage.create()
        return _json({"id": session_id}, 201, {"Location": f"/sessions/{session_id}"})

    def list_sessions(self) -> Response:
        details = _flag("details")
        limit = _number("limit", 1, 1000)
        after = request.args.get("after")
        try:
            ids, next_id = self._storage.page(limit or (100 if details else None), after)
        except SessionNotFound:
            raise Refusal("invalid_request", "after must be the id of a session in the list.") from None
        if not details:
            return _json({"sessions": ids, **({"next": next_id} if limit or after is not None else {})})
        sessions = []
        for session_id in ids:
            with contextlib.suppress(SessionNotFound):  # deleted since it was listed
                try:
                    sessions.append(self._details(session_id))
                except StorageUnavailable:  # a file that cannot be read costs only its own session
                    sessions.append({**vars(Summary(session_id)), "running": False})
        return _json({"sessions": sessions, "next": next_id})

    def _details(self, session_id: str) -> dict[str, Any]:
        return {**vars(self._storage.summary(session_id)), "running": self.runs.running(session_id)}

    def get_session(self, session_id: str) -> Response:
        limit = _number("limit", 1, 1000)
        before = request.args.get("before")
        running = self.runs.running(session_id)
        session = self._storage.get(session_id)
        messages = session.messages
        if before is not None:
            ids = [message["id"] for message in messages]
            if before not in ids:
                raise Refusal("invalid_request", "before must be the id of a message of this session.")
            messages = messages[: ids.index(before)]
        newest = messages[-limit:] if limit else messages
        answer = {
            "id": session.id,
            "messages": [_public(message) for message in newest],
            "created_at": session.created_at,
            "updated_at": session.updated_at,
            "running": running,
        }
        if limit or before is not None:
            answer["next"] = newest[0]["id"] if len(newest) < len(messages) else None
        return _json(answer)

    def rename_session(self, session_id: str) -> Response:
        body = _body()
        title = body.get("title")
        if "title" not in body or not isinstance(title, str | None):
            raise Refusal("invalid_request", 'The body must be {"title": "…"}, or null to remove the title.')
        title = (title or "").strip() or None
        if title and len(title) > TITLE_LENGTH:
            raise Refusal("invalid_request", f"A title has at most {TITLE_LENGTH} characters.")
        self.runs.rename(session_id, title)
        return _json(self._details(session_id))

    def delete_session(self, session_id: str) -> Response:
        _body(optional=True)
        self.runs.delete(session_id)
        return _json({"success": True, "message": f"Session {session_id} deleted"})

    def run(self, session_id: str) -> Response:
        turn, headers = self._start(session_id)
        try:
            last = turn.result()
        finally:
            self._responses.release()
        if isinstance(last, Failed):
            again = {} if last.retry_after is None else {"Retry-After": last.retry_after}
            return _error(last.code, last.text, {**headers, **again})
        return _json({"message": _public(last.message)}, 200, headers)

    def run_stream(self, session_id: str) -> Response:
        turn, headers = self._start(session_id)
        return self._stream(_frames(turn, 0, self._keep_alive, resumable=False), headers, self._responses.release)

    def _start(self, session_id: str) -> tuple[Turn, dict[str, str]]:
        """The turn that the request asks for, and what its headers tell of it. Takes one of the responses."""
        message = _body().get("message")
        if not isinstance(message, str) or not message.strip():
            raise Refusal("invalid_request", 'The body must be {"message": "text"}, and the text not blank.')
        key = request.headers.get("Idempotency-Key")
        if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
            raise Refusal("invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters.")
        room = self._responses.acquire(blocking=False)
        try:
            turn, replayed = self.runs.start(session_id, message, key, room=room)
            if not room:
                raise Overloaded
        except BaseException:
            if room:
                self._responses.release()
            raise
        return turn, {"Idempotency-Replayed": "true"} if replayed else {}

    def resume_stream(self, session_id: str) -> Response:
        turn = self.runs.attach(session_id)
        with contextlib.ExitStack() as stack:
            room = self._watchers.acquire(blocking=False)
            if room:
                stack.callback(self._watchers.release)
            elif turn is not None and not turn.ended:
                raise Overloaded  # before an event that was not told yet is waited for
            after = _position(turn, request.headers.get("Last-Event-ID") or request.args.get("after", ""))
            if turn is None or (turn.ended and after == turn.length):
                return Response(status=204)
            if not room:
                raise Overloaded
            stack.callback(turn.watch())
            frames = _frames(turn, after, self._keep_alive, resumable=True)
            return self._stream(frames, {}, stack.pop_all().close)

    def _stream(self, frames: Iterator[bytes], headers: Mapping[str, str], leave: Callable[[], None]) -> Response:
        response = Response(frames, content_type="text/event-stream; charset=utf-8", headers=headers)
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(leave)
        return response

    def cancel(self, session_id: str) -> Response:
        _body(optional=True)
        return _json({"cancelled": self.runs.cancel(session_id)})

    def health(self) -> Response:
        return _json({"status": "ok"})

    def ready(self) -> Response:
        if self.runs.closing:
            raise ShuttingDown
        self._storage.check()
        return _json({"status": "ok"})


# --- the wire format ---

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _public(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as callers see it, without what the server keeps beside it."""
    names = ("id", "role", "content", "tool_calls", "tool_call_id", "name", "status", "reason", "usage", "created_at")
    return {name: message[name] for name in names if name in message}


def _frames(turn: Turn, after: int, keep_alive: float, *, resumable: bool) -> Iterator[bytes]:
    """The turn's events behind number `after` as they come, until the last; a comment after `keep_alive` seconds
    without any."""
    while True:
        try:
            entries = turn.read(after, keep_alive)
        except StorageUnavailable:  # it runs elsewhere; the stream breaks off here, and can be resumed later
            return
        if not entries:
            yield b": keep-alive\n\n"
        block = b""
        for entry in entries:
            block += _frame(turn.id, entry, resumable)
            if len(block) >= BLOCK or entry is entries[-1]:
                yield block
                block = b""
        after += len(entries)
        if entries and isinstance(entries[-1].event, Ended | Failed):
            return


def _frame(turn_id: str, entry: Entry, resumable: bool) -> bytes:
    event_id = f"evt-{turn_id}-{entry.number}"
    if isinstance(entry.event, Chunk):  # the most of them; to encode a dict of it takes nine times as long
        data = f'{{"content":{_encode(entry.event.content)},"sequence":{entry.sequence}}}'
        text = f'{{"type":"stream_chunk","id":"{event_id}","created_at":"{entry.created_at}","data":{data}}}'
    else:
        kind, told = _wire(entry.event)
        text = _encode({"type": kind, "id": event_id, "created_at": entry.created_at, **told})
    return (f"id: {event_id}\ndata: {text}\n\n" if resumable else f"data: {text}\n\n").encode()


def _wire(event: Started | ToolCall | ToolResult | Ended | Failed) -> tuple[str, dict[str, Any]]:
    """The type of an event on the wire, and its `data`, if it has any."""
    data: dict[str, Any]
    match event:
        case Started():
            return "stream_start", {}
        case ToolCall():
            kind, data = "stream_tool_call", {"id": event.id, "name": event.name, "arguments": event.arguments}
        case ToolResult():
            outcome = {"result": event.result} if event.error is None else {"error": event.error}
            kind, data = "stream_tool_result", {"id": event.id, "name": event.name, **outcome}
        case Ended():
            message = event.message
            data = {"complete_text": event.complete_text, "message_id": message["id"], "status": "completed"}
            data |= {name: message[name] for name in ("status", "reason") if name in message}
            data["finish_reason"] = event.finish_reason
            if "usage" in message:
                data["usage"] = message["usage"]
            kind = "stream_end"
        case Failed():
            code, status, text = _told(event.code)
            kind, data = "error", {"error": event.text or text, "code": code, "status": status}
            data |= {} if event.message_id is None else {"message_id": event.message_id}
    return kind, {"data": data}


def _position(turn: Turn | None, event_id: str) -> int:
    """Which of the turn's events the client has seen last; 0 if none."""
    if not event_id:
        return 0
    found = re.fullmatch(rf"evt-{turn.id}-([1-9][0-9]{{0,9}})", event_id) if turn else None
    place = turn.place(int(found[1])) if turn and found else None
    if place is None:
        raise Refusal("event_gone")
    return place


def _json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(value) + "\n", status, headers, mimetype="application/json")


def _told(code: str) -> tuple[str, int, str]:
    """What callers are told of an error: its code, status and words. A file may hold a code that nobody knows."""
    code = code if code in ERRORS else "internal_error"
    return code, *ERRORS[code]


def _error(code: str, text: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    code, status, words = _told(code)
    if code in _RETRY_AFTER:
        headers = {"Retry-After": _RETRY_AFTER[code], **(headers or {})}
    return _json({"error": text or words, "code": code}, status, headers)


def _file(name: str) -> Response:
    response = Response((PAGE / name).read_bytes(), mimetype=_FILE_TYPES[name.rpartition(".")[2]])
    response.headers["Cache-Control"] = "no-cache"
    response.headers["Content-Security-Policy"] = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return response


# --- what comes in ---


def _body(*, optional: bool = False) -> dict[str, Any]:
    """The request's JSON object; an empty one where there is no body and none is needed."""
    data = request.get_data()
    if not data and optional:
        return {}
    if data and request.mimetype != "application/json":
        raise Refusal("unsupported_media_type")
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant)
        _encode(value).encode()  # lone surrogates cannot be stored or sent on
    except (ValueError, RecursionError):
        raise Refusal("invalid_request", "The body is not JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise Refusal("invalid_request", "The body must be a JSON object.")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _number(name: str, least: int, most: int) -> int | None:
    text = request.args.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise Refusal("invalid_request", f"{name} must be a whole number from {least} to {most}.")
    return int(text)


def _flag(name: str) -> bool:
    text = request.args.get(name, "false")
    if text not in ("true", "false"):
        raise Refusal("invalid_request", f"{name} must be true or false.")
    return text == "true"


def _answer_error(error: Exception) -> Response:
    """What a caller is told of an exception, whatever it is."""
    if isinstance(error, Refusal):
        return _error(error.code, str(error), error.headers)
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return _error(code, f"Session {error} not found" if kind is SessionNotFound else None)
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
        code = _STATUS_CODES.get(error.code, "invalid_request")
        allowed = isinstance(error, MethodNotAllowed) and error.valid_methods
        return _error(code, headers={"Allow": ", ".join(sorted(allowed))} if allowed else {})
    log.error("request %s failed", g.get("request_id"), exc_info=error)
    return _error("internal_error")


def _guard(settings: Settings) -> Response | None:
    """Who may come in at all. Runs before everything else."""
    g.began = time.monotonic()
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if re.fullmatch(r"[\x21-\x7e]{1,128}", given) else f"req-{secrets.token_hex(8)}"
    if request.path == "/health":
        return None
    origin = request.headers.get("Origin")
    if origin is not None and origin not in settings.cors_origin and not _same_host(origin):
        raise Refusal("forbidden_origin")
    if not settings.auth_token and not _is_loopback(_split_host(request.environ.get("HTTP_HOST", ""))[0]):
        raise Refusal("forbidden_host")
    if origin in settings.cors_origin and request.method == "OPTIONS":
        return Response(status=204)
    if settings.auth_token and request.path not in OPEN_PATHS:
        scheme, _, token = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        right = hmac.compare_digest(token.strip().encode("latin-1"), settings.auth_token.encode())
        if not right or scheme.lower() != "bearer":
            raise Refusal("unauthorized", headers={"WWW-Authenticate": "Bearer"})
    return None


def _same_host(origin: str) -> bool:
    scheme, _, named = origin.partition("://")
    default = {"http": 80, "https": 443}.get(scheme)
    host, port = _split_host(named)
    asked, asked_port = _split_host(request.environ.get("HTTP_HOST", ""))
    return bool(host) and (host, port or default) == (asked, asked_port or default)


def _split_host(text: str) -> tuple[str, int | None]:
    """Host and port of a Host header (RFC 9110, section 7.2); an empty host for one that is none."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]|[0-9A-Za-z._-]+)(?::([0-9]{0,5}))?", text)
    if not found or int(found[2] or 0) > 65535:
        return "", None
    return found[1].strip("[]").lower(), int(found[2]) if found[2] else None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _finish(response: Response, settings: Settings) -> Response:
    """What every response carries, and the line in the log when it has gone."""
    response.headers["X-Request-Id"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    origin = request.headers.get("Origin")
    if settings.cors_origin:
        response.headers.add("Vary", "Origin")
    if origin in settings.cors_origin:
        response.headers["Access-Control-Allow-Origin"] = str(origin)
        exposed = "Idempotency-Replayed, Location, Retry-After, X-Request-Id"
        response.headers["Access-Control-Expose-Headers"] = exposed
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = "DELETE, GET, PATCH, POST"
            response.headers["Access-Control-Allow-Headers"] = (
                "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Request-Id"
            )
            response.headers["Access-Control-Max-Age"] = "600"
    method, path = urllib.parse.quote(request.method[:20]), urllib.parse.quote(request.path[:200])
    line = f"request {g.request_id} {method} {path} {response.status_code}"
    began = g.began
    level = logging.DEBUG if request.path in ("/health", "/ready") else logging.INFO
    response.call_on_close(lambda: log.log(level, "%s %.3f s", line, time.monotonic() - began))
    return response


# --- starting and stopping ---


class SettingsError(ValueError):
    """A setting that cannot be used; the text names it and the remedy."""


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError("must be true or false")
    return text.lower() in ("true", "t", "1")


def _whole(least: int, most: int = 10**9) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    with_unit = re.fullmatch(r"([0-9]+\.?[0-9]*|\.[0-9]+)s?", text)
    if not with_unit or not 0 < float(with_unit[1]) < 10**7:
        raise ValueError("must be a number of seconds above 0")
    return float(with_unit[1])


def _grace(text: str) -> float:
    return 0.0 if text in ("0", "0s") else _seconds(text)


def _prompt(text: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        with open(text[1:], encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {text[1:]}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None


def _url(text: str) -> str:
    try:
        url = urllib.parse.urlsplit(text)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # of the port or of an IPv6 address
        valid = False
    if not valid:
        raise ValueError("must be a URL such as http://localhost:11434/v1")
    return text


def _redis_url(text: str) -> str:
    try:
        url = urllib.parse.urlsplit(text)
        valid = url.scheme == "unix" and bool(url.path)
        if url.scheme in ("redis", "rediss"):
            valid = bool((url.hostname or "").encode("idna")) and bool(re.fullmatch("/?[0-9]*", url.path))
        valid = valid and url.port != 0
    except ValueError:  # of the port, of a host name or of an IPv6 address
        valid = False
    if not valid:
        raise ValueError("must be a URL such as redis://localhost:6379/0, rediss://… or unix:///run/redis.sock")
    return text


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip().lower() for origin in text.split(",") if origin.strip())
    for origin in origins:
        if not re.fullmatch(r"https?://[^/?#\s*]+", origin):
            raise ValueError(f"{origin} is not a web origin such as https://chat.example.org")
    # In the form in which browsers send them: lower case, without the port of the scheme.
    return tuple(origin.removesuffix(":443" if origin.startswith("https") else ":80") for origin in origins)


def _token(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text.strip()):
        raise ValueError("must be visible ASCII characters without spaces")
    return text.strip()


def _level(text: str) -> str:
    if text not in ("debug", "info", "warning", "error"):
        raise ValueError("must be debug, info, warning or error")
    return text


# flag: (how its text is read, what it means, other names in the environment)
FLAGS: dict[str, tuple[Callable[[str], Any], str, tuple[str, ...]]] = {
    "port": (_whole(0, 65535), "port to listen on; 0 picks a free one and prints it", ()),
    "host": (str, "address to listen on", ()),
    "api_key": (_token, "API key of the model server", ("OPENAI_API_KEY",)),
    "base_url": (_url, "address of any OpenAI-compatible server (default OpenAI's)", ("OPENAI_BASE_URL",)),
    "model": (str, "model name", ()),
    "stream": (_boolean, "ask the model for streams; false: for whole answers", ()),
    "session_dir": (str, "directory for session files; empty: memory", ()),
    "redis_url": (_redis_url, "Redis server to keep sessions in, which other servers may share", ()),
    "system_prompt": (_prompt, "instructions put before every conversation; @file reads a file", ()),
    "timeout": (_seconds, "seconds that one turn may take, model and tools together", ()),
    "keep_alive": (_seconds, "seconds of silence after which a stream sends a comment", ()),
    "max_history": (_whole(0), "at most this many earlier messages go to the model; 0: all", ()),
    "auth_token": (_token, "callers must send Authorization: Bearer <token>", ("SESSION_SERVER_TOKEN",)),
    "cors_origin": (_origins, "a web origin that may call; repeatable", ()),
    "max_streams": (_whole(1, 100_000), "turns running at once; more get 503", ()),
    "grace": (_grace, "seconds that running turns get at shutdown", ()),
    "log_level": (_level, "debug, info, warning, error", ()),
    "demo": (_boolean, "built-in scripted model: no key and no network needed", ()),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (-h lists the flags)")

    def format_help(self) -> str:
        lines = ["usage: python session_server.py [-flag=value ...]", ""]
        for field in fields(Settings):
            default = getattr(Settings, field.name, "")
            shown = "" if default in ("", (), False) or field.name == "system_prompt" else f" (default {default})"
            lines.append(f"  -{field.name:<14} {FLAGS[field.name][1]}{shown.lower().replace('.0)', ')')}")
        lines += [
            "",
            "Every flag can also be set in the environment, as SESSION_SERVER_ and its name in capitals.",
            "Examples:",
            "  python session_server.py -demo",
            "  python session_server.py -api_key=sk-... -session_dir=./sessions",
            "  python session_server.py -base_url=http://localhost:11434/v1 -model=llama3.2",
            "",
        ]
        return "\n".join(lines)


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings that flags, the environment and defaults give, in this order. Raises SettingsError."""
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--h", "--help", action="help")
    for name, (read, _, _) in FLAGS.items():
        nargs, const = ("?", "true") if read is _boolean else (None, None)
        parser.add_argument(f"--{name}", action="append", nargs=nargs, const=const)
    given = vars(parser.parse_args([_spelled(argument) for argument in arguments]))

    values: dict[str, Any] = {}
    for name in ("demo", *FLAGS):
        read, _, others = FLAGS[name]
        if values.get("demo") and name in ("api_key", "base_url"):
            if given[name]:
                raise SettingsError(f"-demo has a model of its own: leave -{name} out, or -demo")
            continue
        variables = (f"SESSION_SERVER_{name.upper()}", *others)
        if given[name]:
            source, text = f"-{name}", ",".join(given[name]) if name == "cors_origin" else given[name][-1]
        else:
            source = next((variable for variable in variables if environment.get(variable)), "")
            text = environment.get(source)
        if text is None or (text == "" and read is not str):
            continue
        try:
            values[name] = read(text)
        except ValueError as error:
            raise SettingsError(f"{source} {error}") from None
    return _consistent(values)


def _spelled(argument: str) -> str:
    """A flag in any of its spellings, in one."""
    flag = re.fullmatch(r"--?([a-z][a-z_-]*)(=.*)?", argument, re.DOTALL)
    return f"--{flag[1].replace('-', '_')}{flag[2] or ''}" if flag else argument


def _consistent(values: dict[str, Any]) -> Settings:
    files = _open_files()
    most = max(1, (files - 100) // 4)  # a turn takes three: client, model server, session file
    values.setdefault("max_streams", min(Settings.max_streams, most))
    if values["max_streams"] > most:
        raise SettingsError(f"-max_streams={values['max_streams']} needs over {files} open files: raise ulimit -n")
    settings = Settings(**values)
    if settings.redis_url and settings.session_dir:
        raise SettingsError("-redis_url and -session_dir are two places for the same sessions: leave one out")
    server = urllib.parse.urlsplit(settings.base_url).hostname or "api.openai.com"
    if server == "api.openai.com" and not settings.demo and not settings.api_key:
        raise SettingsError("no API key: give -api_key=sk-..., set OPENAI_API_KEY, or try -demo without one")
    return settings


def _open_files() -> int:
    """How many files the process may have open, after asking for as many as it may ask for."""
    try:
        import resource
    except ImportError:  # Windows
        return 2048
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS says unlimited and means less
            return int(soft)
    return 1 << 20 if hard == resource.RLIM_INFINITY else int(hard)


def build_app() -> Flask:
    """The app as the environment sets it up, for any WSGI server: `gunicorn 'session_server:build_app()'`.

    Raises SettingsError. Memory storage needs a server of one process.
    """
    settings = read_settings([], os.environ)
    _set_up_logging(settings)
    app = _assemble(settings)
    _tune()
    return app


def _assemble(settings: Settings) -> Flask:
    storage = _storage(settings)
    base_url: str | None = settings.base_url or None
    if settings.demo:
        base_url = ModelServer(demo_script()).start().base_url
    try:
        agent = Agent(
            api_key=settings.api_key or "none",
            base_url=base_url,
            model=settings.model,
            stream=settings.stream,
            system_prompt=settings.system_prompt,
            tools=[calculator],
            max_history=settings.max_history,
            timeout=settings.timeout,
        )
    except ValueError as error:
        raise SettingsError(f"-base_url: {error}; see to the address and to the proxy settings") from None
    return create_app(storage, agent, settings)


def _tune() -> None:
    """Set the interpreter up for many threads that do little at a time. With 500 streams of ten chunks a second this
    takes a third to a half off the CPU."""
    # Who waits for the interpreter lock wakes up this often to ask for it: all together more work than there is. Our
    # threads come to a system call, where they let go of it, in far less.
    sys.setswitchinterval(0.05)
    gc.freeze()  # what is loaded by now stays, and need not be looked through again and again
    gc.set_threshold(20_000)


def _stay_on_one_cpu() -> None:
    """Keep this thread, and those that it will start, on the processor where it runs now, to which the system has
    just moved it as to one that is free.

    Threads that share one interpreter lock gain little from a second processor, and to hand the lock to another one
    takes longer than most of what they do with it. With 500 streams of ten chunks a second this is 40 % of the CPU,
    and new turns begin in half the time.
    """
    if not hasattr(os, "sched_setaffinity") or not getattr(sys, "_is_gil_enabled", lambda: True)():
        return
    with contextlib.suppress(OSError):  # no /proc here
        with open("/proc/thread-self/stat") as file:
            processor = int(file.read().rpartition(")")[2].split()[36])  # field 39, see proc(5)
        os.sched_setaffinity(0, {processor})


def _storage(settings: Settings) -> Storage:
    if settings.redis_url:
        try:
            from storage_redis import RedisStorage
        except ImportError:
            raise SettingsError("-redis_url needs the redis client: pip install redis") from None
        try:
            return RedisStorage(settings.redis_url)
        except StorageUnavailable as error:
            raise SettingsError(f"-redis_url: {error}; see to the address, the password and the server") from None
    try:
        return FileStorage(settings.session_dir) if settings.session_dir else MemoryStorage()
    except StorageUnavailable as error:
        raise SettingsError(f"-session_dir: {error}; give a directory that can be written") from None


def _set_up_logging(settings: Settings) -> None:
    """Our own lines at the level that is asked for; the libraries' only from warnings up, since theirs may hold
    message texts."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # its pool grows, see _Pool
    for name in ("session_server", "runs", "agent", "storage", "storage_redis"):
        logging.getLogger(name).setLevel(settings.log_level.upper())


def _listen(settings: Settings) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host or "0.0.0.0", settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or "it is no host name"
        raise SettingsError(f"-host {settings.host}: {words}; give an address of this machine") from None
    if not settings.auth_token and not _is_loopback(str(address[0])):
        raise SettingsError(f"-host {settings.host} lets others in: give -auth_token too, or leave -host out")
    listener = socket.socket(family, kind)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # a client that takes nothing for so long is gone; in milliseconds
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; try another -port, or -port=0"
        ) from None
    return listener


class _Pool(ThreadedTaskDispatcher):
    """waitress' worker threads, started as they are needed: a thousand of them idle would cost 17 MB."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add_task(self, task: Any) -> None:
        with self.lock:
            short = len(self.queue) >= len(self.threads) - self.active_count and len(self.threads) < self._most
        if short:
            self.set_thread_count(len(self.threads) + 1)
        super().add_task(task)


class _StrictParser(HTTPRequestParser):
    """Strict where a proxy could take a request for another one, or for one to another host (RFC 9112, sections
    2.3, 3.2 and 6.3)."""

    headers: dict[str, str]
    proxy_netloc: str
    path = ""  # which waitress wants to log, also of a request line that it could not read

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.completed:
            self.expect_continue = False  # there is no body to send, or it is refused already
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError:  # a length of thousands of digits, half an IPv6 address
            raise ParsingError("Number or address is invalid") from None
        names = re.findall(rb"\n(host|content-length|transfer-encoding):", header_plus.lower())
        if self.version not in ("1.0", "1.1"):
            raise ParsingError("HTTP version is not supported")
        if names.count(b"host") > 1:
            raise ParsingError("More than one Host")
        if b"transfer-encoding" in names and (self.version == "1.0" or b"content-length" in names):
            raise ParsingError("Length of the body is not clear")
        if self.proxy_netloc:
            self.headers["HOST"] = self.proxy_netloc


class _Channel(HTTPChannel):
    parser_class = _StrictParser


def _serve(settings: Settings) -> None:
    with _listen(settings) as listener:
        app = _assemble(settings)
        _stay_on_one_cpu()
        threads = settings.max_responses + settings.max_watchers + 16
        server = create_server(
            app,
            sockets=[listener],
            threads=0,  # ours are those of _Pool
            # However many wait, each turn finds a file free for its session and one for the model server.
            connection_limit=min(threads + 1000, max(16, _open_files() - 2 * settings.max_streams - 100)),
            backlog=2048,
            asyncore_use_poll=True,
            channel_request_lookahead=1,  # so that it notices clients that leave
            outbuf_high_watermark=1 << 20,
            max_request_body_size=2 * MAX_BODY,
            max_request_header_size=1 << 16,
            channel_timeout=60,
            cleanup_interval=10,
            log_socket_errors=False,  # a client that is cut off is no error
            ident=None,
        )
        server.channel_class = _Channel  # type: ignore[union-attr]  # one socket, one server
        server.task_dispatcher = _Pool(threads)
        _tune()
        with _first_signal() as wait:
            threading.Thread(target=server.run, name="server", daemon=True).start()
            print(_banner(settings, listener), flush=True)
            wait()
        log.info("shutting down: running turns get %g s", settings.grace)
        app.extensions["runs"].shut_down(settings.grace)
        _flush(server)


@contextlib.contextmanager
def _first_signal() -> Iterator[Callable[[], object]]:
    """Gives what waits for SIGINT or SIGTERM; after that, a second one ends the process at once. A byte tells of the
    signal, since a thread that is only about to wait is not woken by one, which happens on a busy machine."""
    woken, waker = socket.socketpair()
    with woken, waker:
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        yield lambda: woken.recv(1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)


def _flush(server: Any) -> None:
    """Wait until the last events have been sent, but not for clients that do not read."""
    began = moved = time.monotonic()
    last = 0
    while moved > time.monotonic() - 2 and began > time.monotonic() - 5:
        channels = list(server.active_channels.values())
        waiting = sum(len(channel.requests) + channel.total_outbufs_len for channel in channels)
        if not waiting:
            return
        if waiting != last:
            last, moved = waiting, time.monotonic()
        time.sleep(0.02)


def _banner(settings: Settings, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    where = "the built-in demo model" if settings.demo else f"{settings.model} at {settings.base_url or 'OpenAI'}"
    token = ' -H "Authorization: Bearer $SESSION_SERVER_TOKEN"' if settings.auth_token else ""
    return (
        f"session_server listens on http://{host}:{port}\n"
        f"model:    {where}\n"
        f"sessions: {_place(settings)}\n"
        f"try:      curl -X POST{token} http://{host}:{port}/sessions"
    )


def _place(settings: Settings) -> str:
    """Where sessions are kept, in words that give no password away."""
    if settings.redis_url:
        url = urllib.parse.urlsplit(settings.redis_url)
        return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return os.path.abspath(settings.session_dir) if settings.session_dir else "in memory"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server until a signal ends it. 0 after a shutdown, 2 where it cannot start."""
    try:
        settings = read_settings(sys.argv[1:] if arguments is None else arguments, os.environ)
        _set_up_logging(settings)
        _serve(settings)
    except SettingsError as error:
        print(f"session_server: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
