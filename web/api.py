"""The endpoints."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask import Response, request

from agent import Agent
from storage import TITLE_LENGTH, SessionNotFound, Storage, StorageUnavailable, Summary
from turns.log import Failed
from turns.runs import Runs, ShuttingDown
from turns.turn import Overloaded, Turn
from web.errors import ApiError, error_response, json_response
from web.events import frames, public_message, resume_index
from web.requests import flag_argument, json_body, number_argument
from web.settings import Settings


class Api:
    """The endpoints, as methods. Each gives a response, or raises what `answer_error` answers.

    `runs` holds the turns. `run` and `run_stream` take one of `settings.max_responses` each, and streams of turns
    that other clients have started one of `settings.max_watchers`, so that plain requests always find a free thread.
    """

    def __init__(self, storage: Storage, agent: Agent, settings: Settings) -> None:
        self.runs = Runs(
            storage,
            agent,
            timeout=settings.timeout,
            max_turns=settings.max_streams,
            show_reasoning=settings.show_reasoning,
        )
        self._show_reasoning = settings.show_reasoning
        self._storage = storage
        self._agent = agent
        self._keep_alive = settings.keep_alive
        self._responses = threading.BoundedSemaphore(settings.max_responses)
        self._watchers = threading.BoundedSemaphore(settings.max_watchers)

    def create_session(self) -> Response:
        json_body(optional=True)
        session_id = self._storage.create()
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
        running = self.runs.running(session_id)
        session = self._storage.get(session_id)
        messages = session.messages
        if before is not None:
            ids = [message["id"] for message in messages]
            if before not in ids:
                raise ApiError("invalid_request", "before must be the id of a message of this session.")
            messages = messages[: ids.index(before)]
        newest = messages[-limit:] if limit else messages
        answer = {
            "id": session.id,
            "messages": [self._public(message) for message in newest],
            "created_at": session.created_at,
            "updated_at": session.updated_at,
            "running": running,
        }
        if limit or before is not None:
            answer["next"] = newest[0]["id"] if len(newest) < len(messages) else None
        return json_response(answer)

    def rename_session(self, session_id: str) -> Response:
        body = json_body()
        title = body.get("title")
        if "title" not in body or not isinstance(title, str | None):
            raise ApiError("invalid_request", 'The body must be {"title": "…"}, or null to remove the title.')
        title = (title or "").strip() or None
        if title and len(title) > TITLE_LENGTH:
            raise ApiError("invalid_request", f"A title has at most {TITLE_LENGTH} characters.")
        self.runs.rename(session_id, title)
        return json_response(self._details(session_id))

    def delete_session(self, session_id: str) -> Response:
        json_body(optional=True)
        self.runs.delete(session_id)
        return json_response({"success": True, "message": f"Session {session_id} deleted"})

    def run(self, session_id: str) -> Response:
        turn, headers = self._start(session_id)
        try:
            last = turn.result()
        finally:
            self._responses.release()
        if isinstance(last, Failed):
            retry_after = {} if last.retry_after is None else {"Retry-After": last.retry_after}
            return error_response(last.code, last.text, {**headers, **retry_after})
        return json_response({"message": self._public(last.message)}, 200, headers)

    def run_stream(self, session_id: str) -> Response:
        turn, headers = self._start(session_id)
        return _stream(frames(turn, 0, self._keep_alive, resumable=False), headers, self._responses.release)

    def resume_stream(self, session_id: str) -> Response:
        turn = self.runs.attach(session_id)
        with contextlib.ExitStack() as stack:
            slot = self._watchers.acquire(blocking=False)
            if slot:
                stack.callback(self._watchers.release)
            elif turn is not None and not turn.ended:
                raise Overloaded  # before `resume_index`, which may wait for an event of another process
            after = resume_index(turn, request.headers.get("Last-Event-ID") or request.args.get("after", ""))
            if turn is None or (turn.ended and after == turn.length):
                return Response(status=204)
            if not slot:
                raise Overloaded
            stack.callback(turn.watch())
            events = frames(turn, after, self._keep_alive, resumable=True)
            return _stream(events, {}, stack.pop_all().close)

    def cancel(self, session_id: str) -> Response:
        json_body(optional=True)
        return json_response({"cancelled": self.runs.cancel(session_id)})

    def list_tools(self) -> Response:
        tools = [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "from": tool.source}
            for tool in self._agent.tools
        ]
        return json_response({"tools": tools})

    def health(self) -> Response:
        return json_response({"status": "ok"})

    def ready(self) -> Response:
        if self.runs.closing:
            raise ShuttingDown
        self._storage.check()
        return json_response({"status": "ok"})

    def _start(self, session_id: str) -> tuple[Turn, dict[str, str]]:
        """The turn that the request asks for, and the headers that tell of it. Takes one of the responses."""
        message = json_body().get("message")
        if not isinstance(message, str) or not message.strip():
            raise ApiError("invalid_request", 'The body must be {"message": "text"}, and the text not blank.')
        key = request.headers.get("Idempotency-Key")
        if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
            raise ApiError("invalid_request", "Idempotency-Key must be 1 to 255 visible ASCII characters.")
        slot = self._responses.acquire(blocking=False)
        try:
            turn, replayed = self.runs.start(session_id, message, key, slot=slot)
            if not slot:
                raise Overloaded
        except BaseException:
            if slot:
                self._responses.release()
            raise
        return turn, {"Idempotency-Replayed": "true"} if replayed else {}

    def _public(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return public_message(message, show_reasoning=self._show_reasoning)

    def _details(self, session_id: str) -> dict[str, Any]:
        return {**vars(self._storage.summary(session_id)), "running": self.runs.running(session_id)}


def _stream(events: Iterator[bytes], headers: Mapping[str, str], on_close: Callable[[], None]) -> Response:
    response = Response(events, content_type="text/event-stream; charset=utf-8", headers=headers)
    response.headers["Cache-Control"] = "no-cache, no-transform"
    response.headers["X-Accel-Buffering"] = "no"
    response.call_on_close(on_close)
    return response
