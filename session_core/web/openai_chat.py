"""What OpenAI's clients speak: the Chat Completions API over the same turns.

Without a session header, the client's messages are the whole history and nothing is stored: the turn runs in a
session in memory, which goes with its answer. With one, the client's history is compared with what is stored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from flask import Response

from session_core.model.events import Chunk, Reasoning
from session_core.turns.client_history import wish_of
from session_core.turns.event_log import Ended, Failed, LoggedEvent, Started
from session_core.turns.local import LocalTurn
from session_core.turns.models import ModelRefused
from session_core.turns.stored import find_turn, last_turn
from session_core.turns.turn import Overloaded, Turn
from session_core.turns.turn_request import NothingToContinue, TurnRequest
from session_core.turns.turns import Turns
from session_core.web.bodies import idempotency_key, json_body
from session_core.web.errors import ApiError, describe_error, error_response, json_response, openai_error
from session_core.web.openai_requests import ChatRequest, chat_request, named_session
from session_core.web.sessions import Api
from storage import SessionBusy, SessionNotFound, Storage, StorageUnavailable

_COMMENT_SECONDS = 1.0  # between two comments while the model is silent; a client that has left is noticed by them
_MAX_LOOKS = 3  # at a session in which turns start and end meanwhile

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ChatCompletions:
    """The endpoints below `/v1`, as methods. `headers` are those that name sessions."""

    def __init__(self, api: Api, headers: tuple[str, ...]) -> None:
        self._api = api
        self._headers = headers
        self._lock = threading.Lock()
        self._readers: dict[Turn, int] = {}  # of each turn that ends when nobody reads it any more

    def complete_chat(self) -> Response:
        """`POST /v1/chat/completions`"""
        body = json_body()
        runs = self._api.runs
        asked, key = chat_request(body, images=True), idempotency_key()
        session_id = None if asked.is_task else named_session(self._headers, lambda id: _exists(runs.storage, id))
        with _model_errors():
            runs.models.check(asked.model)
            if session_id is None:
                turn, headers, forget = self._start_one_shot(asked)
            else:
                turn, headers = self._start_in(runs, session_id, chat_request(body, images=False), key)
                headers, forget = {**headers, "X-Session-Id": session_id}, lambda: None
        self._count(turn, 1)

        def end() -> None:
            self._api.responses.release()
            self._leave(turn)
            forget()

        if asked.stream:
            response = Response(
                self._frames(turn, asked), content_type="text/event-stream; charset=utf-8", headers=headers
            )
            response.headers["Cache-Control"] = "no-cache, no-transform"
            response.headers["X-Accel-Buffering"] = "no"
            response.call_on_close(end)
            return response
        try:
            return _whole(turn, headers)
        finally:
            end()

    def list_openai_models(self) -> Response:
        """`GET /v1/models`"""
        return json_response({"object": "list", "data": [_model(name) for name in self._api.runs.models.names()]})

    def get_openai_model(self, model: str) -> Response:
        """`GET /v1/models/{model}`"""
        with _model_errors():
            self._api.runs.models.check(model)
        return json_response(_model(model))

    def _start_one_shot(self, asked: ChatRequest) -> tuple[Turn, dict[str, str], Callable[[], None]]:
        session_id = self._api.one_shot.create(asked.messages)
        question = _for_this_turn(TurnRequest(continues=True), asked)

        def forget() -> None:
            with contextlib.suppress(SessionNotFound):
                self._api.one_shot.delete(session_id)

        try:
            return *self._api.start(session_id, question, self._api.one_shot), forget
        except BaseException:
            forget()
            raise

    def _start_in(
        self, runs: Turns, session_id: str, asked: ChatRequest, key: str | None
    ) -> tuple[Turn, dict[str, str]]:
        runs.storage.ensure(session_id)
        unanswered: set[str] = set()
        looks = 0
        while True:
            looks += 1
            try:
                found = self._look(runs, session_id, asked, key, unanswered)
                if isinstance(found, TurnRequest):
                    return self._api.start(session_id, _for_this_turn(found, asked))
            except (NothingToContinue, SessionBusy):  # a turn has ended or started since the look
                if looks == _MAX_LOOKS:
                    raise
                with contextlib.suppress(SessionBusy):
                    runs.attach(session_id)  # which waits until the question of a turn that starts is stored
                continue
            if not self._api.responses.acquire(blocking=False):
                raise Overloaded
            return found, {}

    def _look(
        self, runs: Turns, session_id: str, asked: ChatRequest, key: str | None, unanswered: set[str]
    ) -> Turn | TurnRequest:
        """The turn that the request is a retry of, or the question that it asks.

        `unanswered` are the questions that earlier looks saw without an answer, or while their turn ran. A turn that
        has answered one since is joined like one that runs.
        """
        session = runs.session(session_id)
        users = [one for one in session.conversation if one["role"] == "user"]
        sent = [index for index, one in enumerate(asked.messages) if one["role"] == "user"]
        wish = wish_of([one["content"] for one in users], [asked.messages[index]["content"] for index in sent])
        question = TurnRequest(asked.question, key=key)
        if key is not None and (known := find_turn(session, key)):
            stored = TurnRequest.stored(known.messages[0], key)
            question = dataclasses.replace(question, replaces=stored.replaces, continues=stored.continues)
        elif wish.kind == "again":
            last, turn, id = last_turn(session), runs.attach(session_id), users[-1]["id"]
            own = turn if turn is not None and turn.message_id == id else None
            ended = own is None or own.ended  # else the caller cannot have seen its end
            if last is None or (last.complete and ended and id not in unanswered):
                return TurnRequest(None, id, key=key)
            unanswered.add(id)
            if own is not None and _has_an_answer(own, runs):
                return own
            replaces = id if last.complete else None
            question = TurnRequest(None, replaces, continues=not last.complete, key=key)
        elif wish.kind == "instead":
            replaced = users[wish.at]["id"] if wish.at < len(users) else None
            history = tuple(asked.messages[sent[wish.since] : -1])
            question = TurnRequest(asked.question, replaced, history=history, key=key)
        return question

    def _frames(self, turn: Turn, asked: ChatRequest) -> Iterator[bytes]:
        """The turn as chunks of a completion, and `[DONE]`."""
        chunks = _Chunks(turn, asked, asked.model or self._api.agent.model)
        after = 0
        while True:
            try:
                entries = turn.read(after, _COMMENT_SECONDS)
            except StorageUnavailable:  # the turn runs elsewhere, and can be followed no more
                yield chunks.broken_off()
                return
            if not entries:
                yield b": keep-alive\n\n"
            after += len(entries)
            if text := "".join(frame for entry in entries for frame in chunks.frames(entry)):
                yield text.encode()
            if entries and isinstance(entries[-1].event, Ended | Failed):
                return

    def _count(self, turn: Turn, change: int) -> int:
        with self._lock:
            count = self._readers.get(turn, 0) + change
            self._readers[turn] = count
            if not count:
                del self._readers[turn]
            return count

    def _leave(self, turn: Turn) -> None:
        """One reader less. A turn that nobody reads any more is cancelled: a client has no other way to stop it."""
        if not self._count(turn, -1) and not turn.ended:
            if isinstance(turn, LocalTurn):
                turn.end_in_background(turn.cancel)
            else:
                threading.Thread(target=self._api.runs.cancel, args=(turn.session_id,), daemon=True).start()


class _Chunks:
    """The chunks of one completion."""

    def __init__(self, turn: Turn, asked: ChatRequest, model: str) -> None:
        self._fixed: dict[str, Any] = {
            "id": f"chatcmpl-{turn.id}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
        }
        self._fixed["model"] = model
        self._with_usage = asked.with_usage

    def frames(self, entry: LoggedEvent) -> Iterator[str]:
        """The frames of one event, as text."""
        match entry.event:
            case Started():
                yield self._chunk({"role": "assistant", "content": ""})
            case Reasoning():
                yield self._chunk({"reasoning_content": entry.event.content})
            case Chunk():
                yield self._chunk({"content": entry.event.content})
            case Ended():
                yield self._chunk({}, _finish_reason(entry.event))
                if self._with_usage:
                    usage = entry.event.message.get("usage")
                    yield f"data: {_encode({**self._fixed, 'choices': [], 'usage': usage})}\n\n"
                yield "data: [DONE]\n\n"
            case Failed():
                code, status, text = describe_error(entry.event.code)
                yield f"data: {_encode(openai_error(status, code, entry.event.text or text))}\n\ndata: [DONE]\n\n"

    def broken_off(self) -> bytes:
        """What is said where the turn can be followed no more."""
        code, status, text = describe_error("storage_unavailable")
        return f"data: {_encode(openai_error(status, code, text))}\n\ndata: [DONE]\n\n".encode()

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return f"data: {_encode({**self._fixed, 'choices': [choice]})}\n\n"


def _whole(turn: Turn, headers: dict[str, str]) -> Response:
    """The turn as one completion, when it has ended."""
    last = turn.result()
    if isinstance(last, Failed):
        retry_after = {} if last.retry_after is None else {"Retry-After": last.retry_after}
        return error_response(last.code, last.text, {**headers, **retry_after})
    message: dict[str, Any] = {"role": "assistant", "content": last.complete_text}
    reasoning, after = "", 0
    while entries := turn.read(after, 0):
        reasoning += "".join(one.event.content for one in entries if isinstance(one.event, Reasoning))
        after += len(entries)
    if reasoning:
        message["reasoning_content"] = reasoning
    choice = {"index": 0, "message": message, "finish_reason": _finish_reason(last)}
    completion = {"id": f"chatcmpl-{turn.id}", "object": "chat.completion", "created": int(time.time())}
    completion |= {"model": last.message.get("model", ""), "choices": [choice]}
    if usage := last.message.get("usage"):
        completion["usage"] = usage
    return json_response(completion, 200, headers)


def _has_an_answer(turn: Turn, runs: Turns) -> bool:
    """Whether the turn runs, or has its whole answer."""
    if not turn.ended:
        return isinstance(turn, LocalTurn) or runs.running(turn.session_id)
    last = turn.result()
    return isinstance(last, Ended) and last.status == "completed"


def _finish_reason(last: Ended) -> str:
    reason = last.message.get("reason")
    return str(reason) if reason in ("length", "content_filter") else "stop"


def _for_this_turn(question: TurnRequest, asked: ChatRequest) -> TurnRequest:
    """The question with what the request sets for this turn alone."""
    return dataclasses.replace(
        question, model=asked.model, system_prompt=asked.instructions, options=asked.options or None
    )


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "session_server"}


def _exists(storage: Storage, session_id: str) -> bool:
    try:
        storage.running(session_id)
    except SessionNotFound:
        return False
    return True


@contextlib.contextmanager
def _model_errors() -> Iterator[None]:
    """Says in OpenAI's code that a model may not be chosen."""
    try:
        yield
    except ModelRefused as error:
        raise ApiError("model_not_found", str(error)) from None
