"""Continuing turns that a crash has cut off, and beginning those that wait, when the server starts."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from session_core.turns.journal import partial_answer
from session_core.turns.models import ModelRefused
from session_core.turns.remote import ShuttingDown
from session_core.turns.sessions import Sessions
from session_core.turns.stored import last_turn
from session_core.turns.turn import Overloaded
from session_core.turns.turn_request import KeyReused, NothingToContinue, TurnRequest, TurnWaiting
from storage import Session, SessionBusy, SessionCorrupt, SessionNotFound, Storage, StorageUnavailable

log = logging.getLogger(__name__)

_MAX_RECOVERIES = 2  # of one turn, so that one that ends the server each time is not tried for ever
_WAIT_SECONDS = 10.0  # for sessions that seem to run: a lease of a process that is gone runs out in this time


def continue_interrupted(sessions: Callable[[], Iterable[Sessions]], seconds: float) -> threading.Thread:
    """Continues the turns that were cut off less than so many seconds ago, on one thread for all stores."""
    thread = threading.Thread(target=_work, args=(sessions, seconds), name="recovery", daemon=True)
    thread.start()
    return thread


def _work(sessions: Callable[[], Iterable[Sessions]], seconds: float) -> None:
    give_up = time.monotonic() + _WAIT_SECONDS
    left = []
    for store in sessions():
        left += [(store, id) for id in _changed_within(store.storage, seconds)]
        for id in _find(store.storage.with_queue):
            if (store, id) not in left:
                store.begin_next(id)
    while left := [(store, id) for store, id in left if not _continue(store, id)]:
        if time.monotonic() > give_up:
            return
        time.sleep(0.2)


def _changed_within(storage: Storage, seconds: float) -> list[str]:
    """The sessions that have changed within so many seconds."""
    return _find(lambda: storage.changed_since(storage.clock() - seconds))


def _find(ids: Callable[[], Iterable[str]]) -> list[str]:
    """The sessions, as far as they can be found."""
    try:
        return list(ids())
    except StorageUnavailable:
        log.error("interrupted turns could not be found, and are left as they are")
    except Exception:
        log.exception("interrupted turns could not be found")
    return []


def _continue(sessions: Sessions, session_id: str) -> bool:
    """Continues the last turn if that is interrupted, and begins what waits behind it. Returns False where it may be
    worth another look."""
    done = _continue_last(sessions, session_id)
    if done:
        sessions.begin_next(session_id)
    return done


def _continue_last(sessions: Sessions, session_id: str) -> bool:
    storage = sessions.storage
    try:
        session = storage.get(session_id)
        turn = last_turn(session)
        if turn is None or turn.complete or _came_in(session):
            return True
        if storage.running(session_id):
            return False
        if not turn.interrupted and not partial_answer(session, storage.journal(session_id)):
            return True
        recovery = (session.continues or {}).get("recovery", 0)
        if not isinstance(recovery, int) or recovery >= _MAX_RECOVERIES:
            log.warning("the turn of %s was interrupted again and again, and is left as it is", session_id)
            return True
        sessions.start(session_id, TurnRequest(continues=True, recovery=recovery + 1))
        log.info("going on with the interrupted turn of %s", session_id)
    except (SessionBusy, Overloaded):
        return False
    except (SessionNotFound, SessionCorrupt, NothingToContinue, TurnWaiting, ModelRefused, KeyReused, ShuttingDown):
        pass
    except StorageUnavailable:
        log.error("the interrupted turn of %s could not be continued, and is left as it is", session_id)
    except Exception:
        log.exception("the interrupted turn of %s could not be continued", session_id)
    return True


def _came_in(session: Session) -> bool:
    """Whether nothing has happened in the session since it was made as an import or a copy."""
    return session.continues is None and bool(session.messages[-1].get("imported"))
