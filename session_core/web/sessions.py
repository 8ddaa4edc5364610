"""The endpoints."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Response, g, request

from agent import Agent
from session_core.data.message import StoredMessage
from session_core.data.strict_json import to_json
from session_core.telemetry.spans import Observer
from session_core.turns.event_log import Failed
from session_core.turns.imported import copied, imported
from session_core.turns.remote import ShuttingDown
from session_core.turns.stored import session_usage
from session_core.turns.turn import Overloaded, Turn
from session_core.turns.turn_request import TurnRequest
from session_core.turns.turns import Turns
from session_core.web.bodies import (
    flag_argument,
    id_field,
    json_body,
    number_argument,
    parse_turn_request,
    session_settings,
)
from session_core.web.errors import ApiError, error_response, json_response
from session_core.web.events import event_frame, frames, public_message, resume_index
from session_core.web.markdown import render_markdown
from session_core.web.settings import Settings
from session_core.web.ui_chat import ui_question
from session_core.web.ui_messages import UI_BROKEN_OFF, UI_HEADERS, UI_MESSAGES, UiFrames, ui_messages
from session_core.web.users import TurnsByUser, Users
from storage import (
    SETTINGS,
    MemoryStorage,
    Session,
    SessionNotFound,
    Storage,
    StorageUnavailable,
    Summary,
    expanded,
    replaced_messages,
)

_Headers = Mapping[str, str]
_Events = Callable[[Turn, int], Iterator[bytes]]  # of a turn, behind its first ones


class Api:
    """The endpoints, as methods. Each gives a response, or raises what `answer_error` answers.

    `runs` holds the turns, those of each user where there are users. `store_of` gives a store by user. Each turn that
    is asked for takes one of `responses`, and each stream of a turn that other clients have started one of
    `settings.max_watchers`, so that plain requests always find a free thread.
    """

    def __init__(
        self,
        store_of: Callable[[str], Storage],
        agent: Agent,
        settings: Settings,
        users: Users | None = None,
        observer: Observer | None = None,
    ) -> None:
        slots = threading.Semaphore(settings.max_streams)

        def runs_over(storage: Storage) -> Turns:
            return Turns(
                storage,
                agent,
                timeout=settings.timeout,
                slots=slots,
                show_reasoning=settings.show_reasoning,
                session_ttl=settings.session_ttl,
                models=None if "*" in settings.models else settings.models,
                observer=observer,
            )

        self.all_runs = TurnsByUser(lambda name: runs_over(store_of(name)), users.names if users else [""])
        self.one_shot = runs_over(MemoryStorage())  # turns of requests that store nothing
        self.all_runs.add("one shot", self.one_shot)
        self._show_reasoning = settings.show_reasoning
        self.agent = agent
        self._keep_alive = settings.keep_alive
        self.responses = threading.BoundedSemaphore(settings.max_responses)
        self._watchers = threading.BoundedSemaphore(settings.max_watchers)

    @property
    def runs(self) -> Turns:
        """The turns of the user who asks."""
        return self.all_runs.of(g.get("user", ""))

    @property
    def _storage(self) -> Storage:
        return self.runs.storage

    def create_session(self) -> Response:
        body = json_body(optional=True)
        settings = session_settings(body)
        messages: list[StoredMessage] = []
        state: dict[str, Any] = {}
        if "copy_of" in body or "until" in body:
            source = id_field(body, "copy_of", "session")
            until = id_field(body, "until", "msg") if "until" in body else None
            if "messages" in body:
                raise ApiError("invalid_request", "A copy has no messages of its own: leave copy_of or messages out.")
            session = self.runs.session(source)
            settings = {name: getattr(session, name) for name in SETTINGS} | settings
            messages, state = copied(session, until)
        elif "messages" in body:
            messages, system_prompt = imported(body["messages"])
            if system_prompt is not None:
                settings = session_settings({"system_prompt": system_prompt}) | settings
        session_id = self.runs.create(messages, **state, **settings)
        return json_response({"id": session_id}, 201, {"Location": f"{request.script_root}/sessions/{session_id}"})

    def list_sessions(self) -> Response:
        details = flag_argument("details")
        limit = number_argument("limit", 1, 1000)
        after = request.args.get("after")
        try:
            ids, next_id = self._storage.page(limit or (100 if details else None), after)
        except SessionNotFound:
            raise ApiError("invalid_request", "after must be the id of a session in the list.") from None
        if not details:
            return json_response({"sessions": ids, **({"next": next_id} if limit or after is not None else {})})
        sessions = []
        for session_id in ids:
            with contextlib.suppress(SessionNotFound):  # deleted since it was listed
                try:
                    sessions.append(self._details(session_id))
                except StorageUnavailable:  # a file that cannot be read costs only its own session
                    sessions.append({**vars(Summary(session_id)), "running": False})
        return json_response({"sessions": sessions, "next": next_id})

    def get_session(self, session_id: str) -> Response:
        limit = number_argument("limit", 1, 1000)
        before = request.args.get("before")
        with_replaced = flag_argument("replaced")
        running = self.runs.running(session_id)
        session = self.runs.session(session_id)
        everything = expanded(session.messages)
        messages = everything if with_replaced else session.conversation
        wanted = request.accept_mimetypes.best_match(["application/json", "text/markdown", UI_MESSAGES])
        if wanted == "text/markdown":
            return self._markdown(session)
        if wanted == UI_MESSAGES:
            shown = ui_messages(session, running=running, show_reasoning=self._show_reasoning)
            return Response(to_json(shown), mimetype=UI_MESSAGES, headers={"Vary": "Accept"})
        if before is not None:
            ids = [message["id"] for message in messages]
            if before not in ids:
                raise ApiError("invalid_request", "before must be the id of a message of this session.")
            messages = messages[: ids.index(before)]
        newest = messages[-limit:] if limit else messages
        replaced = replaced_messages(everything) if with_replaced else {}
        by = {id: {"replaced_by": other} for id, other in replaced.items()}
        answer = {
            "id": session.id,
            "messages": [{**self._public(message), **by.get(message["id"], {})} for message in newest],
            "created_at": session.created_at,
            "updated_at": session.updated_at,
            "running": running,
            **_shown_settings(session),
        }
        if usage := session_usage(session):
            answer["usage"] = usage
        if limit or before is not None:
            answer["next"] = newest[0]["id"] if len(newest) < len(messages) else None
        return json_response(answer)

    def configure_session(self, session_id: str) -> Response:
        settings = session_settings(json_body())
        if not settings:
            raise ApiError(
                "invalid_request", "The body must set title, model or system_prompt, or remove one with null."
            )
        self.runs.configure(session_id, settings)
        shown = _shown_settings(self._storage.get(session_id))
        return json_response({**shown, **self._details(session_id)})

    def delete_session(self, session_id: str) -> Response:
        json_body(optional=True)
        self.runs.delete(session_id)
        return json_response({"success": True, "message": f"Session {session_id} deleted"})

    def run(self, session_id: str) -> Response:
        turn, headers = self.start(session_id, parse_turn_request(json_body()))
        try:
            last = turn.result()
        finally:
            self.responses.release()
        if isinstance(last, Failed):
            retry_after = {} if last.retry_after is None else {"Retry-After": last.retry_after}
            return error_response(last.code, last.text, {**headers, **retry_after})
        return json_response({"message": self._public(last.message)}, 200, headers)

    def run_stream(self, session_id: str) -> Response:
        turn, headers = self.start(session_id, parse_turn_request(json_body()))
        return _stream(self._frames(turn, 0, resumable=False), headers, self.responses.release)

    def resume_stream(self, session_id: str) -> Response:
        turn = self.runs.attach(session_id)
        event_id = request.headers.get("Last-Event-ID") or request.args.get("after", "")
        events = functools.partial(self._frames, resumable=True)
        return self._watch(turn, functools.partial(resume_index, turn, event_id), events, {})

    def cancel(self, session_id: str) -> Response:
        json_body(optional=True)
        return json_response({"cancelled": self.runs.cancel(session_id)})

    def chat(self) -> Response:
        """A turn for the AI SDK's transport (see `session_core/web/ui_messages.py`)."""
        body = json_body()
        session_id, question = ui_question(body, self._storage.get)
        turn, headers = self.start(session_id, question)
        return _stream(self._ui_frames(turn), {**UI_HEADERS, **headers}, self.responses.release)

    def resume_chat(self, session_id: str) -> Response:
        turn = self.runs.attach(session_id)
        running = None if turn is None or turn.ended else turn  # the client has the answer of an ended turn
        return self._watch(running, lambda: 0, self._ui_frames, UI_HEADERS)

    def list_tools(self) -> Response:
        tools = [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "from": tool.source}
            for tool in self.agent.tools
        ]
        return json_response({"tools": tools})

    def list_models(self) -> Response:
        return json_response({"models": self.runs.models.names(), "default": self.agent.model})

    def health(self) -> Response:
        return json_response({"status": "ok"})

    def ready(self) -> Response:
        if self.all_runs.closing:
            raise ShuttingDown
        for runs in self.all_runs.all():
            runs.storage.check()
        return json_response({"status": "ok"})

    def start(self, session_id: str, question: TurnRequest, runs: Turns | None = None) -> tuple[Turn, dict[str, str]]:
        """The turn that a request asks for, and the headers that tell of it. Takes one of the responses."""
        runs = runs or self.runs
        runs.models.check(question.model)
        slot = self.responses.acquire(blocking=False)
        try:
            turn, replayed = runs.start(session_id, question, slot=slot, observer=g.observed)
            if not slot:
                raise Overloaded
        except BaseException:
            if slot:
                self.responses.release()
            raise
        return turn, {"Idempotency-Replayed": "true"} if replayed else {}

    def _watch(self, turn: Turn | None, index: Callable[[], int], events: _Events, headers: _Headers) -> Response:
        """A stream of the events behind the first `index()` ones, which takes one of the watchers. 204 where none
        comes."""
        with contextlib.ExitStack() as stack:
            slot = self._watchers.acquire(blocking=False)
            if slot:
                stack.callback(self._watchers.release)
            elif turn is not None and not turn.ended:
                raise Overloaded  # before `index`, which may wait for an event of another process
            after = index()
            if turn is None or (turn.ended and after == turn.length):
                return Response(status=204)
            if not slot:
                raise Overloaded
            stack.callback(turn.watch())
            return _stream(events(turn, after), headers, stack.pop_all().close)

    def _frames(self, turn: Turn, after: int, *, resumable: bool) -> Iterator[bytes]:
        return frames(turn, after, self._keep_alive, functools.partial(event_frame, turn.id, resumable=resumable))

    def _ui_frames(self, turn: Turn, after: int = 0) -> Iterator[bytes]:
        return frames(turn, after, self._keep_alive, UiFrames(turn.message_id).encode, UI_BROKEN_OFF)

    def _markdown(self, session: Session) -> Response:
        head = {"Session": session.id, "Created": session.created_at, "Updated": session.updated_at}
        head |= {"Model": session.model} if session.model else {}
        head |= {"Instructions": session.system_prompt} if session.system_prompt else {}
        text = render_markdown(self._storage.summary(session.id).title, head, map(self._public, session.conversation))
        return Response(text, mimetype="text/markdown", headers={"Vary": "Accept"})

    def _public(self, message: StoredMessage) -> StoredMessage:
        return public_message(message, show_reasoning=self._show_reasoning)

    def _details(self, session_id: str) -> dict[str, Any]:
        return {**vars(self._storage.summary(session_id)), "running": self.runs.running(session_id)}


def _shown_settings(session: Session) -> dict[str, str]:
    """The settings of a session that are set."""
    return {name: text for name in SETTINGS if (text := getattr(session, name)) is not None}


def _stream(events: Iterator[bytes], headers: Mapping[str, str], on_close: Callable[[], None]) -> Response:
    response = Response(events, content_type="text/event-stream; charset=utf-8", headers=headers)
    response.headers["Cache-Control"] = "no-cache, no-transform"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(on_close)
    return response
