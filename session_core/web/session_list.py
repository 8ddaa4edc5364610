"""The native dialect's list of sessions: its pages, with details, or searched."""

import contextlib
from typing import Any

from flask import Response, request

from session_core.turns.search import Search
from session_core.turns.sessions import Sessions
from session_core.web.bodies import flag_argument, number_argument, words_argument
from session_core.web.errors import ApiError, json_response
from storage import SessionNotFound, StorageUnavailable, Summary

_DEFAULT_LIMIT = 100  # of a page of objects


def answer_list(sessions: Sessions, *, show_reasoning: bool) -> Response:
    """The page of the list that the request asks for."""
    details, words = flag_argument("details"), words_argument("q")
    limit, after = number_argument("limit", 1, 1000), request.args.get("after")
    try:
        if words:
            found, next_id = Search(sessions.storage, words, show_reasoning).page(limit or _DEFAULT_LIMIT, after)
            rows = [{"id": one.session_id, "message_id": one.message_id, "snippet": one.snippet} for one in found]
        else:
            ids, next_id = sessions.storage.page(limit or (_DEFAULT_LIMIT if details else None), after)
            rows = [{"id": session_id} for session_id in ids]
    except SessionNotFound:
        raise ApiError("invalid_request", "after must be the id of a session in the list.") from None
    paged = {"next": next_id} if words or details or limit or after is not None else {}
    if details:
        return json_response({"sessions": _with_details(sessions, rows), **paged})
    return json_response({"sessions": rows if words else ids, **paged})


def session_details(sessions: Sessions, session_id: str) -> dict[str, Any]:
    """What a list tells of a session. Raises SessionNotFound and StorageUnavailable."""
    running = sessions.running(session_id)
    return {**vars(sessions.storage.summary(session_id)), "running": running}


def _with_details(sessions: Sessions, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for row in rows:
        with contextlib.suppress(SessionNotFound):  # deleted since it was listed
            try:
                shown = session_details(sessions, row["id"])
            except StorageUnavailable:  # a file that cannot be read costs only its own session
                shown = {**vars(Summary(row["id"])), "running": False}
            found.append({**shown, **row})
    return found
