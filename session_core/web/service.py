"""What the server says of itself: its tools, its models, whether it is well; and the page."""

from __future__ import annotations

from flask import Blueprint, Response

from agent import Agent
from session_core.turns.remote import ShuttingDown
from session_core.turns.sessions import SessionsOfUsers
from session_core.web.errors import json_response
from session_core.web.page_files import PAGE_FILE_ROUTE, page_file
from session_core.web.turn_responses import TurnResponses


def service_routes(agent: Agent, sessions: SessionsOfUsers, responses: TurnResponses) -> Blueprint:
    """The routes that tell of the server."""
    blueprint = Blueprint("service", __name__)

    @blueprint.get("/tools")
    def list_tools() -> Response:
        tools = [
            {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "from": tool.source,
                "needs_approval": tool.may_need_approval,
            }
            for tool in agent.tools
        ]
        return json_response({"tools": tools})

    @blueprint.get("/models")
    def list_models() -> Response:
        return json_response({"models": responses.sessions.models.names(), "default": agent.model})

    @blueprint.get("/health")
    def health() -> Response:
        return json_response({"status": "ok"})

    @blueprint.get("/ready")
    def ready() -> Response:
        if sessions.closing:
            raise ShuttingDown
        sessions.storage.check()
        return json_response({"status": "ok"})

    blueprint.add_url_rule("/", "page", lambda: page_file("index.html"))
    blueprint.add_url_rule("/openapi.json", "openapi", lambda: page_file("openapi.json"))
    blueprint.add_url_rule(PAGE_FILE_ROUTE, "page_file", page_file)
    return blueprint
