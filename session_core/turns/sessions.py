"""The sessions of one store, as callers make, change and use them."""

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from session_core.data.message import StoredMessage, assistant_message
from session_core.data.message_queue import QueuedMessage, QueueFull
from session_core.data.removed import TEXT, removed_parts
from session_core.data.session import new_message
from session_core.telemetry.spans import Observer
from session_core.turns.added import with_added
from session_core.turns.attachments import keep_new_files
from session_core.turns.compaction import without_summary_of
from session_core.turns.expiry import Sweeps
from session_core.turns.journal import with_partial_answer
from session_core.turns.queued import next_request, still_waiting
from session_core.turns.queueing import Accepted, accept, find_turn
from session_core.turns.stored import last_failure, last_turn, settled_messages, waiting_message
from session_core.turns.turn import Turn
from session_core.turns.turn_request import TurnRequest
from session_core.turns.turns import Turns
from storage import (
    Session,
    SessionBusy,
    SessionCorrupt,
    SessionExists,
    SessionNotFound,
    Storage,
    StorageUnavailable,
)

log = logging.getLogger(__name__)

_MAX_TRIES = 4  # to end what runs in a session, where one turn after the other starts


class Sessions:
    """The sessions of a store, with the turns of the process. Every method may be called from any thread."""

    def __init__(self, storage: Storage, turns: Turns) -> None:
        self.storage = storage
        self.models = turns.models
        self._turns = turns

    def create(self, messages: Sequence[StoredMessage] = (), **others: Any) -> str:
        """Creates a session as `Storage.create` does. Raises ModelRefused, StorageUnavailable, and SessionNotFound
        where the session is gone by then that has the files."""
        self.models.check(others.get("model"))
        session_id, source = self.storage.create(messages, **others), others.get("files")
        with contextlib.ExitStack() as undo:
            undo.callback(self.delete, session_id)  # of whose pictures some may be missing
            if source and isinstance(source, str):
                self.storage.running(source)
            undo.pop_all()
        return session_id

    @contextlib.contextmanager
    def made(self, id: str, messages: Sequence[StoredMessage] = (), **others: Any) -> Iterator[None]:
        """A session of this id, made unless it is there for what begins in it in this block. Where that raises
        and nothing has begun, there is no session any more.

        Raises what `create` does, and SessionBusy where another block has failed meanwhile that began in it too.
        """
        with contextlib.suppress(SessionExists):
            self.create(messages, id=id, **others)
        try:
            yield
        except SessionNotFound:
            raise SessionBusy(id) from None
        except BaseException:
            with (
                contextlib.suppress(SessionNotFound, SessionBusy, SessionCorrupt, StorageUnavailable),
                self.storage.lock(id) as session,
            ):
                if len(session.session.messages) == len(messages):
                    session.delete()
            raise

    def configure(self, session_id: str, settings: Mapping[str, str | None]) -> None:
        """Sets the session's title, model or instructions, or removes them with None.

        Raises ModelRefused, SessionNotFound, SessionBusy where a turn runs, SessionCorrupt and StorageUnavailable.
        """
        self.models.check(settings.get("model"))
        with self.storage.lock(session_id) as session:
            if self.next_message(session_id):
                raise SessionBusy(session_id)
            session.configure(**settings)

    def append(self, session_id: str, messages: Sequence[StoredMessage], files: dict[str, bytes]) -> None:
        """Adds messages that come in to the session, with the bytes of their pictures and files, all or none.

        Raises SessionNotFound, SessionBusy where a turn runs, TurnRefused, SessionCorrupt and StorageUnavailable.
        """
        with self.storage.lock(session_id) as session:
            found, added = with_added(session.session, messages)
            keep_new_files(self.storage, session.session, files, added)
            session.set_continues(found.continues, added)
        self.begin_next(session_id)  # which a turn that waited for answers has held

    def remove(self, session_id: str, parts: Mapping[str, str]) -> None:
        """Takes parts out of messages, by their ids (see `session_core/data/removed.py`). A call that waits is denied
        with that, and a summary that tells of one of them is in force no more.

        Raises SessionNotFound, SessionBusy where a turn runs, SessionCorrupt and StorageUnavailable.
        """
        with self.storage.lock(session_id) as session:
            added = _denied(session.session, parts.values())
            if added:
                session.set_continues(session.session.continues, added)
            found = session.session.responses or {}
            removed = {
                id: [*removed_parts(found, id), part]
                for id, part in (*parts.items(), *((one["id"], TEXT) for one in added))
            }
            session.configure(
                responses={**found, "removed": {**found.get("removed", {}), **removed}},
                compacted=without_summary_of(session.session, parts),
            )
        self._turns.forget((self.storage, session_id))
        self.begin_next(session_id)

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
        """Whether a turn runs in the session, in any process, or a message waits whose turn is the next. Raises
        SessionNotFound and StorageUnavailable."""
        with contextlib.suppress(SessionCorrupt):
            if self.next_message(session_id):
                return True
        return self.storage.running(session_id)  # looked at last: what has left the queue runs

    def next_message(self, session_id: str) -> str | None:
        """The id of the message whose turn begins next, of those that wait. Raises what `session` raises."""
        request = next_request(self.storage, session_id)
        return request.queued_id if request else None

    def delete(self, session_id: str) -> None:
        """Deletes the session, durably. Cancels a turn that runs in it, which has ended when this returns.

        Raises what `cancel` does, and SessionBusy where one turn after the other starts. Where it raises, what waits
        goes on waiting.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.begin_next, session_id)
            for _ in range(_MAX_TRIES):
                turn = self._turns.attach((self.storage, session_id))
                if turn is not None and not turn.ended:
                    with contextlib.suppress(SessionCorrupt):  # before the end, so that no turn of one begins then
                        for message in self.storage.queue(session_id).read():
                            if self.storage.queue(session_id).remove(message["id"]):
                                undo.callback(self._put_back, session_id, message)
                    if turn.cancel():
                        self.storage.flush()  # so that those who watch from elsewhere get the turn's end
                with contextlib.suppress(SessionBusy):  # another turn started in between
                    with self.storage.lock(session_id) as session:
                        session.delete()
                    undo.pop_all()
                    return self._turns.forget((self.storage, session_id))
            raise SessionBusy(session_id)

    def _put_back(self, session_id: str, message: QueuedMessage) -> None:
        """Has a message wait again, unless others fill the queue by now or the store fails once more."""
        with contextlib.suppress(SessionNotFound, StorageUnavailable, QueueFull):
            self.storage.queue(session_id).add(message, first=True)

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

    def accept(self, session_id: str, request: TurnRequest) -> Accepted:
        """See `queueing.accept`. An interrupt also denies what the last turn waits for."""
        accepted = accept(self._turns, (self.storage, session_id), request)
        if request.if_busy == "interrupt":
            with contextlib.suppress(SessionBusy):
                self._cancel_waiting(session_id, before=accepted.message_id)
        return accepted

    def take_back(self, session_id: str, message_id: str) -> bool:
        """Takes a message out of the queue, durably. Returns whether it has waited. Raises what `session` raises."""
        queue = self.storage.queue(session_id)
        waiting = still_waiting(queue.read(), self.storage.get(session_id))
        return any(message["id"] == message_id for message in waiting) and queue.remove(message_id)

    def find_turn(self, session_id: str, message_id: str) -> Turn | None:
        """See `queueing.find_turn`."""
        return find_turn(self._turns, (self.storage, session_id), message_id)

    def begin_next(self, session_id: str) -> None:
        """Begins the turn of the message that waits first, soon, if one waits and no turn runs. Never raises."""
        self._turns.queues.look((self.storage, session_id))

    def wait_for_queues(self, seconds: float) -> bool:
        """Waits until the turn of a message that has waited begins, in any session, at most so long. Returns whether
        more can begin."""
        self._turns.queues.wait(seconds)
        return not self._turns.closing

    def attach(self, session_id: str) -> Turn | None:
        """See `Turns.attach`. None where only a summary is made. Where none runs, that of what waits begins soon."""
        turn = self._turns.attach((self.storage, session_id))
        self.begin_next(session_id)
        return turn if turn and turn.message_id else None

    def cancel(self, session_id: str) -> bool:
        """Cancels the turn as `Turns.cancel` does, or denies what it waits for. Returns whether it did.

        Raises what `Turns.cancel` does, and SessionBusy where one turn after the other starts.
        """
        for _ in range(_MAX_TRIES):
            if self._turns.cancel((self.storage, session_id)):
                return True
            with contextlib.suppress(SessionBusy):  # another turn has started in between
                return self._cancel_waiting(session_id)
        raise SessionBusy(session_id)

    def _cancel_waiting(self, session_id: str, before: str | None = None) -> bool:
        """Denies what the last turn waits for, unless the turn of the message `before` has begun. Returns whether it
        did."""
        try:
            if waiting_message(self.storage.get(session_id)) is None:
                return False
        except SessionCorrupt:
            return False
        with self.storage.lock(session_id) as session:
            added = _denied(session.session)
            if not added or any(message["id"] == before for message in session.session.messages):
                return False  # it was answered in between
            session.set_continues(session.session.continues, added)
        self._turns.forget((self.storage, session_id))
        self.begin_next(session_id)
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
        with self._making.setdefault(name, threading.Lock()):  # of this user alone, since the store is on a disk
            if name not in self._sessions:
                self._sessions[name] = Sessions(self.storage.for_user(name), self.turns)
            return self._sessions[name]

    def shut_down(self, grace: float) -> None:
        """Ends the turns of all users, and the sweeps. See `Turns.shut_down`."""
        self.sweeps.stop()
        self.turns.shut_down(grace)


def _denied(session: Session, calls: Collection[str] | None = None) -> list[StoredMessage]:
    """The results that deny all that the last turn waits for, or these calls alone, and its end where no other waits.
    Empty where none of them does."""
    turn = last_turn(session)
    if turn is None or turn.waiting is None:
        return []
    gone = {id for id in turn.waiting["pending"] if calls is None or id in calls}
    found = [one for one in settled_messages(session) if calls is None or one.get("tool_call_id") in gone]
    if gone == turn.waiting["pending"].keys():
        found.append(new_message(assistant_message("", status="cancelled", reason="cancelled", **turn.fields)))
    return found
