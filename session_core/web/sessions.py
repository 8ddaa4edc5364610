"""The native dialect: sessions, and turns in them."""

import functools
from collections.abc import Mapping
from typing import Any, Self

from flask import Blueprint, Response, request
from pydantic import BaseModel, Field, model_validator

from session_core.data.message import StoredMessage
from session_core.data.message_queue import QueuedMessage
from session_core.data.session import SETTINGS, expanded
from session_core.data.strict_json import to_json
from session_core.data.versions import replaced_messages
from session_core.tools.functions import result_text
from session_core.turns.event_log import Ended
from session_core.turns.imported import copied, imported, imported_summary
from session_core.turns.queued import render_queued, still_waiting
from session_core.turns.stored import last_failure, mark_waiting, session_usage
from session_core.turns.turn import Turn
from session_core.turns.turn_request import IfBusy, TurnRequest
from session_core.turns.waiting import pending_calls
from session_core.web.bodies import (
    ModelName,
    check_id,
    check_question,
    check_settings,
    flag_argument,
    idempotency_key,
    json_body,
    number_argument,
    parse_body,
)
from session_core.web.errors import ApiError, describe_error, json_response
from session_core.web.events import EventRenderer, find_resume_index, render_message
from session_core.web.file_answers import export_json, export_zip, serve_file
from session_core.web.markdown import render_markdown
from session_core.web.queued_streams import stream_queued
from session_core.web.session_list import answer_list, session_details
from session_core.web.turn_responses import TurnReader, TurnResponses, add_stream
from session_core.web.ui_messages import UI_MESSAGES, ui_messages
from session_core.web.uploads import Uploads, body_with_files
from storage import Session, SessionBusy, Storage

_ZIP = "application/zip"  # of the Markdown document, beside a folder of its pictures and files


class _Answer(BaseModel, strict=True):
    """The answer to a call that waits: exactly one of `approve`, `result` and `error`."""

    approve: bool = False
    reason: str | None = None
    result: Any = None
    error: str = ""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if len(self.model_fields_set & {"approve", "result", "error"}) != 1:
            raise ValueError("have exactly one of approve, result and error")
        return self

    @property
    def value(self) -> dict[str, Any]:
        """The answer as `TurnRequest` has it."""
        if "approve" in self.model_fields_set:
            return {"approve": self.approve, "reason": self.reason or ""}
        return {"error": self.error} if "error" in self.model_fields_set else {"result": result_text(self.result)}


class _TurnBody(BaseModel, strict=True):
    """What `run` and `run_stream` take."""

    message: str | list[Any] | None = None
    replaces: str | None = None
    after: str | None = None
    continues: bool = Field(False, alias="continue")
    answers: dict[str, _Answer] | None = None
    model: ModelName | None = None
    if_busy: IfBusy = "reject"


def native_dialect(responses: TurnResponses, *, show_reasoning: bool) -> Blueprint:
    """The routes of sessions."""
    routes = _Sessions(responses, show_reasoning)
    blueprint = Blueprint("native", __name__)
    for method, rule, view in (
        ("POST", "/sessions", routes.create_session),
        ("GET", "/sessions", routes.list_sessions),
        ("GET", "/sessions/<session_id>", routes.get_session),
        ("PATCH", "/sessions/<session_id>", routes.configure_session),
        ("DELETE", "/sessions/<session_id>", routes.delete_session),
        ("POST", "/sessions/<session_id>/run", routes.run),
        ("POST", "/sessions/<session_id>/run_stream", routes.run_stream),
        ("GET", "/sessions/<session_id>/files/<sha256>", routes.get_file),
        ("POST", "/sessions/<session_id>/cancel", routes.cancel),
        ("DELETE", "/sessions/<session_id>/queued/<message_id>", routes.take_back),
        ("POST", "/sessions/<session_id>/compact", routes.compact),
    ):
        blueprint.add_url_rule(rule, view_func=view, methods=[method])
    add_stream(blueprint, "/sessions/<session_id>/run_stream", routes.resume_stream)
    return blueprint


class _Sessions:
    """The routes, as methods. Each returns a response, or raises what `answer_error` answers."""

    def __init__(self, responses: TurnResponses, show_reasoning: bool) -> None:
        self._responses = responses
        self._show_reasoning = show_reasoning
        self._render_message = functools.partial(render_message, show_reasoning=show_reasoning)
        self._ui_messages = functools.partial(ui_messages, show_reasoning=show_reasoning)

    @property
    def _storage(self) -> Storage:
        return self._responses.sessions.storage

    def create_session(self) -> Response:
        with body_with_files(self._responses.max_file_bytes, optional=True) as (body, uploads):
            messages = uploads.parse_messages(body.get("messages"))
        settings = check_settings(body)
        if "compacted" in body and "messages" not in body:
            raise ApiError("invalid_request", "compacted belongs to messages: send both.")
        state: dict[str, Any] = {}
        if "copy_of" in body or "until" in body:
            source = check_id(body.get("copy_of"), "copy_of", "session")
            until = check_id(body["until"], "until", "msg") if "until" in body else None
            if "messages" in body:
                raise ApiError("invalid_request", "A copy has no messages of its own: leave copy_of or messages out.")
            session = self._responses.sessions.session(source)
            settings = {name: getattr(session, name) for name in SETTINGS} | settings
            messages, state = copied(session, until)
            state["files"] = source
        elif "messages" in body:
            given = messages
            messages, system_prompt = imported(given)
            state["files"] = uploads.files
            if body.get("compacted") is not None:
                state["compacted"] = imported_summary(body["compacted"], given, messages)
            if system_prompt is not None:
                settings = check_settings({"system_prompt": system_prompt}) | settings
        session_id = self._responses.sessions.create(messages or (), **state, **settings)
        return json_response({"id": session_id}, 201, {"Location": f"{request.script_root}/sessions/{session_id}"})

    def list_sessions(self) -> Response:
        return answer_list(self._responses.sessions, show_reasoning=self._show_reasoning)

    def get_session(self, session_id: str) -> Response:
        limit, before = number_argument("limit", 1, 1000), request.args.get("before")
        with_replaced, with_files = flag_argument("replaced"), flag_argument("files")
        queued = self._storage.queue(session_id).read()  # before the session, in which one may stand by then
        session, running = self._responses.sessions.look(session_id)
        session = mark_waiting(session)
        if (other_form := self._in_other_form(session, running=running)) is not None:
            return other_form
        everything, conversation = expanded(session.messages), session.conversation
        messages = everything if with_replaced else conversation
        replaced = replaced_messages(messages) if with_replaced else {}
        hidden = len(everything) - len(conversation)
        messages = _cut_before(messages, before)
        newest = messages[-limit:] if limit else messages
        places = {
            message["id"]: {"after": message["after"]} for message in messages if with_replaced and "after" in message
        }
        for id, other in replaced.items():
            places[id] = {**places.get(id, {}), "replaced_by": other}
        answer = {
            "id": session.id,
            "messages": [{**self._render_message(message), **places.get(message["id"], {})} for message in newest],
            "created_at": session.created_at,
            "updated_at": session.updated_at,
            "running": running,
            **_set_settings(session),
            **_compacted(session),
            **_state(session, queued, running=running),
            **({"replaced": hidden} if hidden else {}),
        }
        if limit or before is not None:
            answer["next"] = newest[0]["id"] if len(newest) < len(messages) else None
        return export_json(answer, self._storage.files) if with_files else json_response(answer)

    def configure_session(self, session_id: str) -> Response:
        settings = check_settings(json_body())
        if not settings:
            raise ApiError(
                "invalid_request", "The body must set title, model or system_prompt, or remove one with null."
            )
        self._responses.sessions.configure(session_id, settings)
        return json_response(
            {
                **_set_settings(self._storage.get(session_id)),
                **session_details(self._responses.sessions, session_id),
            }
        )

    def delete_session(self, session_id: str) -> Response:
        json_body(optional=True)
        self._responses.sessions.delete(session_id)
        return json_response({"success": True, "message": f"Session {session_id} deleted"})

    def run(self, session_id: str) -> Response:
        reader = self._start(session_id)
        if isinstance(reader, Response):
            return reader
        return self._responses.whole(
            reader, lambda _, last: json_response({"message": self._render_message(last.message)})
        )

    def run_stream(self, session_id: str) -> Response:
        reader = self._start(session_id)
        return reader if isinstance(reader, Response) else self._responses.stream(reader, EventRenderer(reader.turn))

    def resume_stream(self, session_id: str) -> Response:
        sessions, named = self._responses.sessions, request.args.get("message")
        message_id = None if named is None else check_id(named, "message", "msg")
        turn = sessions.attach(session_id) if message_id is None else sessions.find_turn(session_id, message_id)
        renderer = functools.partial(EventRenderer, resumable=True)
        if turn is None and (message_id := message_id or sessions.next_message(session_id)):
            find = functools.partial(sessions.find_turn, session_id, message_id)
            return stream_queued(self._responses, find, renderer, EventRenderer.comment)
        event_id = request.headers.get("Last-Event-ID") or request.args.get("after", "")
        return self._responses.watch(turn, functools.partial(find_resume_index, event_id=event_id), renderer)

    def take_back(self, session_id: str, message_id: str) -> Response:
        json_body(optional=True)
        if not self._responses.sessions.take_back(session_id, message_id):
            raise ApiError("not_found", f"No message {message_id} waits in this session.")
        return json_response({"success": True, "message": f"Message {message_id} taken back"})

    def get_file(self, session_id: str, sha256: str) -> Response:
        self._storage.running(session_id)  # there is such a session
        return serve_file(self._storage.files, session_id, sha256)

    def cancel(self, session_id: str) -> Response:
        json_body(optional=True)
        return json_response({"cancelled": self._responses.sessions.cancel(session_id)})

    def _start(self, session_id: str) -> TurnReader | Response:
        """A reader of the turn that the request asks for, or the answer that its message waits."""
        with body_with_files(self._responses.max_file_bytes) as (body, uploads):
            asked = _parse_turn_request(body, uploads)
        try:
            return self._responses.start(session_id, asked)
        except SessionBusy:
            if asked.goes_on or (asked.if_busy == "reject" and asked.key is None):
                raise
            accepted = self._responses.sessions.accept(session_id, asked)
            return json_response({"id": accepted.message_id, "position": accepted.position}, 202)

    def compact(self, session_id: str) -> Response:
        json_body(optional=True)
        reader = self._responses.start(session_id, TurnRequest(compacts=True))

        def render(_: Turn, last: Ended) -> Response:
            done = last.status if last.complete_text or last.status == "cancelled" else "nothing_to_sum_up"
            return json_response(
                {"status": done, "compacted": None, **_compacted(self._responses.sessions.session(session_id))}
            )

        return self._responses.whole(reader, render)

    def _in_other_form(self, session: Session, *, running: bool) -> Response | None:
        """The session in the form that `Accept` names, where that is not this dialect's own."""
        wanted = request.accept_mimetypes.best_match(["application/json", "text/markdown", UI_MESSAGES, _ZIP])
        if wanted in ("text/markdown", _ZIP):
            return self._document(session, zipped=wanted == _ZIP)
        if wanted == UI_MESSAGES:
            files_at = f"{request.script_root}/sessions/{session.id}/files"
            shown = to_json(self._ui_messages(session, files_at, running=running))
            return Response(shown, mimetype=UI_MESSAGES, headers={"Vary": "Accept"})
        return None

    def _document(self, session: Session, *, zipped: bool) -> Response:
        head = {"Session": session.id, "Created": session.created_at, "Updated": session.updated_at}
        head |= {"Model": session.model} if session.model else {}
        head |= {"Instructions": session.system_prompt} if session.system_prompt else {}
        title = self._storage.summary(session.id).title
        text = render_markdown(title, head, map(self._render_message, session.conversation))
        if zipped:
            return export_zip(session, text, self._storage.files)
        return Response(text, mimetype="text/markdown", headers={"Vary": "Accept"})


def _parse_turn_request(body: Mapping[str, Any], uploads: Uploads) -> TurnRequest:
    """What a body of `run` or `run_stream` asks for, with the request's key. Raises ApiError."""
    asked = parse_body(_TurnBody, body)
    replaces, after = asked.replaces, asked.after
    content = None if asked.message is None else uploads.parse_content(asked.message, "message")
    goes_on = asked.continues or asked.answers is not None
    beside = (content, replaces, after, asked.if_busy) != (None, None, None, "reject")
    if goes_on and (beside or (asked.continues and asked.answers is not None)):
        raise ApiError("invalid_request", 'A body with "continue" or "answers" has nothing else but model.')
    if replaces is not None and after is not None:
        raise ApiError("invalid_request", "A message stands in place of another one or behind one: leave one out.")
    if not goes_on and (content is not None or replaces is None):
        check_question(content, 'The body must be {"message": "text"}, and the text must not be blank.')
    if after is not None:
        check_id(after, "after", "msg")
    return TurnRequest(
        content,
        replaces,
        after,
        continues=asked.continues,
        answers=None if asked.answers is None else {id: answer.value for id, answer in asked.answers.items()},
        key=idempotency_key(),
        model=asked.model,
        if_busy=asked.if_busy,
        files=uploads.files,
    )


def _cut_before(messages: list[StoredMessage], before: str | None) -> list[StoredMessage]:
    """The messages before the one of this id, all without one. Raises ApiError where there is no such message."""
    if before is None:
        return messages
    ids = [message["id"] for message in messages]
    if before not in ids:
        raise ApiError("invalid_request", "before must be the id of a message of this session.")
    return messages[: ids.index(before)]


def _state(session: Session, queued: list[QueuedMessage], *, running: bool) -> dict[str, Any]:
    """What the session waits for and what waits in it, what it has used, and how its last turn failed, where there is
    any of these."""
    state: dict[str, Any] = {}
    if messages := still_waiting(queued, session):
        state["queued"] = [render_queued(message) for message in messages]
    if waiting := [one for one in session.messages if one.get("status") == "waiting"]:
        state["pending"] = pending_calls(waiting[-1])
    if usage := session_usage(session):
        state["usage"] = usage
    if not running and (failed := last_failure(session)):
        code, _, text = describe_error(failed.code)
        state["last_error"] = {"error": failed.text or text, "code": code}
    return state


def _compacted(session: Session) -> dict[str, Any]:
    """The summary that is in force, where there is one."""
    made = session.current_compacted
    return {"compacted": {name: made.get(name) for name in ("until", "content", "created_at")}} if made else {}


def _set_settings(session: Session) -> dict[str, str]:
    """The settings of a session that are set."""
    return {name: text for name in SETTINGS if (text := getattr(session, name)) is not None}
