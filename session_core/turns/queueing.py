"""What callers do with a message while a turn runs: have it wait, go into the turn or interrupt it, and watch it."""

import contextlib
from dataclasses import dataclass

from session_core.data.message_queue import MAX_QUEUED, QueueFull
from session_core.turns import stored
from session_core.turns.queued import find_queued, queued_message, still_waiting
from session_core.turns.recent import Place
from session_core.turns.turn import Turn
from session_core.turns.turn_request import TurnRequest
from session_core.turns.turns import Turns
from storage import SessionBusy

_MAX_LOOKS = 3  # at a session in which turns start and end meanwhile


class MessageNotFound(Exception):
    """The message neither stands nor waits in the session."""


@dataclass(frozen=True)
class Accepted:
    """A message that waits, durably. `position` is its place in the queue, from 1."""

    message_id: str
    position: int


def accept(turns: Turns, place: Place, request: TurnRequest) -> Accepted:
    """Queues a question, as its `if_busy` says, in a session that is busy. One that waits under its key is the same.

    Raises KeyReused, SessionBusy where `if_busy` says so, or where the turn runs in a process that cannot be reached
    from here, QueueFull, TurnRefused, SessionNotFound, SessionCorrupt, StorageUnavailable, and ShuttingDown.
    """
    storage, session_id = place
    queue = storage.queue(session_id)
    before = queue.read()
    if request.if_busy == "reject" and not before:
        raise SessionBusy(session_id)
    session = storage.get(session_id)
    waiting = still_waiting(before, session)
    if found := find_queued(waiting, request):
        turns.queues.look(place)
        return Accepted(found["id"], 1 + waiting.index(found))
    if request.if_busy == "reject" or stored.find_turn(session, request.key):
        raise SessionBusy(session_id)
    turn = turns.attach(place)
    running = turn.message_id if turn is not None and not turn.ended else None
    if len(before) >= MAX_QUEUED:  # before its pictures and files are kept
        raise QueueFull
    message = queued_message(storage, session, request, running)
    position = queue.add(message, first=request.if_busy == "interrupt")
    if request.if_busy == "interrupt":
        _interrupt(turns, place, {running, *(one["id"] for one in waiting)})
    turns.queues.look(place)
    return Accepted(message["id"], position)


def _interrupt(turns: Turns, place: Place, older: set[str | None]) -> None:
    """Cancels the turn that runs, where it is that of one of these questions, and the one that began since."""
    for _ in range(len(older)):
        with contextlib.suppress(SessionBusy):
            turn = turns.attach(place)
            if turn is None or turn.ended or turn.message_id not in older:
                return
            turn.cancel()


def find_turn(turns: Turns, place: Place, message_id: str) -> Turn | None:
    """The turn that has begun with this message, or into which it has come. None where it waits.

    Has what waits begin where nothing runs. Raises MessageNotFound, and what `Turns.attach` and `Storage.get` raise.
    """
    storage, session_id = place
    for _ in range(_MAX_LOOKS):
        turn = turns.attach(place)
        waits = any(one["id"] == message_id for one in storage.queue(session_id).read())
        session = storage.get(session_id)
        ids = [message["id"] for message in session.messages]
        found = stored.turn_at(session, ids.index(message_id)) if message_id in ids else None
        if found is None and not waits:
            raise MessageNotFound(message_id)
        if found is None:
            turns.queues.look(place)
            return None
        if turn is not None and turn.message_id == found.messages[0]["id"]:
            return turn
        later = turns.attach(place)
        if (turn and turn.id) == (later and later.id):  # else it may have begun since the session was read
            return Turn.replay(session_id, found)
    raise SessionBusy(session_id)
