"""What the Chat Completions dialect does with the transcript that a client sends: the turn that a request means."""

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flask import request

from session_core.data.message import StoredMessage, message_text
from session_core.data.session import expanded
from session_core.data.strict_json import to_json
from session_core.data.text import unwrapped_forms
from session_core.turns.event_log import Ended
from session_core.turns.local import LocalTurn
from session_core.turns.sessions import Sessions
from session_core.turns.stored import StoredTurn, find_turn, last_turn
from session_core.turns.transcripts import (
    ClientIntent,
    ClientMessage,
    agrees_with_answer,
    compare_histories,
    compare_question,
)
from session_core.turns.turn import Turn
from session_core.turns.turn_request import NothingToContinue, TurnRequest
from session_core.web.errors import ApiError
from session_core.web.openai_tools import answer_calls
from session_core.web.turn_responses import TurnReader, TurnResponses
from storage import SESSION_ID, Session, SessionBusy, SessionNotFound, Storage

_SESSION_HEADER = "X-Session-Id"
_NOT_KEPT = re.compile(r"(?:temporary|local|channel):|\{\{")  # what Open WebUI does not save; an unfilled template
_MAX_LOOKS = 3  # at a session in which turns start and end meanwhile


@dataclass(frozen=True)
class ChatRequest:
    """A request. `messages` are those of its transcript, oldest first, as they are stored; the last is the question,
    or the result of a call. `own` is what it sets for this turn alone, and `results` are those of the last calls of
    the client's tools, as answers to them. `functions` says that these are the old ones, which have no ids."""

    messages: list[StoredMessage]
    own: TurnRequest
    stream: bool
    with_usage: bool
    results: dict[str, dict[str, str]]
    functions: bool

    @property
    def has_question(self) -> bool:
        """Whether it ends with a question, and not with results."""
        return self.messages[-1]["role"] == "user"

    def turn_request(self, asked: TurnRequest, key: str | None = None) -> TurnRequest:
        """What is asked for, with what the request sets for this turn alone."""
        return dataclasses.replace(
            asked,
            key=key,
            prefix=self.own.prefix,
            model=self.own.model,
            system_prompt=self.own.system_prompt,
            options=self.own.options,
            client_tools=self.own.client_tools,
            terms=self.terms,
            files=self.own.files,
        )

    @property
    def terms(self) -> str:
        """A digest of all but the conversation."""
        own = self.own
        tools = {name: tool.schema for name, tool in own.client_tools.tools.items()} if own.client_tools else {}
        value = [own.model, own.system_prompt, own.options or {}, own.prefix, *([tools] if tools else ())]
        return hashlib.sha256(to_json(value)).hexdigest()[:32]


class ChatName(NamedTuple):
    """The session that a request names. `whole_chats` says that its front end sends each chat from its beginning."""

    session_id: str
    whole_chats: bool


def find_chat(storage: Storage, headers: Sequence[str]) -> ChatName | None:
    """The session that X-Session-Id names, or one of these headers. None where none does, or the chat is not to be
    kept. Raises ApiError.

    A value that is the id of a session names that one, and is not found where that is deleted meanwhile; any other
    value stands for a session of its own, which is made where it does not exist.
    """
    name = next((name for name in (_SESSION_HEADER, *headers) if request.headers.get(name)), _SESSION_HEADER)
    value = request.headers.get(name, "")
    if not value or _NOT_KEPT.match(value):
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,128}", value):
        raise ApiError("invalid_request", f"{name} must be 1 to 128 visible ASCII characters.")
    if SESSION_ID.fullmatch(value):
        with contextlib.suppress(SessionNotFound):
            storage.running(value)
            return ChatName(value, whole_chats=name != _SESSION_HEADER)
    chat = ChatName(f"session-{hashlib.sha256(value.encode()).hexdigest()[:32]}", whole_chats=name != _SESSION_HEADER)
    storage.ensure(chat.session_id)
    return chat


def start_in_session(responses: TurnResponses, chat: ChatName, asked: ChatRequest, key: str | None) -> TurnReader:
    """Reads the turn that a request means in a session.

    Where another turn runs there, a front end that sends whole chats gets an answer to its own transcript.
    """
    sessions = responses.sessions
    unanswered: set[str] = set()
    for look in range(1, _MAX_LOOKS + 1):
        try:
            found = _look(sessions, chat, asked, key, unanswered)
            if found is None:
                break
            if isinstance(found, Turn):
                reader = responses.join(found)
            else:
                reader = responses.start(chat.session_id, found, keeps_running=False)
            return dataclasses.replace(reader, headers={**reader.headers, _SESSION_HEADER: chat.session_id})
        except (NothingToContinue, SessionBusy) as error:  # a turn has ended or started since the look
            if look == _MAX_LOOKS:
                if isinstance(error, SessionBusy) and chat.whole_chats:
                    break
                raise
            with contextlib.suppress(SessionBusy):
                sessions.attach(chat.session_id)  # which waits until the question of a turn that starts is stored
    return responses.start_one_shot(asked.messages, asked.turn_request(TurnRequest(continues=True)))


def _look(
    sessions: Sessions, chat: ChatName, asked: ChatRequest, key: str | None, unanswered: set[str]
) -> Turn | TurnRequest | None:
    """The turn that the request is a retry of, or what it asks for. None where it has results of calls that the
    session does not know.

    `unanswered` are the questions that earlier looks saw without an answer, or while their turn ran. A turn that
    has answered one since is joined like one that runs.
    """
    session = sessions.session(chat.session_id)
    if asked.functions and asked.results:
        result = next(message for message in reversed(asked.messages) if message["role"] == "tool")
        asked = dataclasses.replace(asked, results=answer_calls(last_turn(session), result) or asked.results)
    if not asked.has_question:
        return _answer(sessions, session, chat, asked, key)
    if key is not None and (known := find_turn(session, key)):
        stored = known.request(key)
        stored = TurnRequest() if stored.stored_digest else stored  # that was no question
        stored = dataclasses.replace(stored, content=asked.messages[-1]["content"])
        return asked.turn_request(stored, key)
    intent = _compare(session, chat, asked)
    last = last_turn(session)
    if intent.kind == "retry" and last is not None and intent.id == last.messages[0]["id"]:
        return _retry(sessions, session.id, last, asked, key, unanswered)
    return asked.turn_request(dataclasses.replace(intent.request(asked.messages), answers=asked.results or None), key)


def _answer(
    sessions: Sessions, session: Session, chat: ChatName, asked: ChatRequest, key: str | None
) -> Turn | TurnRequest | None:
    """What a transcript asks for that ends with results of the client's tools."""
    answers, last = asked.turn_request(TurnRequest(answers=asked.results), key), last_turn(session)
    if find_turn(session, key):
        return answers
    if last is None or not _has_question(session, chat, asked, last.messages[0]):
        return None
    if last.waiting and last.waiting["pending"].keys() & asked.results.keys():
        return answers
    if last.answers_digest != answers.answers_digest:
        return None
    turn = _find_turn(sessions, session.id, last)
    if turn is not None and _has_an_answer(turn, sessions):
        return turn
    return Turn.replay(session.id, last) if last.complete else asked.turn_request(TurnRequest(continues=True), key)


def _has_question(session: Session, chat: ChatName, asked: ChatRequest, question: StoredMessage) -> bool:
    """Whether the last question of a transcript is this one, which a front end may wrap in a request with results."""
    at = max((index for index, message in enumerate(asked.messages) if message["role"] == "user"), default=None)
    if at is None:  # a client that trims from the front
        return True
    for content in (asked.messages[at]["content"], *unwrapped_forms(message_text(asked.messages[at]))[1:]):
        form: StoredMessage = {**asked.messages[at], "content": content}
        intent = _compare(session, chat, dataclasses.replace(asked, messages=[*asked.messages[:at], form]))
        if intent.kind == "retry" and intent.id == question["id"]:
            return True
    return False


def _compare(session: Session, chat: ChatName, asked: ChatRequest) -> ClientIntent:
    if len(asked.messages) == 1 and not chat.whole_chats:
        return compare_question(session.conversation, asked.messages[0]["content"])
    transcript = [  # results of calls are no texts of an answer
        ClientMessage(
            "user" if one["role"] == "user" else "assistant", "" if one["role"] == "tool" else one["content"]
        )
        for one in asked.messages
    ]
    return compare_histories(expanded(session.messages), transcript)


def _retry(
    sessions: Sessions, session_id: str, last: StoredTurn, asked: ChatRequest, key: str | None, unanswered: set[str]
) -> Turn | TurnRequest:
    """The session's last turn, where it is what is asked for and the caller cannot have seen its answer; or the wish
    that it goes on, or for another answer."""
    question, own = last.messages[0], _find_turn(sessions, session_id, last)
    runs = own is not None and not own.ended
    another_answer = asked.turn_request(TurnRequest(asked.messages[-1]["content"], question["id"]), key)
    continued = asked.turn_request(TurnRequest(continues=True), key)
    if not _is_same_wish(own, question, asked, key):
        begun = (
            asked.own.prefix
            and not runs
            and not last.complete
            and agrees_with_answer(last.messages[1:], asked.own.prefix)
        )
        return continued if begun else another_answer
    if last.complete and not runs and question["id"] not in unanswered:  # the caller can have seen the answer
        return another_answer
    unanswered.add(question["id"])
    if own is not None and _has_an_answer(own, sessions):
        return own
    return another_answer if last.complete else continued


def _find_turn(sessions: Sessions, session_id: str, last: StoredTurn) -> Turn | None:
    """The session's last turn, where it runs, can still be watched, or waits."""
    turn = sessions.attach(session_id)
    if turn is not None and turn.message_id == last.messages[0]["id"]:
        return turn
    return Turn.replay(session_id, last) if last.waiting else None


def _is_same_wish(turn: Turn | None, question: StoredMessage, asked: ChatRequest, key: str | None) -> bool:
    """Whether the session's last turn was asked for with the same as is asked for now, beside the transcript."""
    terms = turn.request.terms if isinstance(turn, LocalTurn) else None
    may_join = turn is None or turn.ended or key in (None, turn.request.key)
    return may_join and asked.terms == (terms or question.get("terms"))


def _has_an_answer(turn: Turn, sessions: Sessions) -> bool:
    """Whether the turn runs, or has its whole answer."""
    if not turn.ended:
        return isinstance(turn, LocalTurn) or sessions.running(turn.session_id)
    last = turn.result()
    return isinstance(last, Ended) and last.status in ("completed", "waiting")
