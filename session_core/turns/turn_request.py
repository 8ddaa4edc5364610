"""What a caller asks for with a turn."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from session_core.data.message import Content, StoredMessage, same_content
from session_core.data.strict_json import to_json
from session_core.tools.client_tools import ClientTools

Answers = Mapping[str, Mapping[str, Any]]  # by id of a call: what it waits for, see `TurnRequest`


IfBusy = Literal["reject", "queue", "steer", "interrupt"]


class TurnRefused(Exception):
    """The session has not what the question refers to. The text says what, for people."""


class NothingToContinue(Exception):
    """The session's last turn is complete, or there is none."""


class TurnWaiting(Exception):
    """The session's last turn waits for answers, without which it cannot go on."""


class KeyReused(Exception):
    """The idempotency key belongs to another message of this session."""


@dataclass(frozen=True)
class TurnRequest:
    """A question, or the wish that the session's last turn goes on.

    `replaces` is the id of a user's message of the session, of any version: the question stands in place of it and of
    all behind it. Without a `content` it is the same once more. `after` is the id of a message behind which the
    question stands (or `BEGINNING`). `history` are whole messages that a client has before the question and the
    server has not: they come first. With `continues` there is no question, and the model is asked again from what is
    stored, with the `history` behind it. `key` is the idempotency key. `model`, `system_prompt` and `options` (of the
    request to the model) are for this turn alone. `prefix` is the beginning of the answer, which the model is to
    continue.

    `answers` are those to all that the last turn waits for: `approve` (with a `reason` where it is false), or the
    client's own `result` or `error`, as the model gets them. The turn goes on with them, or before the question of
    `content`. With `results_only` the calls run, and the model is not asked. `client_tools` are offered in this turn.

    With `compacts` there is neither a question nor an answer: what is old in the session is summed up.

    `client_id` is the client's own id of the question. `terms` tell what a client asked with, beside the transcript.
    `recovery` counts how often the server itself has gone on with an interrupted turn; 0 where a caller asks.
    `response` is what a response of OpenAI's form keeps beside the messages. `behind` is the id of the message that
    must be the session's last one.
    `if_busy` says what becomes of a question while another turn runs. `queued_id` is the id of the message as which
    it has waited in the session's queue.

    `files` are the bytes, by SHA-256, of what the question and its `history` name, until they are stored. A part may
    also name what the session has, by its `sha256` alone.
    """

    content: Content | None = None
    replaces: str | None = None
    after: str | None = None
    continues: bool = False
    answers: Answers | None = None
    results_only: bool = False
    history: tuple[StoredMessage, ...] = ()
    key: str | None = None
    model: str | None = None
    system_prompt: str | None = None
    options: Mapping[str, Any] | None = None
    client_tools: ClientTools | None = None
    compacts: bool = False
    prefix: str = ""
    client_id: str | None = None
    terms: str | None = None
    recovery: int = 0
    response: Mapping[str, Any] | None = None
    behind: str | None = None
    if_busy: IfBusy = "reject"
    queued_id: str | None = None
    files: dict[str, bytes] = field(default_factory=dict, compare=False, repr=False)
    stored_digest: str = ""  # of the answers, where they are those of an earlier request

    @property
    def goes_on(self) -> bool:
        """Whether the last turn goes on, without a new question."""
        return self.continues or (self.content is None and self.answers is not None)

    @property
    def answers_digest(self) -> str:
        """The same for the same answers, and empty without any."""
        if self.answers is None:
            return self.stored_digest
        known = sorted((id, sorted(answer.items())) for id, answer in self.answers.items())
        return hashlib.sha256(to_json(known)).hexdigest()[:32]

    def is_same(self, other: "TurnRequest") -> bool:
        """Whether both ask for the same, so that one key may stand for both."""
        if self.goes_on or other.goes_on:
            return self.goes_on and other.goes_on and self.answers_digest == other.answers_digest
        if (self.replaces, self.after) != (other.replaces, other.after):
            return False
        return self.content is None or other.content is None or same_content(self.content, other.content)

    @classmethod
    def stored(cls, message: StoredMessage) -> "TurnRequest":
        """What the request asked for whose key is stored in this message: a question, or that its turn goes on."""
        if message["role"] != "user":
            return cls(continues=True, stored_digest=message.get("answers_digest", ""))
        first = next(iter(message.get("history", ())), message)
        return cls(message["content"], first.get("replaces"), first.get("after"))
