"""The sessions of one store, as callers make, change and use them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from session_core.data.message import MessageFields, StoredMessage, assistant_message
from session_core.telemetry.spans import Observer
from session_core.turns.attachments import keep_question_files
from session_core.turns.expiry import Sweeps
from session_core.turns.journal import with_partial_answer
from session_core.turns.stored import last_failure, last_turn, question_message, settled_messages
from session_core.turns.turn import Turn
from session_core.turns.turn_request import TurnRequest
from session_core.turns.turns import Turns
from storage import Session, SessionBusy, SessionCorrupt, Storage, StorageUnavailable

log = logging.getLogger(__name__)


class Sessions:
    """The sessions of a store, with the turns of the process. Every method may be called from any thread."""

    def __init__(self, storage: Storage, turns: Turns) -> None:
        self.storage = storage
        self.models = turns.models
        self._turns = turns

    def create(self, messages: Sequence[StoredMessage] = (), **others: Any) -> str:
        """Creates a session as `Storage.create` does. Raises ModelRefused and StorageUnavailable."""
        self.models.check(others.get("model"))
        return self.storage.create(messages, **others)

    def configure(self, session_id: str, settings: Mapping[str, str | None]) -> None:
        """Sets the session's title, model or instructions, or removes them with None.

        Raises ModelRefused, SessionNotFound, SessionBusy where a turn runs, SessionCorrupt and StorageUnavailable.
        """
        self.models.check(settings.get("model"))
        with self.storage.lock(session_id) as session:
            session.configure(**settings)

    def append(self, session_id: str, messages: Sequence[StoredMessage], files: dict[str, bytes]) -> None:
        """Adds messages that come in to the session, with the bytes of their pictures and files, durably, one after
        the other.

        Raises SessionNotFound, SessionBusy where a turn runs, TurnRefused, SessionCorrupt and StorageUnavailable.
        """
        with self.storage.lock(session_id) as session:
            for message in messages:
                turn = last_turn(session.session)
                stored: MessageFields = {**message}  # type: ignore[typeddict-unknown-key]
                if message["role"] == "user":
                    asked = TurnRequest(message["content"], files=dict(files))
                    stored = question_message(session.session, asked)
                    keep_question_files(self.storage, session.session, asked, stored)
                elif turn is not None:
                    stored = {**stored, **turn.fields}
                session.append({**stored, "imported": True, "added": True}, message["id"], message["created_at"])

    def session(self, session_id: str) -> Session:
        """The session, with the partial answer that an interrupted turn has left. Raises SessionNotFound,
        SessionCorrupt and StorageUnavailable."""
        return with_partial_answer(self.storage, session_id)

    def look(self, session_id: str) -> tuple[Session, bool]:
        """The session as `session` gives it, and whether a turn runs in it. Raises what `session` raises.

        Where no turn runs, the last one has ended in the session that this returns, or was cut off.
        """
        session, before = self.session(session_id), None
        while not (running := self.running(session_id)) and session != before and last_failure(session):
            before, session = session, self.session(session_id)  # in which the turn may have ended in between
        return session, running

    def running(self, session_id: str) -> bool:
        """Whether a turn runs in the session, in any process. Raises SessionNotFound and StorageUnavailable."""
        return self.storage.running(session_id)

    def delete(self, session_id: str) -> None:
        """Deletes the session, durably. Cancels a turn that runs in it, which has ended when this returns.

        Raises what `cancel` does, and SessionBusy where one turn after the other starts.
        """
        for last_try in (False, False, False, True):
            if self._turns.cancel((self.storage, session_id)):
                self.storage.flush()  # so that those who watch from elsewhere get the turn's end
            try:
                with self.storage.lock(session_id) as session:
                    session.delete()
                break
            except SessionBusy:  # another turn started in between
                if last_try:
                    raise
        self._turns.forget((self.storage, session_id))

    def start(
        self,
        session_id: str,
        request: TurnRequest,
        *,
        admit: Callable[[], None] | None = None,
        observer: Observer | None = None,
    ) -> tuple[Turn, bool]:
        """See `Turns.start`."""
        return self._turns.start((self.storage, session_id), request, admit=admit, observer=observer)

    def attach(self, session_id: str) -> Turn | None:
        """See `Turns.attach`."""
        return self._turns.attach((self.storage, session_id))

    def cancel(self, session_id: str) -> bool:
        """Cancels the turn as `Turns.cancel` does, or denies what it waits for. Returns whether it did."""
        return self._turns.cancel((self.storage, session_id)) or self._cancel_waiting(session_id)

    def _cancel_waiting(self, session_id: str) -> bool:
        try:
            turn = last_turn(self.storage.get(session_id))
        except SessionCorrupt:
            return False
        if turn is None or turn.waiting is None:
            return False
        with self.storage.lock(session_id) as session:
            for message in settled_messages(session.session):
                session.append(message, message["id"], message["created_at"])
            session.append(assistant_message("", status="cancelled", reason="cancelled", **turn.fields))
        self._turns.forget((self.storage, session_id))
        return True


class SessionsOfUsers:
    """The sessions of each user, over a store of each user's own: `storage.for_user(name)`, which is made when it is
    first asked for. Those of the user "" are over the `storage` itself. Safe for any number of threads.

    `names` are the users that there are now. A session that was not changed for `session_ttl` seconds is deleted (0:
    never), once the sweeps have started.
    """

    def __init__(
        self, storage: Storage, turns: Turns, names: Callable[[], Iterable[str]], session_ttl: float = 0.0
    ) -> None:
        self.storage = storage
        self.turns = turns
        self.sweeps = Sweeps(lambda: (sessions.storage for sessions in self.all()), storage.clock, session_ttl)
        self._names = names
        self._lock = threading.Lock()
        self._sessions: dict[str, Sessions] = {"": Sessions(storage, turns)}
        self._making: dict[str, threading.Lock] = {}

    def all(self) -> Iterator[Sessions]:
        """Those of all users whose store can be made."""
        for name in sorted(self._names()):
            try:
                yield self.of(name)
            except StorageUnavailable as error:
                log.error("the sessions of user %s cannot be used: %s", name, error)

    def of(self, name: str) -> Sessions:
        """The sessions of this user. Raises StorageUnavailable where the store cannot be made."""
        with self._lock:
            if found := self._sessions.get(name):
                return found
            making = self._making.setdefault(name, threading.Lock())
        with making:  # of this user alone, since the store is on a disk
            if (found := self._sessions.get(name)) is None:
                found = Sessions(self.storage.for_user(name), self.turns)
                with self._lock:
                    self._sessions[name] = found
                    self._making.pop(name, None)
        return found

    @property
    def closing(self) -> bool:
        """Whether no new turn starts any more."""
        return self.turns.closing

    def shut_down(self, grace: float) -> None:
        """Ends the turns of all users, and the sweeps. See `Turns.shut_down`."""
        self.sweeps.stop()
        self.turns.shut_down(grace)
