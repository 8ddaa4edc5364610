"""What a caller asks for with a turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from session_core.data.message import StoredMessage


class TurnRefused(Exception):
    """The session has not what the question refers to. The text says what, for people."""


class NothingToContinue(Exception):
    """The session's last turn is complete, or there is none."""


class KeyReused(Exception):
    """The idempotency key belongs to another message of this session."""


@dataclass(frozen=True)
class TurnRequest:
    """A question, or the wish that the session's last turn goes on.

    `replaces` is the id of a user's message of the session, of any version: the question stands in place of it and of
    all behind it. Without a `text` it is the same text once more. `after` is the id of a message behind which the
    question stands (or `BEGINNING`). `history` are whole messages that a client has before the question and the
    server has not: they come first. With `continues` there is no question, and the model is asked again from what is
    stored. `key` is the idempotency key. `model`, `system_prompt` and `options` (of the request to the model) are for
    this turn alone. `prefix` is the beginning of the answer, which the model is to continue.

    `client_id` is the client's own id of the question. `terms` tell what a client asked with, beside the transcript.
    `recovery` counts how often the server itself has gone on with an interrupted turn; 0 where a caller asks.
    """

    text: str | None = None
    replaces: str | None = None
    after: str | None = None
    continues: bool = False
    history: tuple[StoredMessage, ...] = ()
    key: str | None = None
    model: str | None = None
    system_prompt: str | None = None
    options: Mapping[str, Any] | None = None
    prefix: str = ""
    client_id: str | None = None
    terms: str | None = None
    recovery: int = 0

    def is_same(self, other: TurnRequest) -> bool:
        """Whether both ask for the same, so that one key may stand for both."""
        if self.continues or other.continues:
            return self.continues and other.continues
        same_text = self.text is None or other.text is None or self.text == other.text
        return (self.replaces, self.after) == (other.replaces, other.after) and same_text

    @classmethod
    def stored(cls, message: StoredMessage, key: str) -> TurnRequest:
        """The question that a stored user's message with this key was. Another key asked to go on with it."""
        if message.get("idempotency_key") != key:
            return cls(continues=True)
        first = next(iter(message.get("history", ())), message)
        return cls(message["content"], first.get("replaces"), first.get("after"))
