"""Going on with turns that a crash has cut off, when the server starts."""

from __future__ import annotations

import logging
import threading
import time

from session_core.turns.journal import partial_answer
from session_core.turns.models import ModelRefused
from session_core.turns.remote import ShuttingDown
from session_core.turns.stored import last_turn
from session_core.turns.turn import Overloaded
from session_core.turns.turn_request import KeyReused, NothingToContinue, TurnRequest
from session_core.turns.turns import Turns
from storage import Session, SessionBusy, SessionCorrupt, SessionNotFound, Storage, StorageUnavailable

log = logging.getLogger(__name__)

_MAX_RECOVERIES = 2  # of one turn, so that one that ends the server each time is not tried for ever
_WAIT_SECONDS = 10.0  # for sessions that seem to run: a lease of a process that is gone runs out in this time


def continue_interrupted(runs: Turns, seconds: float) -> threading.Thread:
    """Goes on with the turns that were cut off less than so many seconds ago, on a thread of its own."""
    thread = threading.Thread(target=_work, args=(runs, runs.storage, seconds), name="recovery", daemon=True)
    thread.start()
    return thread


def _work(runs: Turns, storage: Storage, seconds: float) -> None:
    give_up = time.monotonic() + _WAIT_SECONDS
    try:
        recent = list(storage.changed_since(storage.clock() - seconds))  # going on changes the order
        left = [session_id for session_id in recent if not _go_on(runs, storage, session_id)]
        while left and time.monotonic() < give_up and not runs.closing:
            time.sleep(0.2)
            left = [session_id for session_id in left if not _go_on(runs, storage, session_id)]
    except StorageUnavailable:
        log.error("interrupted turns could not be found, and are left as they are")
    except Exception:
        log.exception("interrupted turns could not be gone on with")


def _go_on(runs: Turns, storage: Storage, session_id: str) -> bool:
    """Goes on with the last turn if that is interrupted. Returns False where it may be worth another look."""
    try:
        session = storage.get(session_id)
        turn = last_turn(session)
        if turn is None or turn.complete or _came_in(session):
            return True
        if storage.running(session_id):
            return False
        if not turn.interrupted and not partial_answer(session, storage.journal(session_id)):
            return True
        recovery = (session.continuation or {}).get("recovery", 0)
        if not isinstance(recovery, int) or recovery >= _MAX_RECOVERIES:
            log.warning("the turn of %s was interrupted again and again, and is left as it is", session_id)
            return True
        runs.start(session_id, TurnRequest(continues=True, recovery=recovery + 1))
        log.info("going on with the interrupted turn of %s", session_id)
        return True
    except (SessionBusy, Overloaded):
        return False
    except StorageUnavailable:  # which was logged, and concerns this session alone
        storage.check()
        return True
    except (SessionNotFound, SessionCorrupt, NothingToContinue, ModelRefused, KeyReused, ShuttingDown):
        return True


def _came_in(session: Session) -> bool:
    """Whether nothing has happened in the session since it was made as an import or a copy."""
    return session.continuation is None and bool(session.messages[-1].get("imported"))
