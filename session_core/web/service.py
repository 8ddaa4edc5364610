"""What the server says of itself: its tools, its models, whether it is well; and the page."""

from flask import Blueprint, Response

from agent import Agent
from session_core.turns.remote import ShuttingDown
from session_core.turns.sessions import SessionsOfUsers
from session_core.web.errors import ApiError, json_response
from session_core.web.page_files import PAGE_FILE_ROUTES, page_file
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
        if sessions.turns.closing:
            raise ShuttingDown
        sessions.storage.check()
        return json_response({"status": "ok"})

    blueprint.add_url_rule("/", "page", lambda: page_file("index.html"))
    blueprint.add_url_rule("/openapi.json", "openapi", lambda: page_file("openapi.json"))
    for route in PAGE_FILE_ROUTES:
        blueprint.add_url_rule(route, "page_file", page_file)
    blueprint.add_url_rule("/render", "render", _render, methods=["POST"])
    return blueprint


def _render() -> Response:
    """The tree of a Markdown text. What draws it is imported when it is first asked for."""
    try:
        from session_core.web.render import answer_render
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("markdown_it", "mdit_py_plugins", "pygments", "latex2mathml"):
            raise
        raise ApiError("not_found", "Nothing is drawn here: pip install '.[page]'") from None
    return answer_render()
