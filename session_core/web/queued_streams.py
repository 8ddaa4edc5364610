"""The stream of a message that waits: comments until its turn begins, and then the events of the turn."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator

from flask import Response

from session_core.turns.queueing import MessageNotFound
from session_core.turns.remote import ShuttingDown
from session_core.turns.turn import Overloaded, Turn
from session_core.web.turn_responses import Renderer, TurnResponses, event_blocks
from storage import SessionBusy, SessionCorrupt, SessionNotFound, StorageUnavailable

_QUEUE_SECONDS = 0.5  # between two looks whether the turn has begun, maybe elsewhere
_GONE = (MessageNotFound, SessionNotFound, SessionCorrupt)
_NO_TURN = (*_GONE, SessionBusy, StorageUnavailable, ShuttingDown, Overloaded)


def stream_queued(
    responses: TurnResponses, find: Callable[[], Turn | None], renderer: Callable[[Turn], Renderer], comment: bytes
) -> Response:
    """A stream of comments until `find` gives a turn, and then of all its events. It ends where `find` can give none
    any more, and at a shutdown."""
    wait, keep_alive = responses.sessions.wait_for_queues, responses.keep_alive

    def blocks() -> Iterator[bytes]:
        with contextlib.suppress(*_NO_TURN), contextlib.ExitStack() as stack:
            turn = yield from _wait_for(find, wait, comment, keep_alive)
            if turn is not None:
                turn.readers.add("watching")
                stack.callback(turn.leave, "watching")
                shown = responses.show(turn)
                yield from event_blocks(shown, 0, renderer(shown), keep_alive)

    return responses.watch_queued(blocks())


def _wait_for(
    find: Callable[[], Turn | None], wait: Callable[[float], bool], comment: bytes, keep_alive: float
) -> Generator[bytes, None, Turn | None]:
    commented_at = -keep_alive
    while (turn := find()) is None:
        if time.monotonic() >= commented_at + keep_alive:
            commented_at = time.monotonic()
            yield comment
        if not wait(min(_QUEUE_SECONDS, keep_alive)):
            break
    return turn
