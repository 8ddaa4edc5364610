"""The Responses dialect: the routes of responses, and the turns that they are."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from flask import Blueprint, Response, request

from agent import Agent
from session_core.data.message import StoredMessage, named_files, user_message
from session_core.data.session import CONFIGURABLE, STATE, new_message
from session_core.model.events import ToolCall
from session_core.model.outgoing_messages import read_tool_calls
from session_core.turns.imported import copied
from session_core.turns.models import ModelRefused
from session_core.turns.stored import find_turn, waiting_message
from session_core.turns.turn import Turn
from session_core.turns.turn_request import Answers, NothingToContinue, TurnRequest
from session_core.web.bodies import (
    check_question,
    flag_argument,
    idempotency_key,
    json_body,
    number_argument,
    parse_body,
)
from session_core.web.errors import ApiError, json_response, set_error_code, set_error_form
from session_core.web.openai_events import openai_error
from session_core.web.response_compaction import SUM_UP, CompactBody, render_compaction
from session_core.web.response_ids import (
    ResponseId,
    conversation_id,
    parse_response_id,
    response_not_found,
    session_of,
)
from session_core.web.response_input import ResponseInput
from session_core.web.response_listing import ItemFinder, input_items, list_page
from session_core.web.response_object import ResponseRenderer
from session_core.web.response_request import SEALED_REASONING, ResponseBody
from session_core.web.stored_responses import RESULTS_KEY, StoredResponse, find_response, response_of_key
from session_core.web.turn_responses import TurnReader, TurnResponses, add_stream
from session_core.web.uploads import body_with_files
from storage import Session, SessionBusy, SessionNotFound, new_id

_MAX_ITEMS = 100  # of one page
_ITEMS = 20  # of a page, where no limit is given
_ID = "<string(minlength=8):id>"  # so that `compact` is none
_NO_CALL = "input has an output, and no call waits for one."


def responses_dialect(responses: TurnResponses, agent: Agent) -> Blueprint:
    """The routes of responses."""
    routes = _Responses(responses, agent)
    blueprint = openai_routes(
        "responses",
        ("POST", "/responses", routes.create_response),
        ("POST", "/responses/compact", routes.compact_response),
        ("DELETE", f"/responses/{_ID}", routes.delete_response),
        ("POST", f"/responses/{_ID}/cancel", routes.cancel_response),
        ("GET", f"/responses/{_ID}/input_items", routes.list_input_items),
    )
    add_stream(blueprint, f"/responses/{_ID}", routes.get_response)
    return blueprint


def openai_routes(name: str, *routes: tuple[str, str, Callable[..., Response]]) -> Blueprint:
    """Routes below `/v1`: methods, rules and views. The errors of sessions are told in the words of this API."""
    blueprint = Blueprint(name, __name__, url_prefix="/v1")
    set_error_form(blueprint, openai_error)
    set_error_code(blueprint, SessionBusy, "conversation_locked")
    set_error_code(blueprint, ModelRefused, "model_not_found", str)
    set_error_code(blueprint, NothingToContinue, "invalid_request", lambda _: _NO_CALL)
    set_error_code(blueprint, SessionNotFound, "not_found", lambda e: f"{conversation_id(str(e))} was not found.")
    for method, rule, view in routes:
        blueprint.add_url_rule(rule, view_func=view, methods=[method])
    return blueprint


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a response takes place: a session, or what a new or a one-shot one begins with. `behind` is the message
    that is to be its last one, and `new_id` the id of a session that is to be made."""

    session: Session
    behind: str | None = None
    new_id: str = ""

    @property
    def waiting(self) -> dict[str, ToolCall]:
        """The calls that wait for answers, by id."""
        waiting = waiting_message(self.session)
        return (
            {call.id: call for call in read_tool_calls(waiting) if call.id in waiting["pending"]} if waiting else {}
        )


class _Responses:
    """The routes, as methods. Each returns a response, or raises what `answer_error` answers."""

    def __init__(self, responses: TurnResponses, agent: Agent) -> None:
        self._responses = responses
        self._agent = agent

    def create_response(self) -> Response:
        asked, place, read = self._take(ResponseBody)
        start = self._start if asked.is_stored else self._start_one_shot
        reader, renderer = start(asked, place, read)
        if asked.stream:
            return self._responses.stream(reader, renderer)
        if asked.background:
            reader.close()
            return json_response(renderer.response((), "queued"))
        return self._responses.whole(reader, lambda turn, _: json_response(renderer.response(turn.read_all())))

    def compact_response(self) -> Response:
        asked, place, read = self._take(CompactBody)
        if read.answers:
            raise NothingToContinue
        messages, wish = self._find_one_shot(asked, place, read)
        wish = dataclasses.replace(
            wish,
            options={"tool_choice": "none"} if self._agent.tools else None,
            response=None,
            continues=True,
            answers=None,
        )
        reader = self._responses.start_one_shot(
            [*messages, new_message(user_message(SUM_UP))], wish, place.session.current_compacted
        )
        return self._responses.whole(reader, lambda _, last: json_response(render_compaction(messages, last)))

    def get_response(self, id: str) -> Response:
        after = number_argument("starting_after", 0, 10**9 - 1)
        stream = flag_argument("stream")
        found, turn = self._find(parse_response_id(id))
        sealed = SEALED_REASONING in [*request.args.getlist("include[]"), *request.args.getlist("include")]
        renderer = found.renderer(turn.attempt, -1 if after is None else after, sealed=sealed)
        if stream:
            return self._responses.watch(turn, lambda _: 0, lambda _: renderer)
        return json_response(renderer.response(self._responses.show(turn).read_all()))

    def delete_response(self, id: str) -> Response:
        parsed = parse_response_id(id)
        self._find(parsed)
        with self._responses.sessions.storage.lock(parsed.session_id) as session:
            kept = session.session.responses or {}
            session.configure(responses={**kept, "deleted": [*kept.get("deleted", ()), str(parsed)]})
        return json_response({"id": str(parsed), "object": "response", "deleted": True})

    def cancel_response(self, id: str) -> Response:
        json_body(optional=True)
        parsed = parse_response_id(id)
        self._find(parsed)[1].cancel()
        found, turn = self._find(parsed)
        return json_response(found.renderer(turn.attempt).response(self._responses.show(turn).read_all()))

    def list_input_items(self, id: str) -> Response:
        parsed = parse_response_id(id)
        found, _ = self._find(parsed)
        return items_page(list(input_items(self._responses.session(parsed.session_id), found)))

    def _find(self, id: ResponseId) -> tuple[StoredResponse, Turn]:
        """The response, and its turn: one that runs, or one with the events that are stored. Raises ApiError."""
        turn, busy = None, None
        try:
            try:
                turn = self._responses.sessions.attach(id.session_id)
            except SessionBusy as error:  # a turn runs where it cannot be followed
                busy = error
            found = find_response(self._responses.session(id.session_id), id)
        except SessionNotFound:
            raise response_not_found(id) from None
        if busy is not None and found.is_last:
            raise busy
        runs = turn is not None and not turn.ended and turn.message_id == id.message_id
        return found, turn if turn is not None and runs and turn.attempt in found.attempts else found.replay()

    def _take(self, kind: type[ResponseBody]) -> tuple[ResponseBody, _Place, ResponseInput]:
        """What the request asks for, where that takes place, and what it brings. Nothing is made yet. Raises ApiError
        for what cannot be served."""
        with body_with_files(self._responses.max_file_bytes) as (body, uploads):
            asked = parse_body(kind, body)
            asked.check()
            key = idempotency_key() if asked.is_stored else None
            self._responses.sessions.models.check(asked.model)
            place = self._find_place(asked, key)
            names = {} if asked.is_stored else {call.id: call.name for call in place.waiting.values()}
            read = ResponseInput(uploads, ItemFinder(self._responses).find, place.waiting, names, self._agent.server)
            return asked, place, read.read(asked.input or ())

    def _start(self, asked: ResponseBody, place: _Place, read: ResponseInput) -> tuple[TurnReader, ResponseRenderer]:
        """A turn in a session."""
        wish = self._turn_request(asked, place, read, key=idempotency_key(), behind=place.behind)
        session_id = place.new_id or place.session.id
        with self._made(place):
            wish = self._complete(session_id, place.session, read, wish)
            reader = self._responses.start(session_id, wish)
        if reader.turn.request is wish:
            id = ResponseId(session_id, reader.turn.message_id, reader.turn.attempt)
            return reader, ResponseRenderer(id, wish.response or {}, place.waiting)
        try:
            found = response_of_key(self._responses.session(session_id), reader.turn.message_id, wish.key)
            if reader.turn.attempt > found.turn.attempt:  # another try, of which nothing is stored yet
                id = dataclasses.replace(found.id, attempt=reader.turn.attempt)
                return reader, ResponseRenderer(id, found.record, place.waiting)
            if not found.is_told_by(reader.turn):  # the turn has gone on since, under another key
                reader = dataclasses.replace(reader, turn=self._responses.show(found.replay()))
            return reader, found.renderer(reader.turn.attempt)
        except BaseException:
            reader.close()
            raise

    def _start_one_shot(
        self, asked: ResponseBody, place: _Place, read: ResponseInput
    ) -> tuple[TurnReader, ResponseRenderer]:
        """A turn of which nothing is stored."""
        messages, wish = self._find_one_shot(asked, place, read)
        _check_end(messages, wish)
        reader = self._responses.start_one_shot(messages, wish, place.session.current_compacted)
        id = ResponseId(reader.turn.session_id, reader.turn.message_id, reader.turn.attempt)
        calls = {call.id: call for message in messages for call in read_tool_calls(message)}
        return reader, ResponseRenderer(id, wish.response or {}, calls)

    def _find_one_shot(
        self, asked: ResponseBody, place: _Place, read: ResponseInput
    ) -> tuple[list[StoredMessage], TurnRequest]:
        """The whole conversation of a request of which nothing is stored, and what it asks for."""
        wish = self._turn_request(asked, place, read, continues=not read.answers, answers=read.answers or None)
        files, earlier = self._responses.sessions.storage.files, place.session.conversation
        read_files = {name: files.read(place.session.id, name) for name in named_files(earlier)}
        wish.files.update({name: data for name, data in read_files.items() if data is not None})
        return [*earlier, *read.messages], wish

    def _find_place(self, asked: ResponseBody, key: str | None) -> _Place:
        """The session of a response; of one that is not stored, a copy of the conversation that it follows."""
        sessions, previous = self._responses.sessions, asked.previous_response_id
        if asked.conversation_id is not None:
            session = sessions.session(session_of(asked.conversation_id))
            return _Place(session if asked.is_stored else _copy(session, None))
        if previous is None:
            return self._new_place(asked, key, Session("", "", ""))
        id = parse_response_id(previous)
        try:
            session = sessions.session(id.session_id)
        except SessionNotFound:
            raise response_not_found(id) from None
        if key and find_turn(session, key):
            return _Place(session)
        found = find_response(session, id)
        last = session.messages[-1]["id"]
        if asked.is_stored and found.is_last and any(one["id"] == last for one in session.conversation):
            return _Place(session, last)
        return self._new_place(asked, key, _copy(session, found.last_message["id"]))

    def _new_place(self, asked: ResponseBody, key: str | None, copy: Session) -> _Place:
        """A session of its own that begins with this content. That of a key is always the same."""
        if not asked.is_stored:
            return _Place(copy)
        if key is None:
            return _Place(copy, new_id=new_id("session"))
        id = f"session-{hashlib.sha256(f'{key} {asked.previous_response_id}'.encode()).hexdigest()[:32]}"
        with contextlib.suppress(SessionNotFound):
            return _Place(self._responses.sessions.session(id))
        return _Place(copy, new_id=id)

    def _made(self, place: _Place) -> contextlib.AbstractContextManager[None]:
        """Has a session for a response, which is made where it is a new one."""
        if not place.new_id:
            return contextlib.nullcontext()
        fields = {name: getattr(place.session, name) for name in (*CONFIGURABLE, *STATE)}
        return self._responses.sessions.made(place.new_id, place.session.messages, files=place.session.id, **fields)

    def _turn_request(self, asked: ResponseBody, place: _Place, read: ResponseInput, **others: Any) -> TurnRequest:
        """What the body sets for this turn alone, beside other fields."""
        session = place.session
        earlier = [text for one in session.conversation for text in one.get("response", {}).get("system", ())]
        own = [text for text in (asked.instructions, session.system_prompt) if text]
        texts = [*own, *earlier, *read.system] if asked.instructions or earlier or read.system else []
        tools = asked.client_tools
        return TurnRequest(
            model=asked.model,
            system_prompt="\n\n".join(texts) if texts else None,
            options=asked.options(any_tools=bool(tools.tools or self._agent.tools)) or None,
            client_tools=tools,
            response=asked.record(
                asked.model or session.model or self._agent.model, input=len(read.messages), system=read.system
            ),
            files=read.files,
            **others,
        )

    def _complete(self, session_id: str, session: Session, read: ResponseInput, wish: TurnRequest) -> TurnRequest:
        """The wish with what the input asks for: a question, answers, or that the model goes on behind what the
        client has."""
        answers = read.answers or None
        if read.has_question:
            if any(answer.get("approve") for answer in read.answers.values()):
                answers, wish = None, self._run_answered(session_id, read.answers, wish)
            *history, question = read.messages
            return dataclasses.replace(
                wish, content=check_question(question["content"]), history=tuple(history), answers=answers
            )
        if not read.messages:
            return dataclasses.replace(wish, answers=answers or {})
        wish = dataclasses.replace(wish, continues=True, history=tuple(read.messages))
        if wish.key is None or find_turn(session, wish.key) is None:
            _check_end(read.messages, wish)
            if answers:
                return self._run_answered(session_id, answers, wish)
        return wish

    def _run_answered(self, session_id: str, answers: Answers, wish: TurnRequest) -> TurnRequest:
        """Has the calls that wait get their results, before the wish, which stands behind them then. Once: a request
        that is sent again, since its wish was not taken, finds them."""
        asked = TurnRequest(answers=answers, results_only=True)
        self._responses.finish(session_id, dataclasses.replace(asked, key=RESULTS_KEY + asked.answers_digest))
        return dataclasses.replace(wish, behind=None)


def items_page(items: list[dict[str, Any]]) -> Response:
    """The page of a list that a request asks for, newest first."""
    limit = number_argument("limit", 1, _MAX_ITEMS) or _ITEMS
    order, after = request.args.get("order", "desc"), request.args.get("after")
    if order not in ("asc", "desc"):
        raise ApiError("invalid_request", "order must be asc or desc.")
    if after is not None and not any(item["id"] == after for item in items):
        raise ApiError("invalid_request", "after must be the id of an item of this list.")
    return json_response(list_page(items if order == "asc" else items[::-1], after, limit))


def _copy(session: Session, until: str | None) -> Session:
    """The session up to and with a message, for a session of its own."""
    messages, state = copied(session, until)
    return dataclasses.replace(session, messages=messages, **state)


def _check_end(messages: list[StoredMessage], wish: TurnRequest) -> None:
    """Raises ApiError where there is nothing to answer."""
    if wish.answers:
        return
    if not messages or messages[-1]["role"] == "assistant":
        raise ApiError("invalid_request", "input must end with a question, or with the result of a call.")
    if messages[-1]["role"] == "user":
        check_question(messages[-1]["content"])
