"""The AI SDK's dialect: what its transport sends, and the routes that it sends that to.

The sources are `src/ui/http-chat-transport.ts` and `src/ui/chat.ts` of the npm package `ai`, 5 to 7. The client makes
ids for its messages, and keeps that of one that it edits. After a reload it has the server's. Both are understood.
"""

import dataclasses
import hashlib
from typing import Any, Literal

from flask import Blueprint, Response
from pydantic import BaseModel

from session_core.data.file_kinds import MAX_FILES
from session_core.data.message import Content, ContentPart, StoredMessage
from session_core.data.session import expanded, new_message
from session_core.data.strict_json import to_json
from session_core.model.events import Reasoning
from session_core.tools.client_tools import ClientTool, ClientTools
from session_core.tools.functions import result_text, tool_schema
from session_core.turns.sessions import Sessions
from session_core.turns.stored import find_turn, last_turn, waiting_message
from session_core.turns.transcripts import ClientMessage, compare_histories
from session_core.turns.turn_request import IfBusy, TurnRequest
from session_core.web.bodies import (
    FailingFast,
    ModelName,
    check_question,
    idempotency_key,
    parse_body,
)
from session_core.web.errors import ApiError, set_error_form
from session_core.web.openai_tools import ClientsTool, FunctionName
from session_core.web.turn_responses import TurnResponses, add_stream, event_stream
from session_core.web.ui_messages import ANSWER, UiRenderer, earlier_events, queued_frames
from session_core.web.uploads import Uploads, body_with_files
from storage import Session, SessionBusy


class _Approval(BaseModel, strict=True):
    approved: bool | None = None
    reason: str | None = None


class _Part(BaseModel, strict=True):
    type: str
    text: str = ""
    url: str = ""
    mediaType: str | None = None
    filename: str | None = None
    toolCallId: str = ""
    state: str = ""
    output: Any = None
    errorText: str = ""
    approval: _Approval | None = None
    _file: ContentPart | None = None

    @property
    def answer(self) -> dict[str, Any] | None:
        """The answer to a call, as `TurnRequest` has it. None where the part is none."""
        match self.state:
            case "approval-responded" if self.approval:
                return {"approve": self.approval.approved is True, "reason": self.approval.reason or ""}
            case "output-available":
                return {"result": result_text(self.output)}
            case "output-error":
                return {"error": self.errorText}
        return None


class _Tool(BaseModel, strict=True):
    """A tool of the client, as its body names it."""

    description: str = ""
    parameters: dict[str, Any] = {"type": "object"}


class _Message(BaseModel, strict=True):
    role: Literal["system", "user", "assistant"] = "user"
    id: str | None = None
    parts: FailingFast[_Part] = []

    def take_files(self, uploads: Uploads) -> None:
        """Takes the pictures and files of a user's message. Raises ApiError."""
        for index, part in enumerate(self.parts):
            if part.type == "file" and self.role == "user":
                part._file = uploads.add_url(f"parts[{index}]", part.url, part.mediaType, part.filename)
            else:
                uploads.taken += len(part.url)
        if len(self.files) > MAX_FILES:
            raise ApiError("invalid_request", f"A message has more than {MAX_FILES} pictures and files.")

    @property
    def files(self) -> list[ContentPart]:
        """Its pictures and files, which were taken."""
        return [part._file for part in self.parts if part._file]

    @property
    def text(self) -> str:
        """The texts of all its parts."""
        return "".join(part.text for part in self.parts if part.type == "text")

    @property
    def content(self) -> Content:
        """What it says: the text, or with pictures and files its parts."""
        if not self.files:
            return self.text
        kept = (part for part in self.parts if part._file or part.type == "text")
        return [part._file or {"type": "text", "text": part.text} for part in kept]

    @property
    def said(self) -> list[Any]:
        """What tells it from others of the same id: its text, its pictures and files, and its answers to calls."""
        files = [part["sha256"] for part in self.files]
        return [self.text, *([files] if files else []), *([sorted(self.answers.items())] if self.answers else [])]

    @property
    def answers(self) -> dict[str, dict[str, Any]]:
        """The answers to calls, by the ids of those."""
        return {part.toolCallId: answer for part in self.parts if (answer := part.answer) is not None}


class _Body(BaseModel, strict=True):
    """What `DefaultChatTransport` sends: the transcript, or its last message alone."""

    id: str
    messages: FailingFast[_Message] = []
    message: _Message | None = None
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    messageId: str | None = None
    model: ModelName | None = None
    if_busy: IfBusy = "reject"
    tools: dict[FunctionName, _Tool] | list[ClientsTool] | None = None

    @property
    def client_tools(self) -> ClientTools:
        """The tools of the client."""
        made = self.tools or {}
        if isinstance(made, list):
            return ClientTools({one.function.name: ClientTool(one.model_dump(exclude_unset=True)) for one in made})
        return ClientTools(
            {name: ClientTool(tool_schema(name, one.description, one.parameters)) for name, one in made.items()}
        )

    @property
    def transcript(self) -> list[_Message]:
        """The messages up to the question."""
        sent = [one for one in ([self.message] if self.message else self.messages) if one.role != "system"]
        while sent and sent[-1].role == "assistant" and self.trigger == "regenerate-message":
            sent.pop()
        return sent


def ui_dialect(responses: TurnResponses, *, show_reasoning: bool) -> Blueprint:
    """The routes that `useChat` calls."""
    blueprint = Blueprint("ui", __name__, url_prefix="/ui")
    set_error_form(blueprint, _sentence)

    @blueprint.post("/chat")
    def chat() -> Response:
        with body_with_files(responses.max_file_bytes) as (body, uploads):
            asked, sessions = parse_body(_Body, body), responses.sessions
            for message in [*asked.messages, *([asked.message] if asked.message else [])]:
                message.take_files(uploads)
        question, key = _find_sent_question(asked), idempotency_key()
        sessions.models.check(asked.model)
        if answers := _find_earlier_answers(sessions.session(asked.id), asked):
            responses.finish(asked.id, answers)
        found = _find_request(sessions.session(asked.id), asked, question, key)
        try:
            reader = responses.start(asked.id, dataclasses.replace(found, files=uploads.files))
        except SessionBusy:
            return _queued(sessions, asked, question, key, uploads.files)
        return responses.stream(reader, UiRenderer(reader.turn.message_id))

    def resume_chat(session_id: str) -> Response:
        turn = responses.sessions.attach(session_id)
        running = None if turn is None or turn.ended else turn  # the client has the answer of an ended turn
        earlier = earlier_events(responses.sessions.session(session_id)) if running else []
        earlier = [event for event in earlier if show_reasoning or not isinstance(event, Reasoning)]
        return responses.watch(running, lambda _: 0, lambda turn: UiRenderer(turn.message_id, earlier))

    add_stream(blueprint, "/chat/<session_id>/stream", resume_chat)
    return blueprint


def _queued(
    sessions: Sessions, asked: _Body, question: _Message | None, key: str | None, files: dict[str, bytes]
) -> Response:
    """The answer to a message that waits. What the client has before it does not count, since of a turn that runs it
    has a part only. Raises SessionBusy."""
    session, alone = sessions.session(asked.id), asked.model_copy(update={"messages": [], "message": question})
    request = dataclasses.replace(_find_request(session, alone, question, key), if_busy=asked.if_busy, files=files)
    if request.goes_on:
        raise SessionBusy(asked.id)
    accepted = sessions.accept(asked.id, request)
    return event_stream(iter([queued_frames(accepted.message_id, accepted.position)]), UiRenderer.headers, 202)


def _sentence(status: int, _code: str, text: str) -> Response:
    """The error as text, which the AI SDK makes the message of its error, and a page shows."""
    return Response(text, status, mimetype="text/plain")


def _find_sent_question(asked: _Body) -> _Message | None:
    """The question in a body, or the answer that has answered calls. None where an answer that is named alone is to
    be tried again. Raises ApiError."""
    sent = asked.transcript
    question = sent[-1] if sent else None
    if question is not None and question.role == "assistant" and question.answers:
        return question
    if asked.messages and asked.message is None and (question is None or question.role != "user"):
        raise ApiError("invalid_request", "The last message must be the user's.")
    if question is not None or asked.trigger != "regenerate-message":
        check_question(question.content if question else None)
    return question


def _find_request(session: Session, asked: _Body, question: _Message | None, key: str | None) -> TurnRequest:
    """What a body asks for, with a key that a retry has too. Raises ApiError."""
    key = key or _find_key(session, asked, question)
    if known := find_turn(session, key):
        found = known.request(str(key))
        found = found if found.goes_on or question is None else dataclasses.replace(found, content=question.content)
    elif question is not None and question.role == "assistant" and question.answers:
        found = TurnRequest(answers=_answers_to(session, question))
    elif asked.messages and asked.message is None:
        found = _compare(session, asked.transcript)
    else:
        found = _find_alone(session, asked, question)
    return dataclasses.replace(
        found,
        key=key,
        client_id=question.id if question else None,
        model=asked.model,
        client_tools=asked.client_tools,
    )


def _find_earlier_answers(session: Session, asked: _Body) -> TurnRequest | None:
    """That what the client has approved runs before the new message that it has sent with that."""
    sent, turn = asked.transcript, last_turn(session)
    asking = [message["pending"] for message in turn.messages if "pending" in message] if turn else []
    if not turn or not asking or len(sent) < 2 or sent[-1].role != "user":
        return None
    answers = {id: one for id, one in sent[-2].answers.items() if id in asking[-1]}
    if answers.keys() != asking[-1].keys() or not any(one.get("approve") for one in answers.values()):
        return None
    key = _digest(sent[-2].id, sorted(answers))
    runs = turn.waiting is not None or find_turn(session, key) is not None  # then it is a retry
    return TurnRequest(answers=answers, key=key, results_only=True) if runs else None


def _answers_to(session: Session, message: _Message) -> dict[str, dict[str, Any]]:
    """The answers in a message to what the session waits for."""
    waiting = waiting_message(session)
    return {id: one for id, one in message.answers.items() if waiting and id in waiting["pending"]}


def _compare(session: Session, sent: list[_Message]) -> TurnRequest:
    """What a transcript asks for."""
    transcript = [
        ClientMessage("user" if one.role == "user" else "assistant", one.content, _question_id(one.id))
        for one in sent
    ]
    messages = [new_message({"role": one.role, "content": one.content}) for one in sent]
    answers = _answers_to(session, sent[-2]) if len(sent) > 1 else {}
    found = compare_histories(expanded(session.messages), transcript).request(messages)
    return dataclasses.replace(found, answers=answers or None)


def _find_alone(session: Session, asked: _Body, question: _Message | None) -> TurnRequest:
    """What a message asks for that comes without the ones before it: it goes on, or names what it stands in place of.

    A known id with another text is an edit.
    """
    target = _find_question(session, asked.messageId) or _find_question(session, question.id if question else None)
    content = None if question is None and target else check_question(question.content if question else None)
    return TurnRequest(content, target["id"] if target else None)  # None: of a question that never arrived, too


def _find_question(session: Session, id: str | None) -> StoredMessage | None:
    """The question that the client calls by this id, or whose answer it calls so: of several, the newest."""
    messages = expanded(session.messages) if id else []
    called = [message for message in messages if message["role"] == "user" and _is_called(message, id)]
    return called[-1] if called else None


def _is_called(question: StoredMessage, id: str | None) -> bool:
    return _question_id(id) in (question["id"], question.get("client_id", question["id"]))


def _question_id(id: str | None) -> str | None:
    return id and id.removesuffix(ANSWER)


def _find_key(session: Session, asked: _Body, question: _Message | None) -> str | None:
    """A key that the same wish has, made of the last message's id, the trigger, and what the message says.

    A wish to try an answer again that names none says too little: it is a retry while the answer is missing, and
    another try after that. A wish whose turn was replaced since is a further one.
    """
    id, named = question.id if question else None, asked.messageId
    if not (id or named):
        return None
    tries_again = asked.trigger == "regenerate-message" and not named
    last = last_turn(session)
    if tries_again and last and last.can_be_retried and _is_called(last.messages[0], id):
        return last.messages[0].get("idempotency_key")
    key = _digest(id, asked.trigger, *(question.said if question else [None]), named)
    current = {message["id"] for message in session.conversation}
    while (known := find_turn(session, key)) and (tries_again or known.messages[0]["id"] not in current):
        key = _digest(key)
    return key


def _digest(*values: Any) -> str:
    return "ui-" + hashlib.sha256(to_json(values)).hexdigest()
