"""The Conversations dialect: sessions as conversations, and their messages as items."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response
from pydantic import BaseModel

from session_core.model.outgoing_messages import read_tool_calls
from session_core.web.bodies import json_body, parse_body
from session_core.web.errors import ApiError, json_response
from session_core.web.openai_responses import items_page, openai_routes
from session_core.web.response_ids import conversation_id, session_of
from session_core.web.response_input import ResponseInput
from session_core.web.response_listing import ItemFinder, list_items, list_page, placed_item
from session_core.web.response_object import seconds
from session_core.web.response_request import Metadata
from session_core.web.turn_responses import TurnResponses
from session_core.web.uploads import Uploads, body_with_files
from storage import Session, new_id

_MAX_ITEMS = 20  # of one request, as at OpenAI


class _Body(BaseModel, strict=True):
    """What the routes of conversations take."""

    metadata: Metadata | None = None
    items: list[Any] | None = None  # see `ResponseInput`


def conversations_dialect(responses: TurnResponses) -> Blueprint:
    """The routes of conversations."""
    routes = _Conversations(responses)
    return openai_routes(
        "conversations",
        ("POST", "/conversations", routes.create_conversation),
        ("GET", "/conversations/<id>", routes.get_conversation),
        ("POST", "/conversations/<id>", routes.update_conversation),
        ("DELETE", "/conversations/<id>", routes.delete_conversation),
        ("POST", "/conversations/<id>/items", routes.create_items),
        ("GET", "/conversations/<id>/items", routes.list_conversation_items),
        ("GET", "/conversations/<id>/items/<item_id>", routes.get_item),
        ("DELETE", "/conversations/<id>/items/<item_id>", routes.delete_item),
    )


class _Conversations:
    """The routes, as methods. Each returns a response, or raises what `answer_error` answers."""

    def __init__(self, responses: TurnResponses) -> None:
        self._responses = responses

    def create_conversation(self) -> Response:
        with body_with_files(self._responses.max_file_bytes, optional=True) as (body, uploads):
            asked = parse_body(_Body, body)
            read = self._read_items(asked, uploads, {})
        kept = {"metadata": asked.metadata} if asked.metadata else None
        sessions, session_id = self._responses.sessions, new_id("session")
        with sessions.made(session_id, responses=kept, system_prompt="\n\n".join(read.system) or None):
            sessions.append(session_id, read.messages, read.files)
        return _render(sessions.session(session_id))

    def get_conversation(self, id: str) -> Response:
        return _render(self._session(id))

    def update_conversation(self, id: str) -> Response:
        asked = parse_body(_Body, json_body())
        with self._responses.sessions.storage.lock(session_of(id)) as session:
            session.configure(responses={**(session.session.responses or {}), "metadata": asked.metadata or {}})
        return _render(self._session(id))

    def delete_conversation(self, id: str) -> Response:
        self._responses.sessions.delete(session_of(id))
        return json_response({"id": id, "object": "conversation.deleted", "deleted": True})

    def create_items(self, id: str) -> Response:
        with body_with_files(self._responses.max_file_bytes) as (body, uploads):
            asked = parse_body(_Body, body)
            if not asked.items:
                raise ApiError("invalid_request", "items must be given, and must not be empty.")
            session = self._session(id)
            called = (call for message in session.conversation for call in read_tool_calls(message))
            read = self._read_items(asked, uploads, {call.id: call.name for call in called})
        if read.system:
            raise ApiError("invalid_request", "System messages come with a new conversation, or with a response.")
        self._responses.sessions.append(session.id, read.messages, read.files)
        ids = {message["id"] for message in read.messages}
        added = [placed.item for placed in list_items(self._session(id)) if placed.of in ids]
        return json_response(list_page(added, None, len(added)))

    def list_conversation_items(self, id: str) -> Response:
        return items_page([placed.item for placed in list_items(self._session(id))])

    def get_item(self, id: str, item_id: str) -> Response:
        return json_response(placed_item(self._session(id), item_id).item)

    def delete_item(self, id: str, item_id: str) -> Response:
        session = self._session(id)
        self._responses.sessions.remove(session.id, placed_item(session, item_id).parts)
        return _render(self._session(id))

    def _read_items(self, asked: _Body, uploads: Uploads, names: Mapping[str, str]) -> ResponseInput:
        if len(asked.items or ()) > _MAX_ITEMS:
            raise ApiError("invalid_request", f"items must have at most {_MAX_ITEMS} items.")
        read = ResponseInput(uploads, ItemFinder(self._responses).find, names=names).read(asked.items or ())
        if read.answers:
            raise ApiError("invalid_request", "items has an output of a call that the conversation has not.")
        return read

    def _session(self, id: str) -> Session:
        return self._responses.session(session_of(id))


def _render(session: Session) -> Response:
    return json_response(
        {
            "id": conversation_id(session.id),
            "object": "conversation",
            "created_at": seconds(session.created_at),
            "metadata": (session.responses or {}).get("metadata", {}),
        }
    )
