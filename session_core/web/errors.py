"""Every error a caller can meet, and its answer."""

import logging
from collections.abc import Callable, Mapping

from flask import Blueprint, Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from session_core.data.message_queue import NotQueued, QueueFull
from session_core.data.strict_json import to_json
from session_core.turns.imported import ImportRefused
from session_core.turns.models import ModelRefused
from session_core.turns.queueing import MessageNotFound
from session_core.turns.remote import ShuttingDown
from session_core.turns.turn import Overloaded
from session_core.turns.turn_request import KeyReused, NothingToContinue, TurnRefused, TurnWaiting
from storage import SessionBusy, SessionCorrupt, SessionNotFound, StorageUnavailable

log = logging.getLogger(__name__)

# code: HTTP status, and the text for callers where nothing more is known
ERRORS: dict[str, tuple[int, str]] = {
    "invalid_request": (400, "The request is not valid."),
    "context_length_exceeded": (400, "The conversation is too long for the model."),
    "unauthorized": (401, "A valid token is needed: send Authorization: Bearer <token>."),
    "forbidden_host": (403, "The Host header names no loopback host. To serve other names, start with -auth_token."),
    "forbidden_origin": (403, "Pages of this origin may not call. Allow it with -cors_origin."),
    "model_not_found": (404, "There is no such model."),
    "not_found": (404, "There is nothing here. What there is, /openapi.json says."),
    "session_not_found": (404, "The session was not found."),
    "method_not_allowed": (405, "This method is not allowed here."),
    "nothing_to_continue": (409, "The last turn of this session is complete, or there is none."),
    "turn_waiting": (409, "The last turn of this session waits for answers: send them, a new message, or a cancel."),
    "conversation_locked": (409, "A turn is running in this conversation. Wait for its end, or cancel it."),
    "session_busy": (409, "A turn is running in this session. Wait for its end, or cancel it."),
    "event_gone": (410, "This event is no longer held. Read the session instead."),
    "request_too_large": (413, "The request is larger than 1 MiB."),
    "unsupported_media_type": (415, "The body must be JSON: send Content-Type: application/json."),
    "idempotency_key_reused": (422, "This Idempotency-Key was used for another message."),
    "queue_full": (429, "As many messages wait in this session as may. Take one back, or wait until one begins."),
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

_RETRY_AFTER_SECONDS = {
    "conversation_locked": "1",
    "session_busy": "1",
    "queue_full": "1",
    "overloaded": "1",
    "shutting_down": "5",
    "storage_unavailable": "5",
}
_CODES: dict[type[Exception], str] = {
    SessionNotFound: "session_not_found",
    SessionBusy: "session_busy",
    NotQueued: "session_busy",  # it was taken back when its turn was to begin
    SessionCorrupt: "session_corrupt",
    QueueFull: "queue_full",
    MessageNotFound: "not_found",
    StorageUnavailable: "storage_unavailable",
    KeyReused: "idempotency_key_reused",
    NothingToContinue: "nothing_to_continue",
    TurnWaiting: "turn_waiting",
    Overloaded: "overloaded",
    ShuttingDown: "shutting_down",
}
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ApiError(Exception):
    """An answer with a code of `ERRORS`. `text` replaces the text there."""

    def __init__(self, code: str, text: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text or ERRORS[code][1])
        self.code = code
        self.headers = dict(headers or {})


ErrorForm = Callable[[int, str, str], Response]  # from status, code and text to the answer


def describe_error(code: str) -> tuple[str, int, str]:
    """What callers see of an error: its code, HTTP status and text. A code that is not in `ERRORS`, which a file
    may hold, is `internal_error`."""
    code = code if code in ERRORS else "internal_error"
    return code, *ERRORS[code]


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The value as JSON in UTF-8, with a line end."""
    return Response(to_json(value) + b"\n", status, headers, mimetype="application/json")


def set_error_form(blueprint: Blueprint, form: ErrorForm) -> None:
    """Has all errors below the blueprint's prefix answered in this form, also where there is no such route."""
    blueprint.record(
        lambda state: state.app.extensions.setdefault("error_forms", {}).update({state.url_prefix: form})
    )


def set_error_code(
    blueprint: Blueprint, kind: type[Exception], code: str, text: Callable[[Exception], str] | None = None
) -> None:
    """Has the routes of the blueprint answer exceptions of this kind with a code, and a text, of their own."""
    blueprint.register_error_handler(kind, lambda error: answer_error(ApiError(code, text and text(error))))


def error_response(code: str, text: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The error in the form of the dialect that was asked, with Retry-After where one is fixed."""
    code, status, default = describe_error(code)
    response = _find_error_form()(status, code, text or default)
    if code in _RETRY_AFTER_SECONDS:
        response.headers["Retry-After"] = _RETRY_AFTER_SECONDS[code]
    response.headers.update(headers or {})
    return response


def answer_error(error: Exception) -> Response:
    """The answer to a request that ended with this exception. Logs the ones that are defects."""
    if isinstance(error, ApiError):
        g.error_code = error.code
        return error_response(error.code, str(error), error.headers)
    if isinstance(error, ImportRefused | ModelRefused | TurnRefused):
        return error_response("invalid_request", str(error))
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            g.error_code = code
            return error_response(code, f"Session {error} not found" if kind is SessionNotFound else None)
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
        code = _STATUS_CODES.get(error.code, "invalid_request")
        if code == "request_too_large":
            return error_response(code, f"The request is larger than {(request.max_content_length or 0) >> 20} MiB.")
        allowed = isinstance(error, MethodNotAllowed) and error.valid_methods
        return error_response(code, headers={"Allow": ", ".join(sorted(allowed))} if allowed else {})
    log.error("request %s failed", g.get("request_id"), exc_info=error)
    return error_response("internal_error")


def _find_error_form() -> ErrorForm:
    forms: dict[str, ErrorForm] = current_app.extensions.get("error_forms", {})
    return next((form for prefix, form in forms.items() if request.path.startswith(f"{prefix}/")), _native_error)


def _native_error(status: int, code: str, text: str) -> Response:
    return json_response({"error": text, "code": code}, status)
